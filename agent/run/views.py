"""Runs as plain JSON for the command line and HTTP. The record itself is written by `agent.records.run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from agent.records.feedback import Correction, OutputCorrection, Rating
from agent.records.run import Grounding, Outcome, Step, Trajectory, to_json
from agent.storage.store import RunSummary
from tools.context import Passage

if TYPE_CHECKING:
    from agent.run.state import Event


def result_view(trajectory: Trajectory) -> dict[str, Any]:
    """Return the outcome of a run: answer, citations, check, and counts."""
    return {
        "id": trajectory.id,
        "outcome": trajectory.outcome,
        "meaning": "" if trajectory.outcome is None else trajectory.outcome.meaning,
        "answer": last_words(trajectory),
        "citations": [citation_view(passage) for passage in trajectory.citations],
        "grounding": grounding_view(trajectory),
        "adapter": trajectory.provenance.adapter,
        "adapter_hash": trajectory.provenance.adapter_hash,
        "steps": len(trajectory.steps),
        "tokens": trajectory.tokens,
        "error": None if trajectory.error is None else trajectory.error.strip().rpartition("\n")[2],
    }


def run_view(
    trajectory: Trajectory,
    corrections: Sequence[Correction] = (),
    ratings: Sequence[Rating] = (),
    outputs: Sequence[OutputCorrection] = (),
) -> dict[str, Any]:
    """Return the whole run with the feedback on it."""
    record: dict[str, Any] = json.loads(to_json(trajectory))
    return {
        **record,
        "answer": last_words(trajectory),
        "citations": [citation_view(passage) for passage in trajectory.citations],
        "grounding": grounding_view(trajectory),
        "corrections": [asdict(one) for one in corrections],
        "outputs": [asdict(one) for one in outputs],
        "ratings": [asdict(one) for one in ratings],
    }


def summary_view(summary: RunSummary) -> dict[str, Any]:
    return asdict(summary)


def event_view(event: Event) -> dict[str, Any]:
    """Return an event of a run, without token ids and texts of passages."""
    view: dict[str, Any] = {"kind": event.kind, "run": event.trajectory.id}
    if event.kind == "text":
        view["text"] = event.text
    if event.step is not None:
        view["step"] = _step_view(event.step, observed=event.kind == "observed")
    return {**view, **result_view(event.trajectory)} if event.kind == "ended" else view


def citation_view(passage: Passage) -> dict[str, Any]:
    return {"label": passage.label, "document": passage.document, "heading": passage.heading}


def grounding_view(trajectory: Trajectory) -> dict[str, Any] | None:
    """Return the check of the answer's sentences; None where it was not checked."""
    grounding = trajectory.steps[-1].grounding if trajectory.steps else None
    return None if grounding is None else _grounding_view(grounding)


def last_words(trajectory: Trajectory) -> str | None:
    """Return the answer as the caller got it, or the reason of an escalation; None for another outcome."""
    if trajectory.outcome not in ("answered", "refused") or not trajectory.steps:
        return None
    if trajectory.outcome is Outcome.ANSWERED and trajectory.steps[-1].grounding is not None:
        return trajectory.answer
    call = trajectory.steps[-1].call
    arguments = {} if call is None else call.arguments
    words = arguments.get("text", arguments.get("reason", trajectory.steps[-1].observation))
    return str(words)


def _grounding_view(grounding: Grounding) -> dict[str, Any]:
    return {
        "mode": grounding.mode,
        "sentences": [
            {**asdict(one), "withheld": grounding.mode == "withhold" and not one.supported}
            for one in grounding.sentences
        ],
    }


def _step_view(step: Step, *, observed: bool) -> dict[str, Any]:
    if step.grounding is not None and step.call is not None:
        # An observer of the run sees the same answer as the caller.
        reply = replace(step.call, arguments={**step.call.arguments, "text": step.grounding.reply})
        step = replace(step, call=reply, observation=step.grounding.reply)
    view: dict[str, Any] = {
        "plan": list(step.plan),
        "thought": step.thought,
        "call": None if step.call is None else asdict(step.call),
    }
    if observed:
        view |= {
            "observation": step.observation,
            "error": step.error,
            "effect_unknown": step.effect_unknown,
            "notice": step.notice,
            "grounding": None if step.grounding is None else _grounding_view(step.grounding),
            "passages": [citation_view(passage) for passage in step.passages],
            "tokens": step.usage.total,
        }
    return view
