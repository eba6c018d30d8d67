"""Runs as Python objects: what came of one, feedback on it, and the log of all."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from agent.feedback.approved import CorrectionStatus
    from agent.records.run import Outcome, Step, Trajectory
    from agent.run.state import Event
    from agent.runtime import Runtime
    from agent.storage.store import RunSummary
    from tools.context import Passage

OpenRuntime = Callable[[], "Runtime"]
"""Returns the runtime of an agent, its documents read."""


@dataclass(frozen=True, repr=False)
class RunHandle:
    """A run that was done, and feedback on it."""

    trajectory: Trajectory
    """The record: task, steps, provenance. Values that the log masks are put back where this process did the run."""
    open_runtime: OpenRuntime = field(compare=False)

    @property
    def id(self) -> str:
        return self.trajectory.id

    @property
    def answer(self) -> str | None:
        """The answer, or why the task was escalated; None for another outcome."""
        from agent.run.views import last_words

        return last_words(self.trajectory)

    @property
    def citations(self) -> tuple[Passage, ...]:
        """The passages that the answer cites."""
        return tuple(self.trajectory.citations)

    @property
    def outcome(self) -> Outcome | None:
        """Why the run ended; None for one that was interrupted, which `resume` continues."""
        return self.trajectory.outcome

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.trajectory.steps

    @property
    def adapter(self) -> str | None:
        """The id of the adapter that generated the steps; None for the base."""
        return self.trajectory.provenance.adapter

    def correct(
        self,
        step: int,
        *,
        tool: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        answer: str | None = None,
        citations: Sequence[int] | None = None,
        thought: str | None = None,
        plan: Sequence[str] | None = None,
        output: str | None = None,
        kind: Literal["habit", "fact", "exception"] | None = None,
        reviewer: str | None = None,
        reason: str = "",
    ) -> RunHandle:
        """Record what a step should have been, and return this run; `resume` then branches it at that step.

        Args:
            step: Index of the step, from 0.
            tool: The tool that should have been called; left out, that of the step.
            arguments: All arguments of the call.
            answer: Text of the answer that should have been given.
            citations: Labels of the passages that this answer cites.
            thought: Left out, no thought is trained.
            plan: Left out, no plan is trained.
            output: What the trained task that the step called should have given, in place of the parts above.
            kind: "fact" for a knowledge gap, "exception" for what holds here alone; only a "habit", the default, is
                trained.
            reviewer: Who gives the feedback; left out, the system's user name.
            reason: Kept with it.

        Raises:
            FeedbackError: The model could not have generated this step there.
        """
        from agent.errors import FeedbackError
        from agent.feedback import service

        given = (tool, arguments, answer, citations, thought, plan, kind)
        reviewer = reviewer or _user_name()
        if output is not None:
            if any(part is not None for part in given):
                raise FeedbackError("output corrects a trained task and the others a step; give one of them")
            service.correct_output(self.open_runtime(), self.id, step, output, reviewer=reviewer, reason=reason)
            return self
        if all(part is None for part in given):
            raise FeedbackError("nothing to correct; give tool, arguments, answer, thought, plan or output")
        service.correct(
            self.open_runtime(),
            self.id,
            step,
            reviewer=reviewer,
            tool=tool,
            arguments=arguments,
            answer=answer,
            citations=citations,
            thought=thought,
            plan=plan,
            reason=reason,
            kind=kind,
        )
        return self

    def rate(self, verdict: Literal["up", "down"], *, reviewer: str | None = None, reason: str = "") -> RunHandle:
        """Rate the whole run, and return it. A run rated "up" is trained and recalled."""
        from agent.feedback import service

        service.rate(self.open_runtime(), self.id, verdict, reviewer=reviewer or _user_name(), reason=reason)
        return self

    def resume(self, *, on_event: Callable[[Event], None] | None = None) -> RunHandle:
        """Continue an interrupted run; a run with corrections is branched at its first corrected step.

        Raises:
            StoreError: The run has ended and has no correction.
        """
        runtime = self.open_runtime()
        return RunHandle(runtime.reveal(runtime.resume(self.id, on_event=on_event)), self.open_runtime)

    def to_dict(self) -> dict[str, Any]:
        """Return the run with its feedback as plain JSON values, as `GET /v1/runs/{id}` does."""
        from agent.run.views import run_view

        feedback = self.open_runtime().store.feedback
        return run_view(
            self.trajectory,
            feedback.corrections(self.id),
            feedback.ratings(self.id),
            feedback.output_corrections(self.id),
        )

    def __repr__(self) -> str:
        ended = "interrupted" if self.outcome is None else str(self.outcome)
        return f"<run {self.id}: {ended} after {len(self.steps)} steps: {(self.answer or '')!r:.100}>"


class Runs:
    """The log of runs, `agent.runs`."""

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime

    def list(self, limit: int | None = 20, *, unfinished: bool = False) -> tuple[RunSummary, ...]:
        """Return the newest runs, newest first.

        Args:
            limit: How many at most; None for all.
            unfinished: Only those that were interrupted.
        """
        return self._open_runtime().store.runs(limit, unfinished)

    def get(self, run: str = "last") -> RunHandle:
        """Return a run by its id, a unique beginning of it, or "last".

        Raises:
            StoreError: There is no such run.
        """
        runtime = self._open_runtime()
        return RunHandle(runtime.reveal(runtime.store.get(run)), self._open_runtime)

    def search(self, text: str, limit: int = 20) -> tuple[RunHandle, ...]:
        """Return the newest runs whose task or answer contains a text, in capitals or not."""
        matches = (
            run for run in self._newest() if text.casefold() in f"{run.trajectory.task.text}\n{run.answer}".casefold()
        )
        return tuple(run for _, run in zip(range(limit), matches, strict=False))

    def corrections(self) -> tuple[CorrectionStatus, ...]:
        """Return every correction with its kind and whether a newer one supersedes it, oldest first."""
        from agent.feedback.approved import correction_statuses

        return tuple(correction_statuses(self._open_runtime().store).values())

    def set_kind(
        self,
        correction: str,
        kind: Literal["habit", "fact", "exception"],
        *,
        reviewer: str | None = None,
        reason: str = "",
    ) -> None:
        """Change the kind of a correction, named by its id.

        Raises:
            FeedbackError: There is no such correction or kind.
        """
        from agent.feedback import service

        service.arbitrate(self._open_runtime(), correction, kind, reviewer=reviewer or _user_name(), reason=reason)

    def _newest(self) -> Iterator[RunHandle]:
        runtime = self._open_runtime()
        for summary in runtime.store.runs(None):
            yield RunHandle(runtime.reveal(runtime.store.get(summary.id)), self._open_runtime)


def _user_name() -> str:
    from agent.errors import FeedbackError

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise FeedbackError("the system does not name its user; give reviewer=") from None
