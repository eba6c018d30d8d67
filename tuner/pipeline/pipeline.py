"""From feedback to a candidate: curate, dataset, train, check that it lives, take it into the registry.

Each stage leaves its result on disk under a hash or an id, and none can do nothing in silence: see `check_lives`.
Training runs in this process, on weights of its own; a service starts it as another process. Whether the candidate
is served is asked in `promotion`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from agent.config.project import Project
from agent.config.settings import TuningSettings
from agent.errors import AdapterError, DatasetError, TuningError
from agent.llm.prompt.render import Frame, Renderer
from agent.llm.weights import load as weights
from agent.registry.artifact import verify
from agent.registry.registry import Adapter
from agent.runtime import Runtime
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, in_own_team
from tuner.data.curate import Curated, TrainingRow, curate
from tuner.data.dataset import LEAST_HELD_OUT, Dataset, read_dataset, told_held_back, write_dataset
from tuner.data.examples import prepare
from tuner.data.replay import replayed
from tuner.data.retrieval_augment import draw_contexts
from tuner.pipeline.candidate import Origin, check_lives, fresh_model, take_in
from tuner.pipeline.run_folder import Begun, begin, checkpoints, finish, one_at_a_time, unfinished
from tuner.reports.gate_report import loss_plot
from tuner.reports.model_card import model_card
from tuner.reports.tuning_report import write_tuning_report
from tuner.settings import RATES, TrainSettings
from tuner.training import distributed as parallel
from tuner.training.hyperparameter_search import Found, require_optuna, search
from tuner.training.results import Progress, Say, Trained
from tuner.training.trainer import train
from tuner.tree.packing import Example


@dataclass(frozen=True)
class Tuning:
    """What one tuning made."""

    adapter: Adapter
    dataset: Dataset
    trained: Trained
    folder: Path
    """`tunings/<id>`: tuning.json, metrics.jsonl, loss.png, result.json, report.html; until it ends checkpoints."""


def tune(
    runtime: Runtime,
    *,
    resume: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Say = lambda text: None,
) -> Tuning:
    """Train a candidate from all feedback in the store, and put it into the registry as trained.

    `resume` goes on with an unfinished tuning, named by its id, or "" for the newest. Waits while another process
    tunes in the same home. Interrupted, it leaves a checkpoint and says how to go on.
    """
    with one_at_a_time(runtime.home.tunings, say):
        project = runtime.project
        frame = runtime.frame()
        base = weights.resolve_model(project.named(project.settings.model.base), project.home.models, progress=say)
        if resume is None:
            begun, dataset = _begin(runtime, frame, base)
        else:
            begun, dataset = _go_on(runtime, frame, base, resume)
        parallel.tell(begun.id)
        counts = dataset.manifest
        say(_told_of(dataset))
        folder = runtime.home.tunings / begun.id
        renderer = Renderer(weights.load_tokenizer(base))
        try:
            trained, example = _train(runtime, frame, base, renderer, begun, dataset, on_progress, say)
        except KeyboardInterrupt:
            say(f"stopped; go on with `ratchet tune --resume {begun.id}`")
            raise
        loss_plot(folder / "metrics.jsonl", folder / "loss.png")
        in_own_team(lambda: check_lives(fresh_model(project, base), folder / "adapter", example))
        give_back_memory()
        adapter = _keep(runtime, folder, base, dataset, trained, begun)
        chosen = asdict(_chosen(project))
        write_tuning_report(folder, adapter.id, trained, chosen, counts, renderer.decode)
        finish(folder)
        return Tuning(adapter, dataset, trained, folder)


def follow(runtime: Runtime) -> None:
    """Take part in the tuning that the first of several processes runs. See `tuner.training.distributed`."""
    project = runtime.project
    begun = unfinished(runtime.home.tunings, parallel.tell(None))
    base = weights.resolve_model(project.named(project.settings.model.base), project.home.models)
    dataset = read_dataset(runtime.home.datasets / begun.dataset)
    _train(runtime, runtime.frame(), base, Renderer(weights.load_tokenizer(base)), begun, dataset)


def search_settings(
    runtime: Runtime,
    *,
    trials: int,
    minutes: float | None = None,
    on_progress: Callable[[int, Progress], None] | None = None,
    say: Say = lambda text: None,
) -> Found:
    """Search for settings with what `tune` would train on now; makes no adapter. See `tuner.training.hyperparameter_search`.

    Waits while another process tunes in the same home. Called again, it goes on until there are `trials`. Raises
    TuningError where nothing is held out.
    """
    if parallel.world() > 1:
        raise TuningError("a search runs in one process, and a launcher started several; start it without one")
    require_optuna()
    with one_at_a_time(runtime.home.tunings, say):
        project = runtime.project
        frame = runtime.frame()
        base = weights.resolve_model(project.named(project.settings.model.base), project.home.models, progress=say)
        dataset, parent = _make_dataset(runtime, frame, timestamp())
        _check_held_out(dataset, project)
        say(_told_of(dataset))
        examples, held_out = _examples(project, frame, base, Renderer(weights.load_tokenizer(base)), dataset)

        def attempt(settings: TrainSettings, heard: Callable[[Progress], None]) -> Trained:
            give_back_memory()  # What a trial that was cut short held hung on its traceback until now.
            return _until_interrupted(
                lambda tell: train(
                    fresh_model(project, base, _trained_in(project.settings.model.dtype)),
                    examples,
                    held_out,
                    settings,
                    folder=None,
                    start_from=None if parent is None else parent.folder,
                    on_progress=tell,
                ),
                heard,
            )

        try:
            return search(
                attempt,
                _train_settings(project),
                searches=runtime.home.searches,
                about=(dataset.hash, frame.version, base.revision, "" if parent is None else parent.tensors_sha256),
                trials=trials,
                minutes=minutes,
                fixed_shape=parent is not None,
                on_progress=on_progress,
                say=say,
            )
        except KeyboardInterrupt:
            say("stopped; the same command goes on")
            raise


def _check_held_out(dataset: Dataset, project: Project) -> None:
    if not dataset.held_out:
        raise TuningError(
            f"a search compares held-out losses, and none of {dataset.manifest['tasks']} tasks is held out: "
            f"tuning.validation_share is {project.settings.tuning.validation_share:g}, and it takes {LEAST_HELD_OUT} "
            "tasks; raise it, or accept or correct more runs"
        )


def _told_of(dataset: Dataset) -> str:
    counts = dataset.manifest
    told = f"{counts['corrections']} corrections, {counts['accepted_runs']} accepted runs"
    held = told_held_back(counts.get("held_back_kinds", {}))
    return f"dataset {dataset.hash[:12]}: {told}" + (f"; not trained: {held} (`ratchet corrections`)" if held else "")


def _begin(runtime: Runtime, frame: Frame, base: weights.ModelFolder) -> tuple[Begun, Dataset]:
    """Write the dataset and the folder of a new tuning."""
    created_at = timestamp()
    dataset, parent = _make_dataset(runtime, frame, created_at)
    begun = Begun(
        id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}",
        dataset=dataset.folder.name,
        parent=None if parent is None else parent.id,
        prompt_version=frame.version,
        base_revision=base.revision,
        created_at=created_at,
    )
    begin(runtime.home.tunings, begun)
    return begun, dataset


def _make_dataset(runtime: Runtime, frame: Frame, created_at: str) -> tuple[Dataset, Adapter | None]:
    """Write what is to be learnt; also returns the adapter to go on from, if the settings say so and there is one."""
    project, settings = runtime.project, runtime.project.settings.tuning
    # What the rule says now, before anything is made of it.
    runtime.arbitrate()
    curated = curate(runtime.store)
    parent = runtime.serving() if settings.start == "active" else None
    learnt = _trained_on(runtime, parent, curated)
    rows = curated.rows
    if parent is not None and settings.replay < 1:
        rows = replayed(rows, learnt, settings.replay, runtime.encoder)
    served = tuple(_as_served_now(runtime, row) for row in rows)
    drawn = draw_contexts(runtime, served)
    dataset = write_dataset(
        replace(curated, rows=(*served, *drawn.rows)),
        project.home.datasets,
        validation_share=settings.validation_share,
        created_at=created_at,
        provenance={
            "prompt_version": frame.version,
            "base": project.settings.model.base,
            "contexts": dict(drawn.counts),
        },
        trained_on=learnt,
    )
    return dataset, parent


def _go_on(runtime: Runtime, frame: Frame, base: weights.ModelFolder, wanted: str) -> tuple[Begun, Dataset]:
    """An unfinished tuning and its dataset. Raises TuningError where prompt or base are not what they were."""
    begun = unfinished(runtime.home.tunings, wanted)
    for name, was, now in (
        ("prompt", begun.prompt_version, frame.version),
        ("base", begun.base_revision, base.revision),
    ):
        if was != now:
            raise TuningError(
                f"tuning {begun.id} was begun with {name} {was[:12]} and now it is {now[:12]}; put it back, or begin "
                "a new tuning with `ratchet tune`"
            )
    return begun, read_dataset(runtime.home.datasets / begun.dataset)


def _train(
    runtime: Runtime,
    frame: Frame,
    base: weights.ModelFolder,
    renderer: Renderer,
    begun: Begun,
    dataset: Dataset,
    on_progress: Callable[[Progress], None] | None = None,
    say: Say = lambda text: None,
) -> tuple[Trained, Example]:
    """Train into the tuning's folder; also returns an example of what was trained on."""
    project = runtime.project
    examples, held_out = _examples(project, frame, base, renderer, dataset)
    folder = runtime.home.tunings / begun.id
    # What lies here was left by a crash behind the training, which is done again from its last checkpoint.
    if parallel.rank() == 0:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
    trained = _until_interrupted(
        lambda tell: train(
            fresh_model(project, base, _trained_in(project.settings.model.dtype)),
            examples,
            held_out,
            _train_settings(project),
            folder=folder / "adapter",
            start_from=None if begun.parent is None else runtime.registry.get(begun.parent).folder,
            metrics=folder / "metrics.jsonl",
            checkpoints=checkpoints(folder),
            on_progress=tell,
            say=say,
        ),
        on_progress,
    )
    return trained, examples[0]


