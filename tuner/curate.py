"""Feedback becomes training rows: which steps of which runs are to be said, and why the others are not.

A row is a run and the steps of it that people stand behind. A run whose newest rating is up gives all its
steps; a corrected step is a row of its own, in the context it was made in. Steps that nobody looked at, or that
only a thumb down touched, teach nothing. What customers, documents and tools said is context, never a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.store import Store
from agent.trajectory import Correction, Step, Trajectory

Kind = Literal["accepted", "corrected"]


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


def curate(store: Store) -> Curated:
    """Go through every run in the store, oldest first."""
    verdicts = {rating.run: rating for rating in store.ratings()}
    corrections: dict[str, dict[int, Correction]] = {}
    for correction in store.corrections():
        corrections.setdefault(correction.run, {})[correction.step] = correction
    rows: list[TrainingRow] = []
    left_out: dict[str, str] = {}
    judged = {*verdicts, *corrections}
    for trajectory in store.trajectories(one.id for one in reversed(store.runs(limit=None)) if one.id in judged):
        fixes = corrections.get(trajectory.id, {})
        rating = verdicts.get(trajectory.id)
        if rating is not None and rating.verdict == "up":
            accepted = _accepted(trajectory, fixes, rating.reviewer)
            if accepted is None:
                left_out[trajectory.id] = "rated up, and no step of it can be read"
            else:
                rows.append(accepted)
        elif fixes:
            rows += [_corrected(trajectory, fix) for fix in fixes.values()]
        else:
            left_out[trajectory.id] = "rated down and not corrected"
    accepted_runs = sum(rating.verdict == "up" for rating in verdicts.values())
    return Curated(tuple(rows), left_out, sum(map(len, corrections.values())), accepted_runs)


def _accepted(trajectory: Trajectory, fixes: Mapping[int, Correction], reviewer: str) -> TrainingRow | None:
    """Every readable step. A later correction of an accepted run ends it there: what followed is stale."""
    end = min(fixes, default=len(trajectory.steps) - 1)
    targets = {index: step for index, step in enumerate(trajectory.steps[: end + 1]) if step.call is not None}
    if fixes:
        targets[end] = fixes[end].as_step()
    if not targets:
        return None
    reviewers = tuple(dict.fromkeys([reviewer, *([fixes[end].reviewer] if fixes else [])]))
    return TrainingRow(
        trajectory.id, trajectory.task.id, "accepted", _cut(trajectory, max(targets)), targets, reviewers
    )


def _corrected(trajectory: Trajectory, fix: Correction) -> TrainingRow:
    targets = {fix.step: fix.as_step()}
    return TrainingRow(
        trajectory.id, trajectory.task.id, "corrected", _cut(trajectory, fix.step), targets, (fix.reviewer,)
    )


def _cut(trajectory: Trajectory, last: int) -> Trajectory:
    return replace(trajectory, steps=trajectory.steps[: last + 1])


def tools_of(rows: Iterable[TrainingRow]) -> set[str]:
    """Names of every tool that the rows' runs had."""
    return {name for row in rows for name in row.trajectory.provenance.tools}
