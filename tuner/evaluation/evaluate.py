"""Runs a suite and scores each task: scores, cost and reasons, in the suite's order.

The caller runs a task; here it gets an empty workspace and is scored. A run that crashes is a failed task and does not
end the evaluation, unless all crash or runs used different adapters. Seconds are wall time: with several runs at once
they include waiting for the others.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import LivenessError, RecordError, TuningError
from agent.records.run import Outcome, Trajectory
from agent.util.atomic_files import write_whole
from tuner.evaluation.checks import RunScores, score
from tuner.evaluation.statistics import Interval, bootstrap_mean, wilson
from tuner.evaluation.suite import Suite, SuiteTask

EVALUATION_VERSION = 1

RunOne = Callable[[SuiteTask, Path], Trajectory]
"""Runs one task in the given empty workspace. Called from several threads at once."""


@dataclass(frozen=True)
class EvaluatedTask:
    """A task's scores and cost."""

    task: str
    """The id."""
    group: str
    text: str
    expects_refusal: bool
    scores: RunScores
    outcome: Outcome | None
    answer: str | None = None
    prompt_tokens: int = 0
    """Prompt tokens that were not cached."""
    forced_tokens: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    trajectory: str | None = None
    """Id of the run; None when it crashed before there was a record."""


@dataclass(frozen=True)
class Summary:
    """An evaluation in a few figures."""

    metrics: Mapping[str, Interval]
    """Shares of tasks with Wilson intervals. `refusal` is over the tasks to be escalated, `not_refused` over all
    others; the rest over the tasks that check them. A metric that no task checks is left out."""
    groups: Mapping[str, Interval]
    """Success by group."""
    costs: Mapping[str, Interval]
    """Means per task: `tokens`, `prompt_tokens`, `sampled_tokens`, `seconds`, `steps`; by bootstrap."""


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a suite."""

    suite: str
    """The suite's hash."""
    base: str
    base_revision: str
    adapter: str | None
    adapter_hash: str | None
    rows: tuple[EvaluatedTask, ...] = field(repr=False)

    @property
    def success(self) -> float:
        return sum(row.scores.success for row in self.rows) / max(1, len(self.rows))

    def summary(self) -> Summary:
        return _summarise(self.rows)

    def save(self, path: Path) -> None:
        """Write versioned JSON atomically; `load` returns an equal evaluation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": EVALUATION_VERSION, **asdict(self)}, ensure_ascii=False, indent=1)
        write_whole(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote. Raises RecordError for anything else, a newer version included."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data.pop("version")
            if version == EVALUATION_VERSION:
                return cls(**{**data, "rows": tuple(_row_from_dict(row) for row in data["rows"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}: not an evaluation ({error!r}); run `ratchet eval` again") from error
        raise RecordError(f"{path}: version {version}, this code reads {EVALUATION_VERSION}; upgrade ratchet-loop")


def evaluate(
    suite: Suite,
    run_one: RunOne,
    *,
    workspaces: Path,
    pristine: Path | None = None,
    concurrency: int = 1,
    progress: Callable[[int, int], None] | None = None,
    keep_workspaces: bool = False,
) -> Evaluation:
    """Run and score every task of a suite.

    Args:
        suite: The tasks.
        run_one: Runs a task.
        workspaces: The folder in which each run gets a folder of its own.
        pristine: The project's databases; see `tuner.evaluation.checks.score`.
        concurrency: Runs at once.
        progress: Called from this thread with the number of finished tasks and of all tasks.
        keep_workspaces: Whether the runs' folders stay.

    Raises:
        LivenessError: The runs' records name different models.
        TuningError: Every run crashed, or there is no task.
    """
    if concurrency < 1:
        raise TuningError(f"concurrency is {concurrency}; expected at least 1")
    if not len(suite):
        raise TuningError("the suite is empty; there is nothing to evaluate")
    workspaces.mkdir(parents=True, exist_ok=True)
    results: dict[str, _Result] = {}
    served: _Result | None = None
    pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="evaluate")
    try:
        futures: list[Future[_Result]] = [
            pool.submit(_run, task, run_one, workspaces, pristine, keep_workspaces) for task in suite
        ]
        for done, future in enumerate(as_completed(futures), start=1):
            result = future.result()
            results[result.row.task] = result
            if result.served is not None:
                served = served or result
                _check_same_model(served, result)
            if progress is not None:
                progress(done, len(suite))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    rows = tuple(results[task.id].row for task in suite)
    if all(row.outcome is Outcome.CRASHED for row in rows):
        why = rows[0].scores.reasons[0]
        raise TuningError(f"every one of the {len(rows)} runs crashed; the first: {why}")
    base, revision, adapter, adapter_hash = (served.served if served else None) or ("", "", None, None)
    return Evaluation(suite.hash, base, revision, adapter, adapter_hash, rows)


@dataclass(frozen=True)
class _Result:
    row: EvaluatedTask
    served: tuple[str, str, str | None, str | None] | None
    """Base, revision, adapter and its hash; None without a record."""


def _run(task: SuiteTask, run_one: RunOne, workspaces: Path, pristine: Path | None, keep: bool) -> _Result:
    workspace = Path(tempfile.mkdtemp(prefix=f"{task.id}-", dir=workspaces))
    begin = time.perf_counter()
    try:
        trajectory = run_one(task, workspace)
        seconds = time.perf_counter() - begin
        scores = score(task, trajectory, workspace, pristine=pristine)
        return _Result(_row(task, trajectory, scores, seconds), _served(trajectory))
    # The other tasks still count; the reason is in the row.
    except Exception as error:
        why = f"the run crashed: {type(error).__name__}: {error}"
        scores = RunScores(success=False, refusal=False, reasons=(why,))
        seconds = time.perf_counter() - begin
        row = EvaluatedTask(
            task.id, task.group, task.task.text, task.check.refusal, scores, Outcome.CRASHED, seconds=seconds
        )
        return _Result(row, None)
    finally:
        if not keep:
            shutil.rmtree(workspace, ignore_errors=True)


def _row(task: SuiteTask, trajectory: Trajectory, scores: RunScores, seconds: float) -> EvaluatedTask:
    usages = [step.usage for step in trajectory.steps]
    return EvaluatedTask(
        task=task.id,
        group=task.group,
        text=task.task.text,
        expects_refusal=task.check.refusal,
        scores=scores,
        outcome=trajectory.outcome,
        answer=trajectory.answer,
        prompt_tokens=sum(usage.prompt - usage.cached for usage in usages),
        forced_tokens=sum(usage.forced for usage in usages),
        sampled_tokens=sum(usage.sampled for usage in usages),
        seconds=round(seconds, 3),
        steps=len(trajectory.steps),
        trajectory=trajectory.id,
    )


def _served(trajectory: Trajectory) -> tuple[str, str, str | None, str | None]:
    provenance = trajectory.provenance
    return provenance.base, provenance.base_revision, provenance.adapter, provenance.adapter_hash


def _check_same_model(first: _Result, other: _Result) -> None:
    if first.served != other.served:
        raise LivenessError(
            f"task {first.row.task} was run by {first.served}, task {other.row.task} by {other.served} "
            "(base, revision, adapter, hash); one evaluation is of one model; pin the adapter, run again"
        )


def _summarise(rows: Sequence[EvaluatedTask]) -> Summary:
    verdicts: dict[str, list[bool | None]] = {
        "success": [row.scores.success for row in rows],
        "tool": [row.scores.tool for row in rows],
        "arguments": [row.scores.arguments for row in rows],
        "facts": [row.scores.facts for row in rows],
        "state": [row.scores.state for row in rows],
        "citations": [row.scores.citations for row in rows],
        "refusal": [row.scores.refusal for row in rows if row.expects_refusal],
        "not_refused": [row.scores.refusal for row in rows if not row.expects_refusal],
    }
    metrics = {}
    for name, values in verdicts.items():
        checked = [value for value in values if value is not None]
        if checked:
            metrics[name] = wilson(sum(checked), len(checked))
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row.scores.success)
    costs: dict[str, list[float]] = {
        "tokens": [row.prompt_tokens + row.forced_tokens + row.sampled_tokens for row in rows],
        "prompt_tokens": [row.prompt_tokens for row in rows],
        "sampled_tokens": [row.sampled_tokens for row in rows],
        "seconds": [row.seconds for row in rows],
        "steps": [row.steps for row in rows],
    }
    return Summary(
        metrics=metrics,
        groups={name: wilson(sum(values), len(values)) for name, values in groups.items()},
        costs={name: bootstrap_mean(values, resamples=2000) for name, values in costs.items()},
    )


def _row_from_dict(data: Mapping[str, Any]) -> EvaluatedTask:
    scores = {**data["scores"], "reasons": tuple(data["scores"]["reasons"])}
    outcome = None if data["outcome"] is None else Outcome(data["outcome"])
    return EvaluatedTask(**{**data, "scores": RunScores(**scores), "outcome": outcome})
