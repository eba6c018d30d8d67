"""Small parts the tests of suites, checks, evaluation and gate are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory, Usage
from tools.context import Passage
from tuner.evaluation.checks import RunScores
from tuner.evaluation.evaluate import EvaluatedTask, Evaluation
from tuner.evaluation.suite import Check, SuiteTask


def suite_task(identifier: str = "t-1", *, group: str = "orders", **check: Any) -> SuiteTask:
    return SuiteTask(identifier, group, Task(identifier, f"Do {identifier}."), Check(**check))


def step(tool: str, arguments: Mapping[str, Any] | None = None, **more: Any) -> Step:
    usage = Usage(prompt=100, cached=60, forced=5, sampled=10)
    return Step(ToolCall(tool, arguments or {}), usage=usage, **more)


def answered(text: str = "Done.", *before: Step, citations: Sequence[int] = ()) -> Trajectory:
    last = step("answer", {"text": text, "citations": list(citations)})
    return trajectory(*before, last, outcome=Outcome.ANSWERED)


def refused(reason: str = "Not allowed.", *before: Step) -> Trajectory:
    return trajectory(*before, step("hand_over", {"reason": reason}), outcome=Outcome.REFUSED)


def trajectory(*steps: Step, outcome: Outcome | None, provenance: Provenance | None = None) -> Trajectory:
    made_by = provenance or Provenance(base="small", base_revision="r1")
    return Trajectory("run-1", Task("t-1", "Do it."), made_by, "2026-01-01T00:00:00Z", steps, outcome)


def passage(label: int, document: str) -> Passage:
    return Passage(label, f"p{label}", document, "Heading", "text")


def evaluation(
    verdicts: Mapping[str, bool],
    *,
    groups: Mapping[str, str] | None = None,
    refusals: Sequence[str] = (),
    adapter: str | None = None,
) -> Evaluation:
    """One row for each id; ids in `refusals` are to be handed over, and are when the verdict is true."""
    rows = tuple(
        EvaluatedTask(
            task=identifier,
            group=(groups or {}).get(identifier, "all"),
            text=f"Do {identifier}.",
            expects_refusal=identifier in refusals,
            scores=RunScores(
                success=good,
                tool=good,
                refusal=good if identifier in refusals else True,
                reasons=() if good else ("the tool <b>refund</b> | was never called",),
            ),
            outcome=Outcome.ANSWERED,
            answer="<script>alert(1)</script>",
            prompt_tokens=40,
            sampled_tokens=20,
            seconds=1.5,
            steps=2,
        )
        for identifier, good in verdicts.items()
    )
    return Evaluation("suite-hash", "small", "r1", adapter, None if adapter is None else f"{adapter}-hash", rows)
