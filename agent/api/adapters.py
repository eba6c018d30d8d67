"""Adapters of an agent's model and of its sentence encoder: trained, gated, served, rolled back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api.progress import show_progress

if TYPE_CHECKING:
    from agent.api.runs import OpenRuntime
    from agent.registry.registry import Adapter, Change, Registry
    from tuner.encoder.pipeline import EncoderTuning, GatedEncoder
    from tuner.encoder.settings import EncoderProgress
    from tuner.evaluation.evaluate import Evaluation
    from tuner.evaluation.suite import Suite
    from tuner.pipeline.promote import GateResult
    from tuner.training.results import Trained

OnTasks = Callable[[str, int, int], None]
"""Receives what is evaluated, how many tasks are done, and how many there are."""


@dataclass(frozen=True)
class Promotion:
    """The gate's decision on a candidate. Printed, it says why."""

    promoted: bool
    gain: float
    """Difference of the success shares, candidate less what was served."""
    low: float
    high: float
    """Bounds of the confidence interval of the gain."""
    reasons: tuple[str, ...]
    report: Path
    """Folder of the report."""
    details: GateResult = field(repr=False)
    """The decision with the evaluations it compares."""

    def __str__(self) -> str:
        verdict = "promoted" if self.promoted else "not promoted"
        return "\n".join([verdict, *(f"- {reason}" for reason in self.reasons), f"report: {self.report}"])


@dataclass(frozen=True, repr=False)
class Candidate:
    """An adapter of the registry that may be promoted."""

    adapter: Adapter
    open_runtime: OpenRuntime = field(compare=False)
    trained: Trained | None = None
    """Figures of the training; None where this process did not train it."""
    report: Path | None = None
    """The page of the training; None where this process did not train it."""

    @property
    def id(self) -> str:
        return self.adapter.id

    def promote(self, suite: Suite | str | Path | None = None, *, on_progress: OnTasks | None = None) -> Promotion:
        """Compare the candidate with the base and with what is served on held-out tasks, and serve it if it is better.

        Args:
            suite: Tasks with checks, or their file; left out, `gate.suite` of the settings.
            on_progress: Receives the progress; left out, a bar is shown in a terminal and lines in a notebook.

        Raises:
            AdapterError: The adapter is active or rejected.
            TuningError: There is no suite.
        """
        from tuner.pipeline.promote import promote

        runtime = self.open_runtime()
        with show_progress() as show:
            gated = promote(
                runtime,
                self.id,
                suite=None if suite is None else load_suite_of(suite),
                progress=on_progress or (lambda name, done, total: show(name, done, total, "")),
            )
        decision = gated.decision
        return Promotion(
            decision.ship, decision.gain, decision.low, decision.high, tuple(decision.reasons), gated.report, gated
        )

    def evaluate(self, suite: Suite | str | Path | None = None) -> Evaluation:
        """Run a suite under this adapter; left out, `gate.suite` of the settings."""
        return evaluate_with(self.open_runtime, suite, self.id)

    def __repr__(self) -> str:
        loss = "" if self.trained is None else f", loss {self.trained.loss:.3f}"
        return f"<adapter {self.id}: {self.adapter.state}{loss}>"


class Adapters:
    """The adapters of the language model, `agent.adapters`."""

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime

    def list(self) -> tuple[Adapter, ...]:
        """Return all adapters with their state, in the order they were added."""
        return self._open_runtime().registry.list()

    def history(self) -> tuple[Change, ...]:
        """Return every change of state, oldest first."""
        return self._open_runtime().registry.history()

    def active(self) -> Adapter | None:
        """Return the adapter that the next run uses; None is the base."""
        return self._open_runtime().serving()

    def get(self, adapter: str) -> Candidate:
        """Return an adapter by its id or a unique beginning of it.

        Raises:
            AdapterError: There is no such adapter.
        """
        return Candidate(self._open_runtime().registry.get(adapter), self._open_runtime)

    def rollback(self, reason: str = "rolled back by hand") -> Adapter | None:
        """Serve what was served before, from the next run on, and return it; None is the base."""
        from agent.util.ids import timestamp

        return self._open_runtime().registry.rollback(reason, timestamp())

    def merge(self, weights: Mapping[str, float]) -> Candidate:
        """Add adapters up, each times its weight, as a new candidate.

        Args:
            weights: The weight of each adapter, by id; two adapters or more.

        Raises:
            AdapterError: The adapters cannot be added up.
        """
        from tuner.pipeline.merge import merge

        return Candidate(merge(self._open_runtime(), list(weights.items())), self._open_runtime)


