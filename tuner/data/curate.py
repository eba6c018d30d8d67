"""Feedback becomes training rows: which steps of which runs are to be said, and why the others are not.

A row is a run and the steps of it that people stand behind. A run whose newest rating is up gives all its
steps; a corrected step is a row of its own, in the context it was made in. Steps that nobody looked at, or that
only a thumb down touched, teach nothing, nor does an answer of which a sentence was withheld. Nor does a correction
that belongs in the documents or in memory alone, or that a newer one took back. What customers, documents and tools
said is context, never a target; so are the plan and the thought of a corrected step where the reviewer gave none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.feedback.approved import Judged, Ruling, judged_runs, origin_of, rulings, source
from agent.records.run import Step, Trajectory
from agent.storage.store import Store

Kind = Literal["accepted", "corrected", "drawn"]
"""A drawn row is an answer of one of the others in another context; see `tuner.data.retrieval_augment`."""


@dataclass(frozen=True)
class TrainingRow:
    """A run, cut behind its last target, and the steps to be said (by index)."""

    run: str
    task: str
    kind: Kind
    trajectory: Trajectory
    targets: Mapping[int, Step]
    reviewers: tuple[str, ...]


@dataclass(frozen=True)
class Curated:
    """The rows, and the runs that gave none with the reason."""

    rows: tuple[TrainingRow, ...]
    left_out: Mapping[str, str]
    corrections: int
    """Corrections that count: the newest of each step."""
    accepted: int
    """Runs whose newest rating is up."""
    held_back: Mapping[str, str] = field(default_factory=dict)
    """Corrections that the weights are not to learn, by id, with the reason."""
    held_back_kinds: Mapping[str, int] = field(default_factory=dict)
    """How many of these are facts, exceptions, or superseded."""


def curate(store: Store) -> Curated:
    """Go through every run in the store, oldest first. What belongs in documents or memory is left out of the rows."""
    ruled = rulings(store)
    rows: list[TrainingRow] = []
    left_out: dict[str, str] = {}
    corrections = accepted_runs = 0
    for judged in judged_runs(store):
        run = judged.trajectory.id
        corrections += len(judged.corrections)
        accepted_runs += judged.accepted
        if judged.accepted:
            made = [_accepted(judged, _held_back(store, judged, ruled) | _trained_elsewhere(store, judged))]
        else:
            made = list(_corrected(judged, ruled))
        found = [row for row in made if row is not None]
        rows += found
        if not found:
            left_out[run] = _why_none(store, judged, ruled)
    held = [one for one in ruled.values() if not one.is_trained]
    kinds = Counter("superseded" if one.superseded_by is not None else one.kind for one in held)
    reasons = {one.correction.id: one.why_held_back for one in held}
    return Curated(tuple(rows), left_out, corrections, accepted_runs, reasons, dict(kinds))


def _held_back(store: Store, judged: Judged, ruled: Mapping[str, Ruling]) -> set[int]:
    """The steps of a run, by index, that come from corrections which are not trained."""
    sources = {index: source(store, judged, index) for index in range(len(judged.trajectory.steps))}
    return {index for index, id in sources.items() if id is not None and id in ruled and not ruled[id].is_trained}


def _trained_elsewhere(store: Store, judged: Judged) -> set[int]:
    """The steps of a branch, by index, that come from corrections without all parts of the step as it was.

    The run that was corrected trains them, behind the plan and the thought that the model is served with there.
    """
    shared = {}
    for index in range(len(judged.trajectory.steps)):
        if index not in judged.corrections and (found := origin_of(store, judged.trajectory, index)) is not None:
            shared[index] = found
    return {index for index, (correction, was) in shared.items() if correction.parts_not_given(was)}


def _accepted(judged: Judged, held_back: Collection[int]) -> TrainingRow | None:
    """Every readable step. A later correction of an accepted run ends it there: what followed is stale."""
    trajectory, fixes = judged.trajectory, judged.corrections
    end = min(fixes, default=len(trajectory.steps) - 1)
    targets = {index: step for index, step in judged.backed().items() if index <= end and index not in held_back}
    if end in targets and end in fixes:
        targets[end] = fixes[end].as_target(trajectory.steps[end])
    if not targets or judged.rating is None:
        return None
    reviewers = tuple(dict.fromkeys([judged.rating.reviewer, *([fixes[end].reviewer] if fixes else [])]))
    return TrainingRow(
        trajectory.id, trajectory.task.id, "accepted", _cut(trajectory, max(targets)), targets, reviewers
    )


def _corrected(judged: Judged, ruled: Mapping[str, Ruling]) -> list[TrainingRow]:
    trajectory = judged.trajectory
    return [
        TrainingRow(
            trajectory.id,
            trajectory.task.id,
            "corrected",
            _cut(trajectory, fix.step),
            {fix.step: fix.as_target(trajectory.steps[fix.step])},
            (fix.reviewer,),
        )
        for fix in judged.corrections.values()
        if ruled[fix.id].is_trained
    ]


def _why_none(store: Store, judged: Judged, ruled: Mapping[str, Ruling]) -> str:
    if not judged.accepted and not judged.corrections:
        return "rated down and not corrected"
    if judged.accepted and not judged.backed():
        return "rated up, and no step of it can be read or was given whole"
    if judged.accepted and _trained_elsewhere(store, judged):
        return "its corrected step is trained in the run that was corrected"
    held = [ruled[one.id].why_held_back for one in judged.corrections.values() if not ruled[one.id].is_trained]
    return "; ".join(held) or "all that counts of it comes from corrections that are not trained"


def _cut(trajectory: Trajectory, last: int) -> Trajectory:
    return replace(trajectory, steps=trajectory.steps[: last + 1])


def tools_of(rows: Iterable[TrainingRow]) -> set[str]:
    """Names of every tool that the rows' runs had."""
    return {name for row in rows for name in row.trajectory.provenance.tools}
