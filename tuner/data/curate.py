"""Turns feedback into training rows: which steps of which runs are trained, and why the others are not.

A row is a run with some of its approved steps as targets. A run whose newest rating is up gives all its approved steps;
a corrected step of another run is a row of its own, in the context it was made in. Not trained are steps without
feedback or with only a thumb down, an answer of which a sentence was withheld, and corrections that are knowledge
gaps, exceptions or superseded. What customers, documents and tools wrote is context and never a target; so are the plan
and the thought of a corrected step where the reviewer gave none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.feedback.approved import CorrectionStatus, ReviewedRun, correction_statuses, reviewed_runs
from agent.records.feedback import Correction
from agent.records.run import Step, Trajectory
from agent.storage.store import Store

RowKind = Literal["accepted", "corrected", "drawn"]
"""Only datasets of earlier versions have "drawn" rows, which are answers in an artificial context."""


@dataclass(frozen=True)
class TrainingRow:
    """A run, cut after its last target, and its targets."""

    run: str
    task: str
    kind: RowKind
    trajectory: Trajectory
    targets: Mapping[int, Step]
    """The steps to train, by index."""
    reviewers: tuple[str, ...]


@dataclass(frozen=True)
class Curated:
    """The training rows, and the runs and corrections that gave none."""

    rows: tuple[TrainingRow, ...]
    left_out: Mapping[str, str]
    """Runs without a row, by id, with the reason."""
    corrections: int
    """Corrections, only the newest of each step counted."""
    accepted: int
    """Runs whose newest rating is up."""
    held_back: Mapping[str, str] = field(default_factory=dict)
    """Corrections that are not trained, by id, with the reason."""
    held_back_kinds: Mapping[str, int] = field(default_factory=dict)
    """Counts of these by kind: "fact", "exception", "superseded"."""


def curate(store: Store) -> Curated:
    """Read every run with feedback, oldest first, and return what is trained of it."""
    statuses = correction_statuses(store)
    runs = list(reviewed_runs(store))
    branches = _Branches(runs, store.feedback.corrections())
    rows: list[TrainingRow] = []
    left_out: dict[str, str] = {}
    for run in runs:
        if run.is_accepted:
            row = _accepted_row(run, _untrained_steps(run, statuses, branches))
            own = [] if row is None else [row]
        else:
            own = _corrected_rows(run, statuses)
        rows += own
        if not own:
            left_out[run.trajectory.id] = _why_left_out(run, statuses, branches)
    held_back = [status for status in statuses.values() if not status.is_trained]
    kinds = Counter("superseded" if status.superseded_by is not None else status.kind for status in held_back)
    return Curated(
        tuple(rows),
        left_out,
        corrections=sum(len(run.corrections) for run in runs),
        accepted=sum(run.is_accepted for run in runs),
        held_back={status.correction.id: status.why_not_trained for status in held_back},
        held_back_kinds=dict(kinds),
    )


def tools_of(rows: Iterable[TrainingRow]) -> set[str]:
    """Return the names of all tools that the rows' runs had."""
    return {name for row in rows for name in row.trajectory.provenance.tools}


class _Branches:
    """Where the corrected steps of branches come from. Reads nothing from the store."""

    def __init__(self, runs: Iterable[ReviewedRun], corrections: Iterable[Correction]) -> None:
        # A run that others branch off has a correction, so it is among the reviewed ones.
        self._trajectories = {run.trajectory.id: run.trajectory for run in runs}
        self._corrections: dict[tuple[str, int], list[Correction]] = defaultdict(list)
        for correction in corrections:
            self._corrections[correction.run, correction.step].append(correction)

    def origins(self, run: ReviewedRun) -> dict[int, tuple[Correction, Step]]:
        """Return for each step that comes from a correction of another run that correction and the original step."""
        origins = {}
        for index in range(len(run.trajectory.steps)):
            if index not in run.corrections and (origin := self._origin(run.trajectory, index)) is not None:
                origins[index] = origin
        return origins

    def _origin(self, trajectory: Trajectory, index: int) -> tuple[Correction, Step] | None:
        step = trajectory.steps[index]
        while step.author == "correction" and trajectory.branch is not None and index <= trajectory.branch.step:
            branch = trajectory.branch
            parent = self._trajectories.get(branch.run)
            if parent is None:
                return None
            if branch.step == index:
                return _newest_match(self._corrections[branch.run, index], step, parent)
            trajectory = parent
        return None


