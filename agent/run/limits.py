"""The limits of a run: its budget, repeated calls, and steps that cannot be parsed. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.records.run import Outcome, Step, Trajectory

REPEATED = "You made this same call before and got the same result. Do something else, or answer."
UNREADABLE_IN_A_ROW = 3
"""Consecutive steps that cannot be parsed, after which a run has failed."""


@dataclass(frozen=True)
class Budget:
    """What a run may use before it ends."""

    steps: int = 8
    tokens: int = 8000
    """Uncached, forced and sampled tokens of all steps."""
    seconds: float = 300.0


def exceeded_budget(trajectory: Trajectory, budget: Budget, seconds: float) -> Outcome | None:
    """Return the outcome of a run whose budget does not allow a further step; None where it does."""
    if len(trajectory.steps) >= budget.steps:
        return Outcome.OUT_OF_STEPS
    if trajectory.tokens >= budget.tokens:
        return Outcome.OUT_OF_TOKENS
    if seconds >= budget.seconds:
        return Outcome.OUT_OF_TIME
    return None


def count_repeats(steps: Sequence[Step], latest: Step) -> int:
    """Return how often the call of the latest step gave the same result before."""
    return sum(
        step.call is not None
        and step.call == latest.call
        and (step.observation, step.error) == (latest.observation, latest.error)
        for step in steps
    )


def has_failed(steps: Sequence[Step]) -> bool:
    """Return whether none of the last `UNREADABLE_IN_A_ROW` steps could be parsed."""
    last = steps[-UNREADABLE_IN_A_ROW:]
    return len(last) == UNREADABLE_IN_A_ROW and all(step.call is None for step in last)
