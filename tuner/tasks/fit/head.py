"""From examples to a sealed folder: settings, model, training, figures on the test, report and card."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.project import Project
from agent.llm.weights.load import encoder_weights
from agent.llm.weights.precision import faster_precision
from agent.util.ids import timestamp
from tuner.tasks.artifact import Sealed, save, untrained
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.records import Asked, Classified, Similar, TaskName, shown
from tuner.tasks.data.splits import Splits, dataset_hash
from tuner.tasks.data.typos import mistyped
from tuner.tasks.fit.warm_start import Start, begin, continued
from tuner.tasks.head.answer import AnswerTask
from tuner.tasks.head.label_names import named_windows
from tuner.tasks.head.model import Encoder, TaskModel, load_encoder, score
from tuner.tasks.head.ngrams import NgramModel
from tuner.tasks.head.tasks import Task, make_task, task_of
from tuner.tasks.head.token_alignment import text_ids
from tuner.tasks.head.training import TaskProgress, TrainedTask, train_model
from tuner.tasks.metrics import Scores
from tuner.tasks.predictor import TaskPredictor, TaskResult, predict_with
from tuner.tasks.report import Outcome, card, write_figures, write_page
from tuner.tasks.settings import TaskSettings, choose

if TYPE_CHECKING:
    from tuner.tasks.head.windows import Window

MEASURED = 2000
"""Examples by which the length of windows is chosen, and whether they can be read."""

LONG = 10_000
"""Training examples from which it is told why there is nothing to see at first."""

UNREADABLE = 0.2
"""Share of unknown tokens from which a classification does without the encoder, where no method is named."""

UNREAD = 0.05
"""Share of unknown tokens from which that is told."""


def fit(
    name: TaskName,
    splits: Splits,
    encoder_name: str | None,
    folder: Path,
    tuning: str,
    project: Project,
    columns: Columns,
    say: Callable[[str], None],
    tell: Callable[[TaskProgress], None],
    given: Mapping[str, Any],
    *,
    kept: Mapping[str, Any] | None = None,
    start: Start | None = None,
) -> TaskResult:
    """Train on `splits.train`, watch with `splits.validation`, measure with `splits.test`, and save.

    `kept` goes into `task.json`, for whoever trains again; `start` is what it goes on from.
    """
    import torch

    base = encoder_weights(
        project.named(encoder_name or project.settings.model.encoder), project.home.models, progress=say
    )
    encoder = load_encoder(base, device=_device(project.settings.model.device))
    reading = read_by(encoder, splits)
    task, settings = planned(name, splits, encoder, reading, columns, given, start)
    if settings.precision == "auto":
        settings = replace(settings, precision=faster_precision(str(encoder.model.device)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = untrained(encoder, task, settings)
    if start is not None:
        say(f"goes on from {start.manifest.id}{begin(model, start, base, splits.train)}")
    say(f"{name} on {base.name}: {settings.method}, {settings.epochs} epochs at most, {len(splits.train)} examples")
    notes = (*splits.notes, *_unread(reading, base.name, settings.method))
    for note in notes[len(splits.notes) :]:
        say(f"noticed: {note}")
    if len(splits.train) > LONG:
        say("the test is measured as it is, and a head fitted, before the first step: that tells nothing for a while")
    before = model.task.measure(splits.test, predict_with(model, splits.test))
    if isinstance(model, NgramModel):
        trained = model.fit(splits.train, splits.validation, tell)
    else:
        trained = _train(model, splits, _names(model, splits, say), tell)
    predictions = predict_with(model, splits.test)
    after = model.task.measure(splits.test, predictions)
    counts = {part: len(getattr(splits, part)) for part in ("train", "validation", "test")}
    outcome = Outcome(
        name,
        base.name,
        counts,
        splits.notes,
        settings,
        trained,
        before,
        after,
        splits.test,
        predictions,
        what="Vectors for the task" if name == "embed" else "A head for the task",
    )
    report = {"report.html": write_page(outcome).encode(), "metrics.json": write_figures(outcome).encode()}
    told = {"pairs": any(getattr(one, "pair", None) is not None for one in splits.train), **(kept or {})}
    parent = None if start is None else start.manifest.id
    sealed = Sealed(base, dataset_hash(splits), tuning, timestamp(), parent, told)
    save(model, folder, sealed, lambda id: card(id, outcome), report)
    return TaskResult(TaskPredictor(model, folder), folder, before, after, trained, notes)


def planned(
    name: TaskName,
    splits: Splits,
    encoder: Encoder,
    reading: Reading,
    columns: Columns,
    given: Mapping[str, Any],
    start: Start | None = None,
) -> tuple[Task, TaskSettings]:
    """The untrained task and the settings that `fit` takes for these examples. Raises DatasetError.

    Of texts that the encoder cannot read characters are counted, unless it goes on from an earlier training.
    """
    task = continued(_task(name, splits, encoder, columns), start, make_task)
    if start is not None:
        given = start.settings(given, task)
    elif name == "classify" and given.get("method") is None and reading.unknown >= UNREADABLE:
        given = {**given, "method": "ngrams"}
    return task, choose(name, len(splits.train), reading.longest, encoder.facts, given)


def _names(model: TaskModel, splits: Splits, say: Callable[[str], None]) -> list[Window]:
    """Windows of the labels' names, where they are learnt."""
    if not model.settings.label_names:
        return []
    names, right = named_windows(model, splits.train)
    if names:
        say(f"the names of {len(names)} labels are learnt as well; alone they are right of {right:.0%} of the texts")
    return names


