"""Trains a language model's adapter for a task: examples become prompts and outputs for the tuner's own trainer.

The loss is on the tokens of the output that the grammar does not force. The epoch with the lowest validation loss is
kept; the figures before and after are those of the bare base and of the adapter, on the test.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import AdapterError, DatasetError
from agent.llm.prompt.render import Message
from agent.llm.weights.load import ModelFolder, load_tokenizer, read_context, resolve_model
from agent.util.threads import give_back_memory, run_in_thread
from tuner.data.examples import mark_choices
from tuner.evaluation.statistics import Interval
from tuner.pipeline.candidate import check_lives, fresh_model
from tuner.tasks import text_metrics
from tuner.tasks.artifact import publish
from tuner.tasks.data.records import WRITTEN
from tuner.tasks.fit.generation_settings import GenerationSettings, choose, trainer_settings
from tuner.tasks.fit.language_folder import GENERATION, folder_writer, load_served
from tuner.tasks.fit.request import FitRequest, report_files
from tuner.tasks.fit.warm_start import WarmStart, continue_task
from tuner.tasks.head.training import TaskProgress, TrainedTask
from tuner.tasks.language.generation import Generator, choose_budget, prompt_ids
from tuner.tasks.language.prompts import TaskPrompt, learn_prompt, make_prompt
from tuner.tasks.metrics import TaskScores
from tuner.tasks.predictor import TaskPredictor, TaskResult
from tuner.tasks.report import TaskOutcome, card
from tuner.training.results import Progress, Trained
from tuner.training.trainer import train
from tuner.tree.packing import Example

if TYPE_CHECKING:
    from agent.llm.prompt.render import Renderer

INHERITED = ("method", "r", "alpha", "frozen_layers", "virtual_tokens")
"""Settings that a training shares with the one it continues, so that its tensors fit."""
MAX_VALIDATION = 200
"""Validation examples, drawn by seed, on which every epoch is measured."""
PRODUCTS = {"full": "A copy of all weights", "prompt": "Virtual tokens", "prefix": "Virtual tokens"}
"""What a method trains, where that is no LoRA adapter."""
VALIDATION_FIGURE = "loss"
"""The figure by which the epoch is chosen."""


def train_language_model(request: FitRequest) -> TaskResult:
    """Train an adapter for a task, measure the base and the adapter on the test, and save it.

    Raises:
        DatasetError: The examples do not suit the task or the settings.
        AdapterError: The earlier training cannot be continued.
        WeightsError: The language model cannot be loaded.
        LivenessError: The adapter changes no output, or the training diverges.
    """
    if request.task in WRITTEN:
        text_metrics.require()
    project = request.project
    name = request.model or project.settings.model.base
    base = resolve_model(project.named(name), project.home.models, progress=request.say)
    settings = choose(_inherit_settings(request.start, base, request.settings), count_layers(base), read_context(base))
    prepared = _prepare(request, base, settings)
    with tempfile.TemporaryDirectory() as scratch:
        adapter, metrics = Path(scratch) / "adapter", Path(scratch) / "metrics.jsonl"
        figures = _train_adapter(request, base, settings, prepared, adapter, metrics)
        return _measure_and_publish(request, base, settings, prepared, adapter, _summarise(figures, metrics))


def training_rows(
    task: TaskPrompt, examples: Sequence[Any], renderer: Renderer, max_tokens: int, part: str
) -> tuple[list[Example], list[str]]:
    """Return the prompts and outputs to train on, and notes on examples that are left out.

    Args:
        max_tokens: Longer examples are left out.
        part: Name of the split, for the notes.

    Raises:
        DatasetError: No example is left.
    """
    import llguidance.hf

    tokenizer = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)
    rows: list[Example] = []
    too_long = not_allowed = 0
    for example in examples:
        row = _training_row(task, example, renderer, tokenizer, str(len(rows)))
        if row is None:
            not_allowed += 1
        elif len(row.ids) > max_tokens:
            too_long += 1
        else:
            rows.append(row)
    notes = []
    if too_long:
        notes.append(f"{too_long} {part} examples of more than {max_tokens} tokens are left out (--max-tokens)")
    if not_allowed:
        notes.append(f"{not_allowed} {part} examples are left out, for their output cannot be copied from their text")
    if not rows:
        raise DatasetError(f"none of {len(examples)} {part} examples is left; {'; '.join(notes) or 'there are none'}")
    return rows, notes


def count_layers(base: ModelFolder) -> int:
    """Return the number of a model's layers, from its `config.json`."""
    config = json.loads((base.folder / "config.json").read_text("utf-8"))
    return int(config.get("text_config", config).get("num_hidden_layers", 1))