class EncoderAdapters:
    """The adapters of the sentence encoder that documents are searched with, `agent.encoder_adapters`."""

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime

    def list(self) -> tuple[Adapter, ...]:
        """Return all adapters with their state, in the order they were added."""
        return self._registry().list()

    def active(self) -> Adapter | None:
        """Return the adapter that documents are searched with; None is the bare encoder."""
        return self._registry().serving().adapter

    def tune(
        self,
        *,
        pairs: str | Path | None = None,
        on_progress: Callable[[EncoderProgress], None] | None = None,
    ) -> EncoderTuning:
        """Train an adapter from cited passages and first calls.

        Args:
            pairs: JSON lines `{"query", "positive", "negatives"}` to train on as well.
            on_progress: Receives the progress; left out, a bar is shown in a terminal and lines in a notebook.
        """
        from tuner.encoder.pipeline import tune_encoder

        with show_progress() as show:
            return tune_encoder(
                self._open_runtime(),
                pairs=None if pairs is None else Path(pairs),
                on_progress=on_progress or (lambda one: show("training", one.step, one.steps, f"loss {one.loss:.3f}")),
            )

    def promote(self, adapter: str) -> GatedEncoder:
        """Compare an adapter with what is served, and serve it if it finds more."""
        from tuner.encoder.pipeline import promote_encoder

        return promote_encoder(self._open_runtime(), adapter)

    def rollback(self, reason: str = "rolled back by hand") -> Adapter | None:
        """Search with what was served before, and return it; None is the bare encoder."""
        from tuner.encoder.pipeline import rollback_encoder

        return rollback_encoder(self._open_runtime(), reason)[0]

    def _registry(self) -> Registry:
        return self._open_runtime().served_encoder.registry


class Suites:
    """Held-out tasks with checks, `agent.suites`."""

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime

    def load(self, file: str | Path, *, limit: int | None = None) -> Suite:
        """Read a suite from JSON lines; with `limit`, an even share of each group."""
        from tuner.evaluation.suite import load_suite

        return load_suite(Path(file), limit=limit)

    def project(self, *, limit: int | None = None) -> Suite:
        """Read the suite that `gate.suite` of the settings names.

        Raises:
            TuningError: The settings name none.
        """
        from tuner.pipeline.promote import project_suite

        return project_suite(self._open_runtime().project, limit=limit)


def load_suite_of(suite: Suite | str | Path) -> Suite:
    """Return a suite, read where it is a file."""
    from tuner.evaluation.suite import load_suite

    return load_suite(Path(suite)) if isinstance(suite, str | Path) else suite


def evaluate_with(
    open_runtime: OpenRuntime,
    suite: Suite | str | Path | None,
    adapter: str | None,
    *,
    fresh: bool = False,
    on_progress: OnTasks | None = None,
) -> Evaluation:
    """Run a suite under an adapter's id, or under the base for None."""
    from tuner.pipeline.promote import evaluate_adapter, project_suite

    runtime = open_runtime()
    loaded = project_suite(runtime.project) if suite is None else load_suite_of(suite)
    name = adapter or "base"
    with show_progress() as show:
        on_tasks = on_progress or (lambda name, done, total: show(name, done, total, ""))
        return evaluate_adapter(
            runtime, loaded, adapter, fresh=fresh, progress=lambda done, total: on_tasks(name, done, total)
        )
