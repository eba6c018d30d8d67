"""The language model's way of training: examples become prompt and target, and the tuner's own trainer does the rest.

The loss is on what the model chooses to say: the target, without what the grammar forces. The epoch with the lowest
validation loss is kept; the figures before and after are those of the bare base and of the adapter, on the test.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.project import Project
from agent.config.settings import TUNING_METHODS
from agent.errors import AdapterError, DatasetError
from agent.llm.prompt.render import Message
from agent.llm.weights.load import ModelFolder, load_tokenizer, read_context, resolve_model
from agent.registry.artifact import TASK, Manifest, verify
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, in_own_team
from tuner.data.examples import choices
from tuner.evaluation.statistics import Interval
from tuner.pipeline.candidate import check_lives, fresh_model
from tuner.settings import RATES, TrainSettings
from tuner.tasks import text_metrics
from tuner.tasks.artifact import VERSION, Sealed, publish, read_task
from tuner.tasks.data.records import WRITTEN, TaskName
from tuner.tasks.data.splits import Splits, dataset_hash
from tuner.tasks.fit.warm_start import Start, continued
from tuner.tasks.head.training import TaskProgress, TrainedTask
from tuner.tasks.language.generation import Budget, Generator, budget_of, prompt_ids
from tuner.tasks.language.prompts import Asking, asking_of, make_asking
from tuner.tasks.metrics import Scores
from tuner.tasks.predictor import Say, TaskPredictor, TaskResult
from tuner.tasks.report import Outcome, card, write_figures, write_page
from tuner.training.results import Progress, Trained
from tuner.training.trainer import train
from tuner.tree.packing import Example

if TYPE_CHECKING:
    from agent.llm.chat_model import LocalModel
    from agent.llm.prompt.render import Renderer

GENERATION = "generation"
"""In `task.json` under `way`: a language model's adapter, and no head."""
CONTINUED = ("method", "r", "alpha", "frozen_layers", "virtual_tokens")
"""Settings by which the tensors of a training fit those of the one it goes on from."""
MOST_WATCHED = 200
"""Validation examples, drawn by seed, that every epoch is watched with."""
MOST_TOKENS = 2048
"""Of an example, prompt and target, where nothing else is said."""
WHAT = {"full": "A copy of all weights", "prompt": "Virtual tokens", "prefix": "Virtual tokens"}
"""What comes of a method, where that is no LoRA adapter."""
WATCHED = "loss"
"""The figure by which the epoch is chosen."""


@dataclass(frozen=True)
class GenerationSettings:
    """How a language model's adapter is trained; what is left out is chosen by method and amount of data."""

    method: str = "lora"
    """One of `agent.config.settings.TUNING_METHODS`; see `tuner.methods.methods`."""
    epochs: int = 4
    min_steps: int = 48
    """With little data more epochs are trained than `epochs`, until there are so many; 1 where they were named."""
    learning_rate: float = RATES["lora"]
    batch: int = 150
    """Target tokens of a step, at least."""
    max_tokens: int = MOST_TOKENS
    """Of an example; longer ones are left out."""
    patience: int = 2
    frozen_layers: int = 0
    """Layers from the bottom that are left as they are."""
    adversarial: str = "none"
    precision: str = "auto"
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    virtual_tokens: int = 20
    """With the methods "prompt" and "prefix": how many are put before every text."""
    rate_ratio: float = 16.0
    """With the method "lora+": the rate of the second matrix (B) over that of the first."""
    seed: int = 0


