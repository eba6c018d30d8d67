"""From feedback to a candidate: dataset, training, a check that the adapter acts, and the entry in the registry.

Each stage leaves its result on disk under a hash or an id, and fails where it would do nothing; see `check_lives`.
Training runs in this process, on weights of its own; a service starts it as another process. Whether the candidate is
served is decided in `tuner.pipeline.promote`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

from agent.config.project import Project
from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.llm.prompt.render import Frame, Renderer
from agent.llm.weights import load as weights
from agent.registry.registry import Adapter
from agent.runtime import Runtime
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, run_in_thread
from tuner.data.dataset import LEAST_HELD_OUT, Dataset, read_dataset
from tuner.pipeline.candidate import CandidateOrigin, check_lives, fresh_model, take_in
from tuner.pipeline.run_folder import (
    TuningStart,
    begin,
    checkpoints_of,
    finish,
    latest_unfinished,
    one_at_a_time,
)
from tuner.pipeline.training_data import DataSources, TrainingExamples, describe_dataset, make_dataset, make_examples
from tuner.reports.model_card import model_card
from tuner.reports.plots import save_loss_plot
from tuner.reports.tuning_report import write_tuning_report
from tuner.settings import with_learning_rate
from tuner.training import distributed
from tuner.training.hyperparameter_search import SearchResult, require_optuna, search
from tuner.training.results import Progress, Say, Trained
from tuner.training.trainer import train


@dataclass(frozen=True)
class Tuning:
    """The result of a tuning."""

    adapter: Adapter
    dataset: Dataset
    trained: Trained
    folder: Path
    """`tunings/<id>`: tuning.json, metrics.jsonl, loss.svg, result.json, report.html; until it ends checkpoints."""


def tune(
    runtime: Runtime,
    *,
    resume: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Say = lambda text: None,
) -> Tuning:
    """Train a candidate from all feedback in the store and add it to the registry as trained.

    Waits while another process tunes in the same home. When interrupted, it leaves a checkpoint.

    Args:
        runtime: Of the project.
        resume: The id of an unfinished tuning to continue, or "" for the newest; None begins a new one.
        on_progress: Called after each step and each epoch.
        say: Receives messages for the user.

    Raises:
        DatasetError: There is nothing to train.
        LivenessError: The adapter would change no output.
        TuningError: Training failed, or there is no such unfinished tuning.
    """
    project, tunings = runtime.project, runtime.home.tunings
    with one_at_a_time(tunings, say):
        stage = _Stage(project, runtime.frame(), _resolve_base(project, say), tunings)
        if resume is None:
            parent = _parent(runtime)
            dataset = _make_dataset(runtime, stage, parent)
            start = stage.begin(dataset, parent)
        else:
            start = stage.unfinished(resume)
            dataset = read_dataset(runtime.home.datasets / start.dataset)
            parent = None if start.parent is None else runtime.registry.get(start.parent)
        distributed.broadcast(start.id)
        say(describe_dataset(dataset))
        folder, examples = tunings / start.id, stage.examples(dataset)
        try:
            trained = stage.train(start, examples, parent, on_progress, say)
        except KeyboardInterrupt:
            say(f"stopped; continue with `ratchet tune --resume {start.id}`")
            raise
        save_loss_plot(folder / "metrics.jsonl", folder / "loss.svg")
        run_in_thread(lambda: check_lives(fresh_model(project, stage.base), folder / "adapter", examples.train[0]))
        give_back_memory()
        card = partial(_card, stage=stage, dataset=dataset, trained=trained)
        adapter = take_in(
            runtime.registry,
            _with_loss_plot(folder),
            CandidateOrigin(stage.base, dataset.hash, start.id, start.created_at, parent=start.parent),
            card,
            reason=f"tuning {start.id}",
        )
        settings = asdict(with_learning_rate(project.settings.tuning))
        write_tuning_report(folder, adapter.id, trained, settings, dataset.manifest, stage.renderer.decode)
        finish(folder)
        return Tuning(adapter, dataset, trained, folder)


def follow(runtime: Runtime) -> None:
    """Take part in the tuning that the first of several processes runs. See `tuner.training.distributed`."""
    project, tunings = runtime.project, runtime.home.tunings
    start = latest_unfinished(tunings, distributed.broadcast(None))
    stage = _Stage(project, runtime.frame(), _resolve_base(project), tunings)
    dataset = read_dataset(runtime.home.datasets / start.dataset)
    parent = None if start.parent is None else runtime.registry.get(start.parent)
    stage.train(start, stage.examples(dataset), parent)


def search_settings(
    runtime: Runtime,
    *,
    trials: int,
    minutes: float | None = None,
    on_progress: Callable[[int, Progress], None] | None = None,
    say: Say = lambda text: None,
) -> SearchResult:
    """Search for better settings on the data that `tune` would train on now; adds no adapter.

    Waits while another process tunes in the same home. Called again, it continues until there are `trials`. See
    `tuner.training.hyperparameter_search`.

    Raises:
        TuningError: Nothing is held out, Optuna is missing, or several processes were started.
    """
    if distributed.world() > 1:
        raise TuningError("a search runs in one process, and a launcher started several; start it without one")
    require_optuna()
    project, tunings = runtime.project, runtime.home.tunings
    with one_at_a_time(tunings, say):
        stage = _Stage(project, runtime.frame(), _resolve_base(project, say), tunings)
        parent = _parent(runtime)
        dataset = _make_dataset(runtime, stage, parent)
        _check_held_out(dataset, project)
        say(describe_dataset(dataset))
        examples = stage.examples(dataset)

        def attempt(settings: TuningSettings, on_trial_progress: Callable[[Progress], None]) -> Trained:
            give_back_memory()  # The traceback of a pruned trial held its memory until now.
            return stage.attempt(settings, examples, parent, on_trial_progress)

        try:
            return search(
                attempt,
                with_learning_rate(project.settings.tuning),
                searches=runtime.home.searches,
                about=(
                    dataset.hash,
                    stage.frame.version,
                    stage.base.revision,
                    "" if parent is None else parent.tensors_sha256,
                ),
                trials=trials,
                minutes=minutes,
                fixed_shape=parent is not None,
                on_progress=on_progress,
                say=say,
            )
        except KeyboardInterrupt:
            say("stopped; the same command continues the search")
            raise


class _Stage:
    """The training stage: examples from a dataset, and an adapter folder from examples."""

    def __init__(self, project: Project, frame: Frame, base: weights.ModelFolder, tunings: Path) -> None:
        self.frame = frame
        self.base = base
        self.project = project
        self.renderer = Renderer(weights.load_tokenizer(base))
        self._tunings = tunings

    def begin(self, dataset: Dataset, parent: Adapter | None) -> TuningStart:
        """Make the folder of a new tuning."""
        start = TuningStart(
            id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}",
            dataset=dataset.folder.name,
            parent=None if parent is None else parent.id,
            prompt_version=self.frame.version,
            base_revision=self.base.revision,
            created_at=timestamp(),
        )
        begin(self._tunings, start)
        return start

    def unfinished(self, wanted: str) -> TuningStart:
        """Return an unfinished tuning. Raises TuningError where prompt or base have changed since."""
        start = latest_unfinished(self._tunings, wanted)
        for name, before, now in (
            ("prompt", start.prompt_version, self.frame.version),
            ("base", start.base_revision, self.base.revision),
        ):
            if before != now:
                raise TuningError(
                    f"tuning {start.id} was begun with {name} {before[:12]}, which now is {now[:12]}; restore it, or "
                    "begin a new tuning with `ratchet tune`"
                )
        return start

    def examples(self, dataset: Dataset) -> TrainingExamples:
        max_tokens = self.project.settings.tuning.max_tokens_per_pack
        return make_examples(dataset, self.frame, self.base, self.renderer, max_tokens=max_tokens)

    def train(
        self,
        start: TuningStart,
        examples: TrainingExamples,
        parent: Adapter | None,
        on_progress: Callable[[Progress], None] | None = None,
        say: Say = lambda text: None,
    ) -> Trained:
        """Train into the folder of a tuning."""
        folder = self._tunings / start.id
        # An adapter here was left by a crash after the training, which is repeated from its last checkpoint.
        if distributed.rank() == 0:
            shutil.rmtree(folder / "adapter", ignore_errors=True)
        return _until_interrupted(
            lambda report: train(
                self._fresh_model(),
                examples.train,
                examples.held_out,
                with_learning_rate(self.project.settings.tuning),
                folder=folder / "adapter",
                start_from=None if parent is None else parent.folder,
                metrics=folder / "metrics.jsonl",
                checkpoints=checkpoints_of(folder),
                on_progress=report,
                say=say,
            ),
            on_progress,
        )

    def attempt(
        self,
        settings: TuningSettings,
        examples: TrainingExamples,
        parent: Adapter | None,
        on_progress: Callable[[Progress], None],
    ) -> Trained:
        """Train with other settings and keep only the figures."""
        return _until_interrupted(
            lambda report: train(
                self._fresh_model(),
                examples.train,
                examples.held_out,
                settings,
                folder=None,
                start_from=None if parent is None else parent.folder,
                on_progress=report,
            ),
            on_progress,
        )

    def _fresh_model(self) -> object:
        dtype = self.project.settings.model.dtype
        # `train` itself computes products in bfloat16 where the settings say so.
        return fresh_model(self.project, self.base, "float32" if dtype in ("auto", "mixed") else dtype)


def _resolve_base(project: Project, say: Say = lambda text: None) -> weights.ModelFolder:
    return weights.resolve_model(project.named(project.settings.model.base), project.home.models, progress=say)


def _parent(runtime: Runtime) -> Adapter | None:
    """Return the adapter to start from, if the settings say so and there is one."""
    return runtime.serving() if runtime.project.settings.tuning.start == "active" else None


def _make_dataset(runtime: Runtime, stage: _Stage, parent: Adapter | None) -> Dataset:
    settings = runtime.project.settings
    sources = DataSources(
        runtime.store,
        runtime.registry,
        runtime.home.datasets,
        recall=lambda task: runtime.recalled(task, same_wording=False),
        encoder=lambda: runtime.encoder,
    )
    return make_dataset(
        sources,
        settings.tuning,
        base=settings.model.base,
        prompt_version=stage.frame.version,
        parent=parent,
        created_at=timestamp(),
    )


def _check_held_out(dataset: Dataset, project: Project) -> None:
    if not dataset.held_out:
        raise TuningError(
            f"a search compares held-out losses, and none of {dataset.manifest['tasks']} tasks is held out: "
            f"tuning.validation_share is {project.settings.tuning.validation_share:g}, and it takes {LEAST_HELD_OUT} "
            "tasks; raise it, or accept or correct more runs"
        )


def _until_interrupted(
    training: Callable[[Callable[[Progress], None]], Trained], on_progress: Callable[[Progress], None] | None
) -> Trained:
    """Train in threads of its own. Ctrl-C reaches the training at its next report of progress."""
    stopped = threading.Event()

    def report(progress: Progress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if on_progress is not None:
            on_progress(progress)

    trained = run_in_thread(lambda: training(report), on_interrupt=stopped.set)
    give_back_memory()
    return trained


def _with_loss_plot(folder: Path) -> Path:
    """Copy the loss plot into the adapter folder of a tuning; returns that folder."""
    adapter = folder / "adapter"
    (adapter / "report").mkdir()
    shutil.copyfile(folder / "loss.svg", adapter / "report" / "loss.svg")
    return adapter


def _card(name: str, *, stage: _Stage, dataset: Dataset, trained: Trained) -> str:
    return model_card(name, stage.base.name, dataset, trained, with_learning_rate(stage.project.settings.tuning))