def _newest_match(corrections: Sequence[Correction], step: Step, parent: Trajectory) -> tuple[Correction, Step] | None:
    matching = [correction for correction in corrections if correction.call == step.call]
    return (matching[-1], parent.steps[matching[-1].step]) if matching else None


def _untrained_steps(run: ReviewedRun, statuses: Mapping[str, CorrectionStatus], branches: _Branches) -> set[int]:
    """Return the indices of steps from corrections that are not trained, or that are trained in another run."""
    origins = branches.origins(run)
    sources = {index: correction.id for index, (correction, _) in origins.items()}
    sources |= {index: correction.id for index, correction in run.corrections.items()}
    held_back = {index for index, id in sources.items() if id in statuses and not statuses[id].is_trained}
    return held_back | _trained_elsewhere(origins)


def _trained_elsewhere(origins: Mapping[int, tuple[Correction, Step]]) -> set[int]:
    """Return the indices of steps whose correction leaves out parts of the original step.

    The run that was corrected trains them, after the plan and the thought that the model is served with there.
    """
    return {index for index, (correction, original) in origins.items() if correction.parts_not_given(original)}


def _accepted_row(run: ReviewedRun, excluded: Collection[int]) -> TrainingRow | None:
    """Return a row with every readable step. A later correction ends the run there: what follows is outdated."""
    trajectory, corrections = run.trajectory, run.corrections
    end = min(corrections, default=len(trajectory.steps) - 1)
    approved = run.approved_steps().items()
    targets = {index: step for index, step in approved if index <= end and index not in excluded}
    if end in targets and end in corrections:
        targets[end] = corrections[end].as_target(trajectory.steps[end])
    if not targets or run.rating is None:
        return None
    reviewers = [run.rating.reviewer, *([corrections[end].reviewer] if corrections else [])]
    return TrainingRow(
        trajectory.id,
        trajectory.task.id,
        "accepted",
        _cut(trajectory, max(targets)),
        targets,
        tuple(dict.fromkeys(reviewers)),
    )


def _corrected_rows(run: ReviewedRun, statuses: Mapping[str, CorrectionStatus]) -> list[TrainingRow]:
    trajectory = run.trajectory
    return [
        TrainingRow(
            trajectory.id,
            trajectory.task.id,
            "corrected",
            _cut(trajectory, correction.step),
            {correction.step: correction.as_target(trajectory.steps[correction.step])},
            (correction.reviewer,),
        )
        for correction in run.corrections.values()
        if statuses[correction.id].is_trained
    ]


def _why_left_out(run: ReviewedRun, statuses: Mapping[str, CorrectionStatus], branches: _Branches) -> str:
    if not run.is_accepted and not run.corrections:
        return "rated down and not corrected"
    if run.is_accepted and not run.approved_steps():
        return "rated up, and no step of it can be read or was given whole"
    if run.is_accepted and _trained_elsewhere(branches.origins(run)):
        return "its corrected step is trained in the run that was corrected"
    held_back = [statuses[correction.id] for correction in run.corrections.values()]
    reasons = [status.why_not_trained for status in held_back if not status.is_trained]
    return "; ".join(reasons) or "all its approved steps come from corrections that are not trained"


def _cut(trajectory: Trajectory, last: int) -> Trajectory:
    return replace(trajectory, steps=trajectory.steps[: last + 1])