def choose(given: Mapping[str, Any], layers: int, context: int) -> GenerationSettings:
    """Settings, `given` before what is chosen. Raises DatasetError for what a language model is not trained with."""
    known = {one.name for one in fields(GenerationSettings)}
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    unknown = sorted(said.keys() - known)
    if unknown:
        raise DatasetError(
            f"a language model is not trained with {unknown[0]!r}; leave it out, or name an encoder with --model"
        )
    method = said.get("method", "lora")
    if method not in TUNING_METHODS:
        raise DatasetError(
            f"a language model is not trained with method {method!r}; expected one of {', '.join(TUNING_METHODS)}"
        )
    chosen = replace(GenerationSettings(learning_rate=RATES[method], max_tokens=min(MOST_TOKENS, context)), **said)
    if "epochs" in said and "min_steps" not in said:
        chosen = replace(chosen, min_steps=1)
    if not 0 <= chosen.frozen_layers < layers:
        raise DatasetError(
            f"{chosen.frozen_layers} layers are to be frozen and the model has {layers}; leave one at least"
        )
    if chosen.frozen_layers and method in ("prompt", "prefix"):
        raise DatasetError(f"method {method} leaves all layers as they are; leave out --freeze")
    for name in ("epochs", "batch", "patience", "r", "virtual_tokens"):
        if getattr(chosen, name) < 1:
            raise DatasetError(f"{name} is {getattr(chosen, name)}; expected 1 or more")
    if not 16 <= chosen.max_tokens <= context:
        raise DatasetError(f"max_tokens is {chosen.max_tokens}; this model reads 16 to {context}")
    return chosen


def fit(
    name: TaskName,
    splits: Splits,
    model_name: str | None,
    folder: Path,
    tuning: str,
    project: Project,
    into: str,
    say: Say,
    tell: Callable[[TaskProgress], None],
    given: Mapping[str, Any],
    *,
    kept: Mapping[str, Any] | None = None,
    start: Start | None = None,
) -> TaskResult:
    """Train on `splits.train`, watch with `splits.validation`, measure with `splits.test`, and save.

    `kept` goes into `task.json`; `start` is an earlier training of the same base to go on from.
    """
    if name in WRITTEN:
        text_metrics.require()
    base = resolve_model(project.named(model_name or project.settings.model.base), project.home.models, progress=say)
    renderer, context = _renderer(base), read_context(base)
    if start is not None:
        given = _going_on(start, base, given)
    settings = choose(given, _layers(base), context)
    task = continued(asking_of(name, splits.train, into=into), start, partial(_asked_again, start))
    rows, notes = examples_of(task, splits.train, renderer, settings.max_tokens, "training")
    watched = random.Random(settings.seed).sample(splits.validation, min(MOST_WATCHED, len(splits.validation)))
    held_out, more = examples_of(task, watched, renderer, settings.max_tokens, "validation")
    for note in (*notes, *more):
        say(f"noticed: {note}")
    say(f"{name} on {base.name}: {settings.method}, {len(rows)} examples")
    with tempfile.TemporaryDirectory() as scratch:
        adapter, metrics = Path(scratch) / "adapter", Path(scratch) / "metrics.jsonl"
        trained = in_own_team(
            lambda: train(
                fresh_model(project, base, "float32"),
                rows,
                held_out,
                _train_settings(settings, _layers(base)),
                folder=adapter,
                metrics=metrics,
                start_from=None if start is None else start.folder,
                on_progress=_told(tell, len(held_out)),
                say=say,
            )
        )
        in_own_team(lambda: check_lives(fresh_model(project, base), adapter, rows[0]))
        give_back_memory()
        told = _trained_task(trained, metrics)
        budget = budget_of(task, splits.train, renderer, context)
        served = load_served(base, project)
        say(f"measuring with {len(splits.test)} examples, before and after")
        begun = served if start is None else served.on_adapter(start.manifest.id, folder=start.folder)
        before = Generator(begun, task, budget, say=say)
        after = Generator(served.on_adapter(tuning, folder=adapter), task, budget, say=say)
        scores = task.measure(splits.test, before.predict(splits.test))
        predictions = after.predict(splits.test)
        outcome = Outcome(
            name,
            base.name,
            {part: len(getattr(splits, part)) for part in ("train", "validation", "test")},
            (*splits.notes, *notes, *more),
            settings,
            told,
            scores,
            task.measure(splits.test, predictions),
            splits.test,
            predictions,
            what=f"{WHAT.get(settings.method, 'A LoRA adapter')} for the task",
            watched=WATCHED,
        )
        report = {"report.html": write_page(outcome).encode(), "metrics.json": write_figures(outcome).encode()}
        parent = None if start is None else start.manifest.id
        sealed = Sealed(base, dataset_hash(splits), tuning, timestamp(), parent=parent, told=kept or {})
        publish(folder, sealed, lambda id: card(id, outcome), report, _writer(adapter, task, budget, sealed, settings))
    predictor = TaskPredictor(after, folder)
    return TaskResult(predictor, folder, outcome.before, outcome.after, told, tuple(outcome.notes))


