"""Trains a task with a head on an encoder: from examples to a published folder with figures, report and model card."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.llm.weights.load import encoder_weights
from agent.llm.weights.precision import faster_precision
from tuner.tasks.artifact import save, untrained
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.records import AnswerExample, ClassifyExample, EmbedExample, TaskName, display_text
from tuner.tasks.data.splits import Splits
from tuner.tasks.data.typos import add_typos
from tuner.tasks.fit.request import FitRequest, report_files
from tuner.tasks.fit.warm_start import WarmStart, continue_task, load_earlier_weights
from tuner.tasks.head.answer import AnswerTask
from tuner.tasks.head.label_names import label_name_windows
from tuner.tasks.head.model import LoadedEncoder, TaskModel, load_encoder, score_windows
from tuner.tasks.head.ngrams import NgramModel
from tuner.tasks.head.tasks import HeadTask, learn_task, make_task
from tuner.tasks.head.token_alignment import text_ids
from tuner.tasks.head.training import TaskProgress, TrainedTask, train_model
from tuner.tasks.metrics import TaskScores
from tuner.tasks.predictor import TaskPredictor, TaskResult, predict_with
from tuner.tasks.report import TaskOutcome, card
from tuner.tasks.settings import TaskSettings, choose

if TYPE_CHECKING:
    from agent.llm.weights.load import ModelFolder
    from tuner.tasks.head.windows import Window

MAX_MEASURED = 2000
"""Training texts by which the length of windows is chosen, and whether the encoder can read them."""
LARGE = 10_000
"""Training examples from which a message explains the wait before the first step."""
UNREADABLE = 0.2
"""Share of unknown tokens from which a classification uses n-grams instead of the encoder, if no method is named."""
PARTLY_UNREADABLE = 0.05
"""Share of unknown tokens from which a note reports it."""
SPECIAL_TOKENS = 8
"""Special tokens and signs of a window, at most."""


def train_head(request: FitRequest) -> TaskResult:
    """Train a head, and by most methods its encoder, measure it on the test before and after, and save it.

    Raises:
        DatasetError: The examples do not suit the task or the settings.
        WeightsError: The encoder cannot be loaded.
        LivenessError: The training does nothing, or diverges.
    """
    splits, say = request.splits, request.say
    base = _find_encoder(request)
    encoder = load_encoder(base, device=_resolve_device(request.project.settings.model.device))
    tokens = measure_tokens(encoder, splits)
    task, settings = plan_training(
        request.task, splits, encoder, tokens, request.columns, request.settings, request.start
    )
    if settings.precision == "auto":
        settings = replace(settings, precision=faster_precision(str(encoder.model.device)))
    model = _make_model(request, base, encoder, task, settings)
    notes = (*splits.notes, *_unknown_token_notes(tokens, base.name, settings.method))
    for note in notes[len(splits.notes) :]:
        say(f"noticed: {note}")
    if len(splits.train) > LARGE:
        say("before the first step the test is measured and a head is fitted, which takes a while without progress")
    before = model.task.measure(splits.test, predict_with(model, splits.test))
    if isinstance(model, NgramModel):
        trained = model.fit(splits.train, splits.validation, request.on_progress)
    else:
        trained = _train(model, splits, _name_windows(model, splits, say), request.on_progress)
    predictions = predict_with(model, splits.test)
    after = model.task.measure(splits.test, predictions)
    outcome = TaskOutcome(
        request.task,
        base.name,
        request.counts,
        splits.notes,
        settings,
        trained,
        before,
        after,
        splits.test,
        predictions,
        what="Vectors for the task" if request.task == "embed" else "A head for the task",
    )
    has_pairs = any(getattr(example, "pair", None) is not None for example in splits.train)
    provenance = request.provenance(base, {"pairs": has_pairs, **request.metadata})
    save(model, request.folder, provenance, lambda id: card(id, outcome), report_files(outcome))
    return TaskResult(TaskPredictor(model, request.folder), request.folder, before, after, trained, notes)


def plan_training(
    name: TaskName,
    splits: Splits,
    encoder: LoadedEncoder,
    tokens: TokenStatistics,
    columns: Columns,
    given: Mapping[str, Any],
    start: WarmStart | None = None,
) -> tuple[HeadTask, TaskSettings]:
    """Return the untrained task and the settings that `train_head` uses for these examples.

    Texts that the encoder cannot read are classified by n-grams, unless an earlier training is continued.

    Args:
        given: Settings that the user gave.

    Raises:
        DatasetError: The examples do not suit the task or the settings.
    """
    task = continue_task(_learn_task(name, splits, encoder, columns), start, make_task)
    if start is not None:
        given = start.settings(given, task)
    elif name == "classify" and given.get("method") is None and tokens.unknown >= UNREADABLE:
        given = {**given, "method": "ngrams"}
    return task, choose(name, len(splits.train), tokens.longest, encoder.sizes, given)


@dataclass(frozen=True)
class TokenStatistics:
    """How an encoder's tokenizer reads training texts."""

    longest: int
    """Tokens of the longest text but for 0.5 %, special tokens included."""
    unknown: float
    """Share of unknown tokens."""