def _train(model: TaskModel, splits: Splits, names: list[Window], tell: Callable[[TaskProgress], None]) -> TrainedTask:
    task, settings = model.task, model.settings
    windows = task.windows(splits.train, model.tokenizer, settings.max_tokens)
    validation = task.windows(splits.validation, model.tokenizer, settings.max_tokens)
    if isinstance(task, AnswerTask):
        task.fit_odds(windows)

    def check(scores: list[Any]) -> Scores:
        if isinstance(task, AnswerTask):
            task.fit_margin(splits.validation, validation, scores)
        return task.measure(splits.validation, task.predict(splits.validation, validation, scores), resamples=0)

    def mistyped_windows(number: int) -> list[Window]:
        chance = random.Random(f"{settings.seed} typos {number}")
        changed = [mistyped(one, chance, settings.adversarial_size) for one in splits.train]
        return task.windows(changed, model.tokenizer, settings.max_tokens)

    weights = task.class_weights(windows) if settings.class_weights else None
    trained = train_model(
        model,
        windows,
        check,
        validation,
        class_weights=weights,
        mistyped=mistyped_windows if settings.adversarial == "typos" else None,
        names=names,
        on_progress=tell,
    )
    if isinstance(task, AnswerTask) and task.none:
        # Since the epoch that is kept was looked at, others have set the margin.
        task.fit_margin(splits.validation, validation, score(model, validation))
    return trained


def _task(name: TaskName, splits: Splits, encoder: Encoder, columns: Columns) -> Task:
    options: dict[str, Any] = {}
    if name in ("classify", "embed"):
        options["pooling"] = encoder.pooling
    if name == "classify" and (columns.multi_label or (columns.label and "," in columns.label)):
        options["multi"] = True
    return task_of(name, splits.train, **options)


@dataclass(frozen=True)
class Reading:
    """What an encoder makes of training texts."""

    longest: int
    """Tokens that nearly all of them fit into, special ones and signs counted generously."""
    unknown: float
    """The share of the tokens that it does not know."""


def read_by(encoder: Encoder, splits: Splits) -> Reading:
    """Of `MEASURED` training texts at most, evenly drawn."""
    step = max(1, len(splits.train) // MEASURED)
    texts = [text_ids(encoder.tokenizer, _read(one))[0] for one in splits.train[::step]]
    lengths = sorted(len(ids) + 8 for ids in texts)
    unknown = sum(ids.count(encoder.tokenizer.unk_token_id) for ids in texts) / max(1, sum(map(len, texts)))
    return Reading(lengths[min(len(lengths) - 1, int(len(lengths) * 0.995))], unknown)


def _unread(reading: Reading, name: str, method: str) -> list[str]:
    """A note where the encoder does not know much of what the texts are written in."""
    if reading.unknown < UNREAD:
        return []
    instead = ", so runs of characters are counted in its place;" if method == "ngrams" else ";"
    told = f"{name} does not know {reading.unknown:.0%} of the tokens of these texts{instead}"
    return [f"{told} name an encoder of their language (--model)"]


def _read(one: Any) -> str:
    match one:
        case Asked(question=question, context=context):
            return f"{question} {context}"
        case Classified(text=text, pair=pair):
            return text if pair is None else f"{text} {pair}"
        case Similar(text=text, other=other):
            return max(text, other, key=len)
        case _:
            return shown(one)


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
