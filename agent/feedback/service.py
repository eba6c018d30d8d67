"""Gives feedback on recorded runs: checks and masks it, appends it to the store, and returns the record.

The CLI, the HTTP service and the Python API all call these functions. Ids and times are made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from agent.feedback.validation import make_arbitration, make_correction, make_output_correction, make_rating
from agent.records.feedback import Arbitration, Correction, OutputCorrection, Rating
from agent.run.tools import make_frame
from agent.runtime import Runtime
from agent.util.ids import timestamp


def rate(runtime: Runtime, run: str, verdict: str, *, reviewer: str, reason: str = "") -> Rating:
    """Rate a whole run.

    Args:
        runtime: the project of the run.
        run: its id, a unique beginning of it, or "last".
        verdict: "up" or "down".
        reviewer: who gives the feedback.
        reason: kept with it.

    Raises:
        StoreError: there is no such run.
        FeedbackError: the verdict is another, or the reviewer has no name.
    """
    trajectory = runtime.store.get(run)
    rating = make_rating(
        trajectory,
        verdict,
        scrubber=runtime.scrubber_of(trajectory),
        reviewer=reviewer,
        reason=reason,
        id=_new_id(),
        at=timestamp(),
    )
    runtime.store.feedback.add_rating(rating)
    return rating


def correct(
    runtime: Runtime,
    run: str,
    step: int,
    *,
    reviewer: str,
    tool: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    changes: Mapping[str, str] | None = None,
    answer: str | None = None,
    citations: Sequence[int] | None = None,
    thought: str | None = None,
    plan: Sequence[str] | None = None,
    reason: str = "",
    kind: str | None = None,
) -> Correction:
    """Correct a step of a run.

    The parts of the step, `tool` to `plan`, are described in `agent.feedback.validation.make_correction`; None for a
    part that is not corrected.

    Args:
        runtime: the project of the run.
        run: its id, a unique beginning of it, or "last".
        step: index of the step, from 0.
        reviewer: who gives the feedback.
        reason: kept with it.
        kind: "habit", "fact" for a knowledge gap, or "exception"; only a habit is trained. None is a habit too.

    Raises:
        StoreError: there is no such run.
        FeedbackError: the correction is not a step that the model could have generated there.
    """
    trajectory = runtime.store.get(run)
    scrubber = runtime.scrubber_of(trajectory)
    with runtime.checking_tools(trajectory.task) as tools:
        correction = make_correction(
            trajectory,
            step,
            tools=tools,
            frame=make_frame(tools, runtime.options),
            scrubber=scrubber,
            tool=tool,
            arguments=arguments,
            changes=changes,
            answer=answer,
            citations=citations,
            thought=thought,
            plan=plan,
            reviewer=reviewer,
            reason=reason,
            id=_new_id(),
            at=timestamp(),
        )
    arbitration = None
    if kind is not None:
        # Before anything is stored: a correction with a wrong kind is not kept either.
        arbitration = make_arbitration(
            correction, kind, scrubber=scrubber, reviewer=reviewer, reason=reason, id=_new_id(), at=timestamp()
        )
    runtime.store.feedback.add_correction(correction)
    if arbitration is not None:
        runtime.store.feedback.add_arbitration(arbitration)
    return correction


def correct_output(
    runtime: Runtime, run: str, step: int, output: str, *, reviewer: str, reason: str = ""
) -> OutputCorrection:
    """Correct the output of a trained task that a step called; the next `ratchet task tune` learns from it.

    Args:
        runtime: the project of the run, opened with its trained tasks.
        run: its id, a unique beginning of it, or "last".
        step: index of the step, from 0.
        output: the output that the task should have given, as text.
        reviewer: who gives the feedback.
        reason: kept with it.

    Raises:
        StoreError: there is no such run.
        FeedbackError: the step called no trained task, or the task cannot give this output.
    """
    trajectory = runtime.store.get(run)
    correction = make_output_correction(
        trajectory,
        step,
        output,
        right_output=runtime.tasks.right_output,
        scrubber=runtime.scrubber_of(trajectory),
        reviewer=reviewer,
        reason=reason,
        id=_new_id(),
        at=timestamp(),
    )
    runtime.store.feedback.add_output_correction(correction)
    return correction


def arbitrate(runtime: Runtime, correction: str, kind: str, *, reviewer: str, reason: str = "") -> Arbitration:
    """Change the kind of a correction.

    Args:
        runtime: the project of the run.
        correction: its id, or a unique beginning of it.
        kind: "habit", "fact" for a knowledge gap, or "exception"; only a habit is trained.
        reviewer: who gives the feedback.
        reason: kept with it.

    Raises:
        FeedbackError: there is no such correction or kind.
    """
    store = runtime.store
    corrected = store.feedback.correction(correction)
    arbitration = make_arbitration(
        corrected,
        kind,
        scrubber=runtime.scrubber_of(store.get(corrected.run)),
        reviewer=reviewer,
        reason=reason,
        id=_new_id(),
        at=timestamp(),
    )
    store.feedback.add_arbitration(arbitration)
    return arbitration


def _new_id() -> str:
    return uuid4().hex
