"""What the loop decides without a model: when a run must stop, and when it repeats itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.records.run import Outcome, Step, Trajectory

REPEATED = "You made this same call before and got the same result. Do something else, or answer."
UNREADABLE_IN_A_ROW = 3
"""Steps that cannot be read, one after the other, before a run has failed."""


@dataclass(frozen=True)
class Budget:
    """What a run may use before it is ended."""

    steps: int = 8
    tokens: int = 8000
    """Tokens read anew, forced or sampled, over all steps."""
    seconds: float = 300.0


def used_up(trajectory: Trajectory, budget: Budget, seconds: float) -> Outcome | None:
    """The outcome a run ends with before its next step, or None while there is room."""
    if len(trajectory.steps) >= budget.steps:
        return Outcome.OUT_OF_STEPS
    if trajectory.tokens >= budget.tokens:
        return Outcome.OUT_OF_TOKENS
    if seconds >= budget.seconds:
        return Outcome.OUT_OF_TIME
    return None


def repeats(steps: Sequence[Step], latest: Step) -> int:
    """How often the latest step's call has given the same result before."""
    return sum(
        step.call is not None
        and step.call == latest.call
        and (step.observation, step.error) == (latest.observation, latest.error)
        for step in steps
    )


def has_failed(steps: Sequence[Step]) -> bool:
    """Whether the last steps could all not be read."""
    last = steps[-UNREADABLE_IN_A_ROW:]
    return len(last) == UNREADABLE_IN_A_ROW and all(step.call is None for step in last)
