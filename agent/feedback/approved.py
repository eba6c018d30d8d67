"""The effective feedback of a store: the approved steps of each run, and which corrections are trained and recalled.

Recall, speculative decoding and the datasets all read it here, so that they cannot disagree. Whether a reviewer was
right is not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Step, Task, Trajectory
from agent.storage.store import Store

RECENT_RUNS = 256
"""Reviewed runs, the newest, whose approved steps an adapter's draft tokens come from when it is loaded."""


@dataclass(frozen=True)
class ReviewedRun:
    """A run with its effective rating and corrections."""

    trajectory: Trajectory
    rating: Rating | None
    """The newest."""
    corrections: Mapping[int, Correction]
    """The newest of each step, in the order in which the steps were first corrected, with what the reviewer gave."""

    @property
    def is_accepted(self) -> bool:
        return self.rating is not None and self.rating.verdict == "up"

    def approved_steps(self) -> dict[int, Step]:
        """Return the approved steps by index.

        These are the corrected steps, as corrected, and every other step of an accepted run that could be read, except
        an answer of which a sentence was withheld.
        """
        return {
            index: self.corrections[index].as_step() if index in self.corrections else step
            for index, step in enumerate(self.trajectory.steps)
            if index in self.corrections or (self.is_accepted and step.call is not None and not step.withheld)
        }


@dataclass(frozen=True)
class CorrectionStatus:
    """A correction, its kind, and whether a newer one supersedes it."""

    correction: Correction
    kind: Kind = "habit"
    reviewer: str = ""
    """Who chose the kind; empty where nobody did."""
    reason: str = ""
    superseded_by: str | None = None
    """The id of a newer correction: of the same step, or of the same step of the same request with another call."""

    @property
    def is_trained(self) -> bool:
        """Whether training uses it."""
        return self.kind == "habit" and self.superseded_by is None

    @property
    def is_recalled(self) -> bool:
        """Whether recall uses it. A knowledge gap is no example of how to begin a task."""
        return self.kind != "fact" and self.superseded_by is None

    @property
    def why_not_trained(self) -> str:
        """Why training does not use it, in one line."""
        if self.superseded_by is not None:
            return f"superseded by {self.superseded_by}"
        return f"{self.kind}, says {self.reviewer or 'nobody'}" + (f": {self.reason}" if self.reason else "")


def reviewed_runs(store: Store, ids: Iterable[str] | None = None) -> Iterator[ReviewedRun]:
    """Yield the named runs in that order; without names, every run with feedback in the order the runs began."""
    feedback = store.feedback
    if ids is not None:
        for trajectory in store.trajectories(ids):
            ratings = feedback.ratings(trajectory.id)
            corrections = _as_given(trajectory, feedback.newest_corrections(trajectory.id))
            yield ReviewedRun(trajectory, ratings[-1] if ratings else None, corrections)
        return
    verdicts = {rating.run: rating for rating in feedback.ratings()}
    newest: dict[str, dict[int, Correction]] = {}
    for correction in feedback.corrections():
        newest.setdefault(correction.run, {})[correction.step] = correction
    reviewed = {*verdicts, *newest}
    ids = [summary.id for summary in reversed(store.runs(limit=None)) if summary.id in reviewed]
    for trajectory in store.trajectories(ids):
        corrections = _as_given(trajectory, newest.get(trajectory.id, {}))
        yield ReviewedRun(trajectory, verdicts.get(trajectory.id), corrections)


def newest_approved_steps(store: Store, runs: int = RECENT_RUNS) -> Iterator[Step]:
    """Yield the approved steps of the runs that were reviewed last."""
    _, reviewed = store.feedback.runs_since(0)
    for run in reviewed_runs(store, reviewed[-runs:]):
        yield from run.approved_steps().values()


def correction_statuses(store: Store) -> dict[str, CorrectionStatus]:
    """Return every correction with its kind and whether it is superseded, by id, oldest first."""
    corrections = store.feedback.corrections()
    kinds = {
        arbitration.correction: arbitration
        for arbitration in store.feedback.arbitrations()
        # Earlier versions had a rule that chose kinds as well; its records are ignored.
        if arbitration.by == "reviewer"
    }
    superseded = _superseded(corrections, store.tasks({one.run for one in corrections}), kinds)
    return {one.id: _status(one, kinds.get(one.id), superseded.get(one.id)) for one in corrections}


def source_correction(store: Store, run: ReviewedRun, index: int) -> str | None:
    """Return the id of the correction that a step comes from; None for a step that the model generated."""
    correction = run.corrections.get(index)
    if correction is not None:
        return correction.id
    branched = branch_correction(store, run.trajectory, index)
    return None if branched is None else branched[0].id


def branch_correction(store: Store, trajectory: Trajectory, index: int) -> tuple[Correction, Step] | None:
    """Return the correction that a step of a branch was taken from, and the step that it corrected.

    None for a step that the model generated.
    """
    step = trajectory.steps[index]
    while step.author == "correction" and trajectory.branch is not None and index <= trajectory.branch.step:
        branch, trajectory = trajectory.branch, store.get(trajectory.branch.run)
        if branch.step == index:
            matching = [
                correction
                for correction in store.feedback.corrections(branch.run)
                if correction.step == index and correction.call == step.call
            ]
            return (matching[-1], trajectory.steps[index]) if matching else None
    return None


def _as_given(trajectory: Trajectory, corrections: Mapping[int, Correction]) -> dict[int, Correction]:
    return {index: one.without_copies(trajectory.steps[index]) for index, one in corrections.items()}


def _superseded(
    corrections: Sequence[Correction], tasks: Mapping[str, Task], kinds: Mapping[str, Arbitration]
) -> dict[str, str]:
    """The superseded corrections by id, each with the newest one that takes its place.

    An exception neither supersedes a correction of another run, nor is superseded by one.
    """
    by_step = {(one.run, one.step): one for one in corrections}
    by_request: dict[tuple[object, int], Correction] = {}
    superseded = {}
    for one in reversed(corrections):
        newest = by_step[one.run, one.step]
        if newest is not one:
            superseded[one.id] = newest.id
            continue
        if (arbitration := kinds.get(one.id)) is not None and arbitration.kind == "exception":
            continue
        newest = by_request.setdefault((_request(tasks[one.run]), one.step), one)
        if newest.call != one.call:
            superseded[one.id] = newest.id
    return superseded


def _request(task: Task) -> object:
    """Equal for tasks that ask the same in the same context, whatever their case and spacing."""
    text = " ".join(task.text.split()).casefold()
    return text, tuple(sorted(task.facts.items()))


def _status(correction: Correction, arbitration: Arbitration | None, superseded_by: str | None) -> CorrectionStatus:
    if arbitration is None:
        return CorrectionStatus(correction, superseded_by=superseded_by)
    return CorrectionStatus(correction, arbitration.kind, arbitration.reviewer, arbitration.reason, superseded_by)
