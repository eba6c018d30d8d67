"""The stages that decide whether a candidate is served: evaluation, gate, promotion."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.config.project import Project
from agent.errors import AdapterError, TuningError
from agent.llm.prompt.render import Frame
from agent.records.run import Trajectory
from agent.registry.artifact import add_documents
from agent.registry.registry import Adapter, State
from agent.run.state import Unrecorded
from agent.runtime import Runtime
from agent.util.ids import timestamp
from tools.functions import source_of
from tuner.evaluation.evaluate import Evaluation, evaluate
from tuner.evaluation.gate import Decision, GatePolicy, decide
from tuner.evaluation.suite import Suite, SuiteTask, load_suite
from tuner.pipeline.candidate import code_version
from tuner.reports.gate_report import write_gate_report


@dataclass(frozen=True)
class GateResult:
    """The gate's decision on a candidate, with its evaluations."""

    decision: Decision
    base: Evaluation
    active: Evaluation | None
    candidate: Evaluation
    report: Path


def evaluate_adapter(
    runtime: Runtime,
    suite: Suite,
    adapter: str | None,
    *,
    progress: Callable[[int, int], None] | None = None,
    fresh: bool = False,
    recall: bool = True,
) -> Evaluation:
    """Run a suite with an adapter; a repeated evaluation is read from disk.

    Args:
        runtime: Of the project.
        suite: The tasks.
        adapter: Its id; None is the base.
        progress: Called with the number of finished tasks and of all tasks.
        fresh: Run again even if the result is on disk.
        recall: Whether runs are given solved tasks; without it the base has learnt nothing.
    """
    saved = runtime.home.evaluations / f"{_evaluation_key(runtime, suite, adapter, recall)}.json"
    if saved.is_file() and not fresh:
        return Evaluation.load(saved)

    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        trajectory = runtime.run(
            task.task, adapter=adapter, tools=task.tools, workspace=workspace, recorder=Unrecorded(), recall=recall
        )
        return runtime.reveal(trajectory)

    runtime.stepper(adapter)  # Loaded before the time of the first task starts.
    result = evaluate(
        suite,
        run_one,
        workspaces=runtime.home.workspaces,
        pristine=runtime.project.folder,
        concurrency=runtime.project.settings.model.max_sessions,
        progress=progress,
    )
    saved.parent.mkdir(parents=True, exist_ok=True)
    result.save(saved)
    return result


def gate(
    runtime: Runtime,
    candidate: Adapter,
    suite: Suite,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> GateResult:
    """Compare base, active and candidate on a suite, add the report to the adapter, and set the candidate's state.

    The base runs without recall. Active is what is served now; without an adapter that is the base with recall.
    """

    def run(name: str, adapter: str | None, *, recall: bool = True) -> Evaluation:
        return evaluate_adapter(
            runtime,
            suite,
            adapter,
            progress=None if progress is None else lambda done, of: progress(name, done, of),
            recall=recall,
        )

    served = runtime.serving()
    base = run("base", None, recall=False)
    active = None
    if served is not None or runtime.recall_version():
        active = run("active", served.id if served is not None else None)
    evaluated = run("candidate", candidate.id)
    settings = runtime.project.settings.gate
    policy = GatePolicy(
        margin=settings.margin,
        never_lost=settings.never_lost,
        min_tasks=settings.min_tasks,
        resamples=settings.resamples,
    )
    decision = decide(base, active, evaluated, policy)
    scratch = runtime.home.evaluations / f"gate-{candidate.id}"
    report = write_gate_report(scratch, decision, base, active, evaluated)
    documents = {f"report/{path.name}": path.read_bytes() for path in sorted(report.iterdir())}
    add_documents(candidate.folder, documents)
    shutil.rmtree(scratch)
    if candidate.state in (State.TRAINED, State.RETIRED) and decision.ship:
        runtime.registry.transition(candidate.id, State.GATED, decision.reasons[0], timestamp())
    elif not decision.ship and candidate.state is not State.RETIRED:
        runtime.registry.reject(candidate.id, decision.reasons[0], timestamp())
    return GateResult(decision, base, active, evaluated, candidate.folder / "report")


def promote(
    runtime: Runtime,
    adapter: str,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    suite: Suite | None = None,
) -> GateResult:
    """Gate a candidate and serve it if the gate decides so.

    Raises:
        AdapterError: It is active or rejected, or there is no such adapter.
        TuningError: No suite is set.
    """
    candidate = runtime.registry.get(adapter)
    if candidate.state in (State.ACTIVE, State.REJECTED):
        raise AdapterError(
            f"adapter {candidate.id} is {candidate.state}; only a trained, gated or retired one can be promoted"
        )
    result = gate(runtime, candidate, suite or project_suite(runtime.project), progress=progress)
    if result.decision.ship:
        runtime.registry.promote(candidate.id, result.decision.reasons[0], timestamp())
    return result


def project_suite(project: Project, *, limit: int | None = None) -> Suite:
    """Load the held-out suite of the settings. Raises TuningError where none is set."""
    if not project.settings.gate.suite:
        raise TuningError("no held-out suite is named; set gate.suite in ratchet.toml to a file of tasks with checks")
    return load_suite(project.resolve(project.settings.gate.suite), limit=limit)


def _evaluation_key(runtime: Runtime, suite: Suite, adapter: str | None, recall: bool) -> str:
    """Hash everything that decides a result: suite, adapter, prompt, settings, documents, code and tool files."""
    entry = None if adapter is None else runtime.registry.get(adapter)
    frame: Frame = runtime.frame()
    settings = runtime.project.settings
    parts = [
        suite.hash,
        entry.tensors_sha256 if entry else "base",
        frame.version,
        code_version(),
        repr((settings.model.base, settings.model.dtype, settings.agent, settings.memory, settings.privacy)),
        runtime.documents_version(),
        str(runtime.recall_version() if recall else 0),
        *(_hash_of(runtime.project.resolve(name)) for name in settings.tools.files if name.endswith(".py")),
        *(source_of(function) for function in runtime.functions),
        *(str((one.metadata or {}).get("version")) for one in (runtime.tasks.tools() if settings.tools.tasks else ())),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
