"""TODO: agent/records/feedback.py"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from agent.records.run import Part, Step, ToolCall

Kind = Literal["fact", "habit", "exception"]
"""Where a correction belongs: a fact in the documents, a habit in the weights, an exception in memory."""


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
    """What a person says a step should have been. Appended, never written over; the newest counts."""

    id: str
    run: str
    step: int
    """Index into the run's steps, from 0."""
    call: ToolCall
    thought: str
    """Empty where the reviewer gave none: what is not corrected is no target."""
    plan: tuple[str, ...]
    """Empty where the reviewer gave none, or the step is not to hold one."""
    reviewer: str
    reason: str
    at: str
    only_given: bool = False
    """Whether `thought` and `plan` hold only what the reviewer gave. False for records from before this was kept: there
    they may be the step's own."""

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
        """The step as the reviewer would have had it; what followed from the old one is not in it."""
        return Step(self.call, thought=self.thought, plan=self.plan, author="correction")

    def as_target(self, was: Step) -> Step:
        """Return the step as it is trained, in the place of the step as it was.

        A model is served with its own plan and thought in front of a call. So where the reviewer gave none, the step's
        own stay in front of the corrected call, as context.
        """
        given = self.without_copies(was)
        return replace(
            given.as_step(),
            thought=given.thought or was.thought,
            plan=given.plan or was.plan,
            context_parts=given.parts_not_given(was),
        )

    def parts_not_given(self, was: Step) -> tuple[Part, ...]:
        """Name the parts that the step had and the reviewer did not give."""
        given = self.without_copies(was)
        parts: list[Part] = []
        if was.plan and not given.plan:
            parts.append("plan")
        if was.thought and not given.thought:
            parts.append("thought")
        return tuple(parts)


@dataclass(frozen=True)
class OutputCorrection:
    """What a person says a trained task should have given. Appended, never written over; the newest counts.

    The step stays as it is: the call was right. The task learns from it, and not the model.
    """

    id: str
    run: str
    step: int
    tool: str
    output: Mapping[str, Any]
    """As the tool gives it, without scores."""
    reviewer: str
    reason: str
    at: str


@dataclass(frozen=True)
class Arbitration:
    """Where a correction belongs, and who decided it. Appended, never written over.

    A reviewer goes before the rule; of what each said the newest counts.
    """

    id: str
    run: str
    """Of the correction."""
    correction: str
    """Its id."""
    kind: Kind
    by: Literal["rule", "reviewer"]
    reviewer: str
    """Empty for the rule."""
    reason: str
    at: str
    superseded_by: str | None = None
    """Said by the rule alone: the id of a newer correction that says something else of the same."""