@dataclass(frozen=True)
class _PreparedTask:
    """The prompt of a task, and its examples as rows for the trainer."""

    task: TaskPrompt
    renderer: Renderer
    rows: list[Example]
    held_out: list[Example]
    notes: list[str]


def _prepare(request: FitRequest, base: ModelFolder, settings: GenerationSettings) -> _PreparedTask:
    from agent.llm.prompt.render import Renderer

    splits, renderer = request.splits, Renderer(load_tokenizer(base))
    learnt = learn_prompt(request.task, splits.train, into=request.into)
    task = continue_task(learnt, request.start, partial(_make_continued, request.start))
    rows, notes = training_rows(task, splits.train, renderer, settings.max_tokens, "training")
    count = min(MAX_VALIDATION, len(splits.validation))
    validation = random.Random(settings.seed).sample(splits.validation, count)
    held_out, more = training_rows(task, validation, renderer, settings.max_tokens, "validation")
    for note in (*notes, *more):
        request.say(f"noticed: {note}")
    request.say(f"{request.task} on {base.name}: {settings.method}, {len(rows)} examples")
    return _PreparedTask(task, renderer, rows, held_out, [*notes, *more])


def _train_adapter(
    request: FitRequest,
    base: ModelFolder,
    settings: GenerationSettings,
    prepared: _PreparedTask,
    adapter: Path,
    metrics: Path,
) -> Trained:
    """Train into the folder `adapter`, and check that what was saved acts."""
    figures = run_in_thread(
        lambda: train(
            fresh_model(request.project, base, "float32"),
            prepared.rows,
            prepared.held_out,
            trainer_settings(settings, count_layers(base)),
            folder=adapter,
            metrics=metrics,
            start_from=None if request.start is None else request.start.folder,
            on_progress=_report_as_task(request.on_progress, len(prepared.held_out)),
            say=request.say,
        )
    )
    run_in_thread(lambda: check_lives(fresh_model(request.project, base), adapter, prepared.rows[0]))
    give_back_memory()
    return figures


def _measure_and_publish(
    request: FitRequest,
    base: ModelFolder,
    settings: GenerationSettings,
    prepared: _PreparedTask,
    adapter: Path,
    trained: TrainedTask,
) -> TaskResult:
    """Measure the model before and after on the test, and save the adapter with its report."""
    task, splits, start, say = prepared.task, request.splits, request.start, request.say
    budget = choose_budget(task, splits.train, prepared.renderer, read_context(base))
    served = load_served(base, request.project)
    say(f"measuring with {len(splits.test)} examples, before and after")
    earlier = served if start is None else served.on_adapter(start.manifest.id, folder=start.folder)
    before = Generator(earlier, task, budget, say=say)
    after = Generator(served.on_adapter(request.name, folder=adapter), task, budget, say=say)
    scores_before = task.measure(splits.test, before.predict(splits.test))
    predictions = after.predict(splits.test)
    outcome = TaskOutcome(
        request.task,
        base.name,
        request.counts,
        (*splits.notes, *prepared.notes),
        settings,
        trained,
        scores_before,
        task.measure(splits.test, predictions),
        splits.test,
        predictions,
        what=f"{PRODUCTS.get(settings.method, 'A LoRA adapter')} for the task",
        watched=VALIDATION_FIGURE,
    )
    provenance = request.provenance(base, request.metadata)
    write = folder_writer(adapter, task, budget, provenance, settings)
    publish(request.folder, provenance, lambda id: card(id, outcome), report_files(outcome), write)
    predictor = TaskPredictor(after, request.folder)
    return TaskResult(predictor, request.folder, outcome.before, outcome.after, trained, tuple(outcome.notes))


