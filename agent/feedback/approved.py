"""What counts of what people said: which steps of a run they stand behind, and where each correction belongs.

Recall, the engine's guesses and the datasets all ask here, so that they cannot disagree. Only what was said is
read; whether it was right is not looked into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Step, Trajectory
from agent.storage.store import Store


@dataclass(frozen=True)
class Judged:
    """A run, and the word on it that counts."""

    trajectory: Trajectory
    rating: Rating | None
    """The newest."""
    corrections: Mapping[int, Correction]
    """The newest of each step, in the order in which the steps were first corrected, with what the reviewer gave."""

    @property
    def accepted(self) -> bool:
        return self.rating is not None and self.rating.verdict == "up"

    def backed(self) -> dict[int, Step]:
        """The steps that people stand behind, by index: corrected ones as corrected, and of an accepted run all others
        that could be read, less an answer of which something was withheld."""
        return {
            index: self.corrections[index].as_step() if index in self.corrections else step
            for index, step in enumerate(self.trajectory.steps)
            if index in self.corrections or (self.accepted and step.call is not None and not step.withheld)
        }


@dataclass(frozen=True)
class Ruling:
    """Where a correction belongs, as it counts now."""

    correction: Correction
    kind: Kind = "habit"
    by: str = ""
    """`rule`, or the reviewer's name; empty where nobody has said yet."""
    is_reviewers: bool = False
    """Whether a reviewer decided; one may be called as they like."""
    reason: str = ""
    superseded_by: str | None = None
    """The id of a newer correction that says something else of the same."""

    @property
    def is_trained(self) -> bool:
        """Whether the weights are to learn it."""
        return self.kind == "habit" and self.superseded_by is None

    @property
    def is_recalled(self) -> bool:
        """Whether tasks like it are shown it. What the documents lack is no example of how to go about a task."""
        return self.kind != "fact" and self.superseded_by is None

    @property
    def why_held_back(self) -> str:
        """Why the weights are not to learn it, in one line."""
        if self.superseded_by is not None:
            return f"superseded by {self.superseded_by}"
        return f"{self.kind}, says {self.by or 'nobody'}" + (f": {self.reason}" if self.reason else "")


def judged_runs(store: Store, ids: Iterable[str] | None = None) -> Iterator[Judged]:
    """The named runs, in that order; without names, every run that was judged, in the order they were made."""
    if ids is not None:
        for trajectory in store.trajectories(ids):
            ratings = store.ratings(trajectory.id)
            corrections = _as_given(trajectory, store.newest_corrections(trajectory.id))
            yield Judged(trajectory, ratings[-1] if ratings else None, corrections)
        return
    verdicts = {rating.run: rating for rating in store.ratings()}
    newest: dict[str, dict[int, Correction]] = {}
    for correction in store.corrections():
        newest.setdefault(correction.run, {})[correction.step] = correction
    judged = {*verdicts, *newest}
    for trajectory in store.trajectories(one.id for one in reversed(store.runs(limit=None)) if one.id in judged):
        corrections = _as_given(trajectory, newest.get(trajectory.id, {}))
        yield Judged(trajectory, verdicts.get(trajectory.id), corrections)


def _as_given(trajectory: Trajectory, corrections: Mapping[int, Correction]) -> dict[int, Correction]:
    return {index: one.without_copies(trajectory.steps[index]) for index, one in corrections.items()}


def rulings(store: Store) -> dict[str, Ruling]:
    """Every correction with where it belongs, by id, oldest first."""
    said: dict[str, list[Arbitration]] = defaultdict(list)
    for arbitration in store.arbitrations():
        said[arbitration.correction].append(arbitration)
    corrections = store.corrections()
    exceptions = {id for id, words in said.items() if (last := _newest(words, "reviewer")) and last.kind == "exception"}
    newest = {(correction.run, correction.step): correction for correction in corrections}
    return {one.id: _ruling(one, said.get(one.id, []), newest[one.run, one.step].id, exceptions) for one in corrections}


def source(store: Store, judged: Judged, index: int) -> str | None:
    """The id of the correction that a step comes from, as it counts now; None for a step that the model said."""
    correction = judged.corrections.get(index)
    return origin(store, judged.trajectory, index) if correction is None else correction.id


def origin(store: Store, trajectory: Trajectory, index: int) -> str | None:
    """The id of the correction that a step of a branch was taken from; None for a step that the model said."""
    found = origin_of(store, trajectory, index)
    return None if found is None else found[0].id


def origin_of(store: Store, trajectory: Trajectory, index: int) -> tuple[Correction, Step] | None:
    """The correction that a step of a branch was taken from, and the step as it was; None for one the model said."""
    step = trajectory.steps[index]
    while step.author == "correction" and trajectory.branch is not None and index <= trajectory.branch.step:
        branch, trajectory = trajectory.branch, store.get(trajectory.branch.run)
        if branch.step == index:
            made = [one for one in store.corrections(branch.run) if one.step == index and one.call == step.call]
            return (made[-1], trajectory.steps[index]) if made else None
    return None


def _ruling(correction: Correction, said: Sequence[Arbitration], newest: str, exceptions: Set[str]) -> Ruling:
    """A reviewer's word goes before the rule's, and the newest of each before the older."""
    rule, reviewer = _newest(said, "rule"), _newest(said, "reviewer")
    chosen = reviewer or rule
    superseded_by = None if rule is None else rule.superseded_by
    # A reviewer's exception stands beside what is done otherwise, and takes nothing back.
    if exceptions & {correction.id, superseded_by}:
        superseded_by = None
    if newest != correction.id:
        superseded_by = newest
    if chosen is None:
        return Ruling(correction, superseded_by=superseded_by)
    by = "rule" if chosen.by == "rule" else chosen.reviewer
    return Ruling(correction, chosen.kind, by, chosen.by == "reviewer", chosen.reason, superseded_by)


def _newest(said: Sequence[Arbitration], by: str) -> Arbitration | None:
    return next((one for one in reversed(said) if one.by == by), None)