def _asked_again(start: Start | None, name: str, labels: Sequence[str], options: Mapping[str, Any]) -> Asking:
    """With the earlier training's options where none are said, such as what it translated into."""
    before = {} if start is None else start.told["options"]
    return make_asking(name, labels, {one: value or before.get(one) for one, value in options.items()})


def _going_on(start: Start, base: ModelFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and of the rest what must be as it was. Raises AdapterError where nothing can go on."""
    if start.told.get("way") != GENERATION:
        raise AdapterError(
            f"{start.folder} is a head on the encoder {start.manifest.base}, and {base.name} is a language model; "
            "leave out --model, or train without --from"
        )
    start.check_base(base)
    said = {name: value for name, value in given.items() if value is not None}
    earlier = {name: start.told["settings"][name] for name in CONTINUED if name in start.told["settings"]}
    other = [name for name in earlier if name in said and said[name] != earlier[name]]
    if other:
        raise AdapterError(
            f"{start.folder} was trained with {other[0]} {earlier[other[0]]!r}, and is not gone on from with "
            f"{said[other[0]]!r}; leave it out, or train without --from"
        )
    return {**earlier, **said}


def is_generation(folder: Path) -> bool:
    """Whether a task's folder is a language model's. Raises AdapterError where it is no task's."""
    return bool(read_task(folder).get("way") == GENERATION)


def open_generation(
    folder: Path, project: Project, *, beside: Generator | None = None, say: Say = lambda text: None
) -> Generator:
    """The task of a folder, verified, on the base it was trained on; `beside` lends its base.

    Raises AdapterError where the folder is not whole, or the base is another by now or than that of `beside`.
    """
    manifest = verify(folder)
    told = read_task(folder)
    model = beside.model if beside is not None else load_served(_base_of(folder, manifest, project), project)
    if model.revision != manifest.base_revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base} of revision {manifest.base_revision[:12]}, and what is loaded is "
            f"{model.base} of {model.revision[:12]}; open it by itself"
        )
    adapted = model.on_adapter(manifest.id, folder=folder, tensors_sha256=manifest.tensors_sha256)
    task = make_asking(told["task"], told["labels"], told["options"])
    return Generator(adapted, task, Budget(**told["budget"]), say=say)


def load_served(base: ModelFolder, project: Project) -> LocalModel:
    """The base as the project serves it."""
    from agent.llm.chat_model import LocalModel

    chosen = project.settings.model
    return LocalModel.load(
        str(base.folder) if base.source == "folder" else base.name,
        project.home.models,
        device=chosen.device,
        dtype=chosen.dtype,
        threads=chosen.threads,
        max_sessions=chosen.max_sessions,
        cache_tokens=chosen.cache_tokens,
    )


def examples_of(
    task: Asking, examples: Sequence[Any], renderer: Renderer, max_tokens: int, part: str
) -> tuple[list[Example], list[str]]:
    """Rows to train on, and notes on what was left out. Raises DatasetError where nothing is left."""
    import llguidance.hf

    tokenizer = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)
    made: list[Example] = []
    long = unsaid = 0
    for one in examples:
        row = _row(task, one, renderer, tokenizer, str(len(made)))
        if row is None:
            unsaid += 1
        elif len(row.ids) > max_tokens:
            long += 1
        else:
            made.append(row)
    notes = []
    if long:
        notes.append(f"{long} {part} examples of more than {max_tokens} tokens are left out (--max-tokens)")
    if unsaid:
        notes.append(f"{unsaid} {part} examples are left out, for what they want cannot be copied from their text")
    if not made:
        raise DatasetError(f"none of {len(examples)} {part} examples is left; {'; '.join(notes) or 'there are none'}")
    return made, notes


