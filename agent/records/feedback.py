"""Records of feedback: ratings, corrections of steps and of outputs, and the kind of a correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from agent.records.run import Part, Step, ToolCall

Kind = Literal["fact", "habit", "exception"]
"""What a correction shows: a habit is trained and recalled; a fact is a knowledge gap, neither trained nor recalled; an
exception is recalled alone."""


@dataclass(frozen=True)
class Rating:
    """A person's verdict on a whole run."""

    id: str
    run: str
    verdict: Literal["up", "down"]
    reviewer: str
    reason: str
    at: str


@dataclass(frozen=True)
class Correction:
    """The step that a reviewer wants in place of one of a run. The newest of a step counts."""

    id: str
    run: str
    step: int
    """Index of the step, from 0."""
    call: ToolCall
    thought: str
    """Empty where the reviewer gave none; then the step's own is not trained."""
    plan: tuple[str, ...]
    """Empty where the reviewer gave none, or the step has no place for one."""
    reviewer: str
    reason: str
    at: str
    only_given: bool = False
    """Whether `thought` and `plan` hold only what the reviewer gave. False in records of older versions, which copied
    those of the step."""

    def without_copies(self, was: Step) -> Correction:
        """Return the correction without a thought or plan that an older version copied from the step as it was.

        In such a record, words that equal the step's own are taken to be copies.
        """
        if self.only_given:
            return self
        return replace(
            self,
            thought="" if self.thought == was.thought else self.thought,
            plan=() if self.plan == was.plan else self.plan,
            only_given=True,
        )

    def as_step(self) -> Step:
        """Return the corrected step, without an observation."""
        return Step(self.call, thought=self.thought, plan=self.plan, author="correction")

    def as_target(self, was: Step) -> Step:
        """Return the corrected step as a training target.

        The model generates its plan and thought before the call. Where the reviewer gave none, those of the original
        step stay before the corrected call, as context.
        """
        given = self.without_copies(was)
        return replace(
            given.as_step(),
            thought=given.thought or was.thought,
            plan=given.plan or was.plan,
            context_parts=given.parts_not_given(was),
        )

    def parts_not_given(self, was: Step) -> tuple[Part, ...]:
        """Return the parts that the step had and the reviewer did not give."""
        given = self.without_copies(was)
        parts: list[Part] = []
        if was.plan and not given.plan:
            parts.append("plan")
        if was.thought and not given.thought:
            parts.append("thought")
        return tuple(parts)


@dataclass(frozen=True)
class OutputCorrection:
    """The output that a reviewer wants of a trained task that a step called. The newest of a step counts.

    The task is trained on it, not the language model: the call itself was right.
    """

    id: str
    run: str
    step: int
    tool: str
    output: Mapping[str, Any]
    """In the form of the tool's result, without scores."""
    reviewer: str
    reason: str
    at: str


@dataclass(frozen=True)
class Arbitration:
    """The kind that a reviewer gave a correction. The newest of a correction counts."""

    id: str
    run: str
    """Of the correction."""
    correction: str
    """Its id."""
    kind: Kind
    by: Literal["rule", "reviewer"]
    """"rule" in records of older versions; those are ignored."""
    reviewer: str
    reason: str
    at: str
    superseded_by: str | None = None
    """Set in records by "rule" only."""