def _examples(
    project: Project, frame: Frame, base: weights.ModelFolder, renderer: Renderer, dataset: Dataset
) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out."""
    context = weights.read_context(base)
    limit = project.settings.tuning.max_tokens_per_pack or int(renderer.tokenizer.model_max_length)
    train_on, held_out = (
        prepare(rows, frame, renderer, context=context, max_tokens=limit) for rows in (dataset.train, dataset.held_out)
    )
    return train_on, held_out


def _until_interrupted(
    training: Callable[[Callable[[Progress], None]], Trained], on_progress: Callable[[Progress], None] | None
) -> Trained:
    """Train in a team of threads of its own. Ctrl-C reaches the training where it tells of its progress."""
    stopped = threading.Event()

    def tell(progress: Progress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if on_progress is not None:
            on_progress(progress)

    trained = in_own_team(lambda: training(tell), on_interrupt=stopped.set)
    give_back_memory()
    return trained


def _chosen(project: Project) -> TuningSettings:
    """The settings of a tuning, with the learning rate that they come to."""
    chosen = project.settings.tuning
    return replace(chosen, learning_rate=chosen.learning_rate or RATES[chosen.method])


def _train_settings(project: Project) -> TrainSettings:
    known = asdict(_chosen(project))
    return TrainSettings(**{name: known[name] for name in TrainSettings.__dataclass_fields__})


def _trained_in(dtype: str) -> str:
    """The weights to train on: `train` itself makes the products bfloat16 where the settings say so."""
    return "float32" if dtype in ("auto", "mixed") else dtype


def _trained_on(runtime: Runtime, adapter: Adapter | None, curated: Curated) -> set[str]:
    """The tasks that an adapter, or one it goes back to or is the sum of, was trained on.

    All there are where one of those, or its dataset, is gone.
    """
    tasks: set[str] = set()
    seen: set[str] = set()
    ahead = [] if adapter is None else [adapter.id]
    while ahead:
        id = ahead.pop()
        if id in seen:
            continue
        seen.add(id)
        try:
            one = runtime.registry.get(id)
            if one.merged:
                ahead += one.merged
                continue
            dataset = read_dataset(runtime.home.datasets / verify(one.folder).dataset_hash[:16])
        except (AdapterError, DatasetError):
            return {row.task for row in curated.rows}
        tasks |= {row.task for row in dataset.train}
        ahead += [] if one.parent is None else [one.parent]
    return tasks


def _keep(
    runtime: Runtime,
    folder: Path,
    base: weights.ModelFolder,
    dataset: Dataset,
    trained: Trained,
    begun: Begun,
) -> Adapter:
    """Take the trained folder into the registry, with its loss plot."""
    made = folder / "adapter"
    (made / "report").mkdir()
    shutil.copyfile(folder / "loss.png", made / "report" / "loss.png")
    origin = Origin(base, dataset.hash, begun.id, begun.created_at, parent=begun.parent)
    return take_in(
        runtime.registry,
        made,
        origin,
        lambda name: model_card(name, base.name, dataset, trained, _chosen(runtime.project)),
        reason=f"tuning {begun.id}",
    )


def _as_served_now(runtime: Runtime, row: TrainingRow) -> TrainingRow:
    """The row with what its task would be shown of the other solved ones today: early runs had few to recall."""
    trajectory = row.trajectory
    recalled = runtime.recalled(trajectory.task, same_wording=False)
    made_by = replace(trajectory.provenance, recalled=recalled)
    return replace(row, trajectory=replace(trajectory, provenance=made_by))