def _row(task: Asking, one: Any, renderer: Renderer, tokenizer: Any, name: str) -> Example | None:
    """Prompt and target; None where the grammar does not let the model say what is wanted."""
    prompt = prompt_ids(task, task.conversation(one), (), renderer)
    said = renderer.encode(task.wanted(one))
    grammar = task.grammar(one)
    chosen = [True] * (len(said) + 1) if grammar is None else choices(tokenizer, grammar, said)
    if len(chosen) <= len(said):
        return None
    # The end of turn is what a message of the assistant closes with: see `Renderer.message`.
    target = renderer.message(Message("assistant", task.wanted(one)), target=True)
    head = len(renderer.header("assistant"))
    ids = (*prompt, *target.ids[head : head + len(said) + 1])
    if not any(chosen):
        chosen = [True] * len(chosen)
    return Example(ids, (*[False] * len(prompt), *chosen), name, name)


def _train_settings(settings: GenerationSettings, layers: int) -> TrainSettings:
    adversarial: Any = settings.adversarial
    return TrainSettings(
        method=settings.method,
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        virtual_tokens=settings.virtual_tokens,
        rate_ratio=settings.rate_ratio,
        top_layers=layers - settings.frozen_layers if settings.frozen_layers else 0,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        min_steps=settings.min_steps,
        batch_targets=settings.batch,
        adversarial=adversarial,
        patience=settings.patience,
        precision=settings.precision,
        seed=settings.seed,
    )


def _told(tell: Callable[[TaskProgress], None], held_out: int) -> Callable[[Progress], None]:
    """The trainer's progress as a task's: behind a step that was told already an epoch ends."""
    last = 0

    def hear(progress: Progress) -> None:
        nonlocal last
        loss = progress.held_out_loss
        ends = progress.step == last and loss is not None
        watched = Interval(held_out, loss, loss, loss) if ends and loss is not None else None
        last = progress.step
        scores = None if watched is None else Scores(WATCHED, {WATCHED: watched})
        tell(TaskProgress(progress.step, progress.steps, progress.epoch, progress.loss, scores))

    return hear


def _trained_task(trained: Trained, metrics: Path) -> TrainedTask:
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return TrainedTask(
        steps=trained.steps,
        epochs=trained.epochs,
        best_epoch=trained.best_epoch,
        loss=trained.loss,
        validation=float(trained.held_out_loss or 0.0),
        parameters=trained.parameters,
        seconds=trained.seconds,
        peak_bytes=trained.peak_bytes,
        curve=tuple((row["step"], row["loss"]) for row in rows if "loss" in row),
        validation_curve=tuple((row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row),
    )


def _writer(
    adapter: Path, task: Asking, budget: Budget, sealed: Sealed, settings: GenerationSettings
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for one in adapter.iterdir():
            (folder / one.name).write_bytes(one.read_bytes())
        told = {
            "version": VERSION,
            "way": GENERATION,
            "task": task.name,
            "labels": list(task.labels),
            "options": task.options(),
            "base": sealed.base.name,
            "revision": sealed.base.revision,
            "budget": asdict(budget),
            "settings": asdict(settings),
            **sealed.told,
        }
        (folder / TASK).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return write


def _base_of(folder: Path, manifest: Manifest, project: Project) -> ModelFolder:
    base = resolve_model(project.named(manifest.base), project.home.models)
    if base.revision != manifest.base_revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base} of revision {manifest.base_revision[:12]}, and what is there has "
            f"{base.revision[:12]}; train it again, or put the old base back"
        )
    return base


def _renderer(base: ModelFolder) -> Renderer:
    from agent.llm.prompt.render import Renderer

    return Renderer(load_tokenizer(base))


def _layers(base: ModelFolder) -> int:
    config = json.loads((base.folder / "config.json").read_text("utf-8"))
    return int(config.get("text_config", config).get("num_hidden_layers", 1))