def measure_tokens(encoder: LoadedEncoder, splits: Splits) -> TokenStatistics:
    """Tokenize `MAX_MEASURED` training texts at most, evenly drawn, and return their statistics."""
    step = max(1, len(splits.train) // MAX_MEASURED)
    texts = [text_ids(encoder.tokenizer, _window_text(example))[0] for example in splits.train[::step]]
    lengths = sorted(len(ids) + SPECIAL_TOKENS for ids in texts)
    unknown = sum(ids.count(encoder.tokenizer.unk_token_id) for ids in texts) / max(1, sum(map(len, texts)))
    return TokenStatistics(lengths[min(len(lengths) - 1, int(len(lengths) * 0.995))], unknown)


def _find_encoder(request: FitRequest) -> ModelFolder:
    project = request.project
    name = request.model or project.settings.model.encoder
    return encoder_weights(project.named(name), project.home.models, progress=request.say)


def _make_model(
    request: FitRequest, base: ModelFolder, encoder: LoadedEncoder, task: HeadTask, settings: TaskSettings
) -> TaskModel | NgramModel:
    """The model to train, with the tensors of the earlier training where one is continued."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = untrained(encoder, task, settings)
    start, examples = request.start, request.splits.train
    if start is not None:
        request.say(f"continues {start.manifest.id}{load_earlier_weights(model, start, base, examples)}")
    request.say(
        f"{request.task} on {base.name}: {settings.method}, {settings.epochs} epochs at most, {len(examples)} examples"
    )
    return model


def _name_windows(model: TaskModel, splits: Splits, say: Callable[[str], None]) -> list[Window]:
    """The windows of the labels' names, where they are learnt as texts."""
    if not model.settings.label_names:
        return []
    names, accuracy = label_name_windows(model, splits.train)
    if names:
        say(f"the names of {len(names)} labels are learnt as texts; alone they classify {accuracy:.0%} of the texts")
    return names


def _train(
    model: TaskModel, splits: Splits, names: list[Window], on_progress: Callable[[TaskProgress], None]
) -> TrainedTask:
    task, settings = model.task, model.settings
    windows = task.windows(splits.train, model.tokenizer, settings.max_tokens)
    validation = task.windows(splits.validation, model.tokenizer, settings.max_tokens)
    if isinstance(task, AnswerTask):
        task.fit_odds(windows)

    def check(scores: list[Any]) -> TaskScores:
        if isinstance(task, AnswerTask):
            task.fit_margin(splits.validation, validation, scores)
        return task.measure(splits.validation, task.predict(splits.validation, validation, scores), resamples=0)

    def mistyped_windows(number: int) -> list[Window]:
        chance = random.Random(f"{settings.seed} typos {number}")
        mistyped = [add_typos(example, chance, settings.adversarial_size) for example in splits.train]
        return task.windows(mistyped, model.tokenizer, settings.max_tokens)

    trained = train_model(
        model,
        windows,
        check,
        validation,
        class_weights=task.class_weights(windows) if settings.class_weights else None,
        mistyped=mistyped_windows if settings.adversarial == "typos" else None,
        names=names,
        on_progress=on_progress,
    )
    if isinstance(task, AnswerTask) and task.none:
        # Later epochs than the one that is kept have changed the margin.
        task.fit_margin(splits.validation, validation, score_windows(model, validation))
    return trained


def _learn_task(name: TaskName, splits: Splits, encoder: LoadedEncoder, columns: Columns) -> HeadTask:
    options: dict[str, Any] = {}
    if name in ("classify", "embed"):
        options["pooling"] = encoder.pooling
    if name == "classify" and (columns.multi_label or (columns.label and "," in columns.label)):
        options["multi"] = True
    return learn_task(name, splits.train, **options)


def _unknown_token_notes(tokens: TokenStatistics, name: str, method: str) -> list[str]:
    """A note where the encoder does not know many tokens of the texts."""
    if tokens.unknown < PARTLY_UNREADABLE:
        return []
    instead = ", so character n-grams are used instead;" if method == "ngrams" else ";"
    return [
        f"{name} does not know {tokens.unknown:.0%} of the tokens of these texts{instead} name an encoder of their "
        "language (--model)"
    ]


def _window_text(example: Any) -> str:
    """The text of an example's longest window."""
    match example:
        case AnswerExample(question=question, context=context):
            return f"{question} {context}"
        case ClassifyExample(text=text, pair=pair):
            return text if pair is None else f"{text} {pair}"
        case EmbedExample(text=text, other=other):
            return max(text, other, key=len)
        case _:
            return display_text(example)


def _resolve_device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