def _make_continued(
    start: WarmStart | None, name: str, labels: Sequence[str], options: Mapping[str, Any]
) -> TaskPrompt:
    """The prompt with the earlier training's options where there are none, such as the language to translate into."""
    earlier = {} if start is None else start.metadata["options"]
    return make_prompt(name, labels, {option: value or earlier.get(option) for option, value in options.items()})


def _inherit_settings(start: WarmStart | None, base: ModelFolder, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that were given, with those that a continued training must keep.

    Raises AdapterError where the earlier training cannot be continued with them.
    """
    if start is None:
        return given
    if start.metadata.get("way") != GENERATION:
        raise AdapterError(
            f"{start.folder} is a head on the encoder {start.manifest.base}, and {base.name} is a language model; "
            "leave out --model, or train without --from"
        )
    start.check_base(base)
    explicit = {name: value for name, value in given.items() if value is not None}
    earlier = {name: start.metadata["settings"][name] for name in INHERITED if name in start.metadata["settings"]}
    changed = [name for name in earlier if name in explicit and explicit[name] != earlier[name]]
    if changed:
        raise AdapterError(
            f"{start.folder} was trained with {changed[0]} {earlier[changed[0]]!r}, and is not gone on from with "
            f"{explicit[changed[0]]!r}; leave it out, or train without --from"
        )
    return {**earlier, **explicit}


def _training_row(task: TaskPrompt, example: Any, renderer: Renderer, tokenizer: Any, name: str) -> Example | None:
    """The prompt and output of an example; None where the grammar does not allow the output."""
    prompt = prompt_ids(task, task.messages(example), (), renderer)
    output = renderer.encode(task.target(example))
    grammar = task.grammar(example)
    free = [True] * (len(output) + 1) if grammar is None else mark_choices(tokenizer, grammar, output)
    if len(free) <= len(output):
        return None
    # The end of turn is how a message of the assistant closes: see `Renderer.message`.
    message = renderer.message(Message("assistant", task.target(example)), target=True)
    head = len(renderer.header("assistant"))
    ids = (*prompt, *message.ids[head : head + len(output) + 1])
    if not any(free):
        free = [True] * len(free)
    return Example(ids, (*[False] * len(prompt), *free), name, name)


def _report_as_task(on_progress: Callable[[TaskProgress], None], held_out: int) -> Callable[[Progress], None]:
    """Pass the trainer's progress on as a task's; a second report of a step is the end of an epoch."""
    last = 0

    def report(progress: Progress) -> None:
        nonlocal last
        loss = progress.held_out_loss
        scores = None
        if progress.step == last and loss is not None:
            scores = TaskScores(VALIDATION_FIGURE, {VALIDATION_FIGURE: Interval(held_out, loss, loss, loss)})
        last = progress.step
        on_progress(TaskProgress(progress.step, progress.steps, progress.epoch, progress.loss, scores))

    return report


def _summarise(figures: Trained, metrics: Path) -> TrainedTask:
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return TrainedTask(
        steps=figures.steps,
        epochs=figures.epochs,
        best_epoch=figures.best_epoch,
        loss=figures.loss,
        validation=float(figures.held_out_loss or 0.0),
        parameters=figures.parameters,
        seconds=figures.seconds,
        peak_bytes=figures.peak_bytes,
        curve=tuple((row["step"], row["loss"]) for row in rows if "loss" in row),
        validation_curve=tuple((row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row),
    )
