"""Runs as plain JSON for whoever asks from outside, the same from the command line and over HTTP.

These forms are for reading; the record itself is written by `agent.records.run` alone.
"""

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
    """How a run came out."""
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
    """The whole run, with what people said of it."""
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
    """Something that happened in a run; the step's token ids and texts of passages are left to the record."""
    view: dict[str, Any] = {"kind": event.kind, "run": event.trajectory.id}
    if event.kind == "text":
        view["text"] = event.text
    if event.step is not None:
        view["step"] = _step_view(event.step, observed=event.kind == "observed")
    return {**view, **result_view(event.trajectory)} if event.kind == "ended" else view


def citation_view(passage: Passage) -> dict[str, Any]:
    return {"label": passage.label, "document": passage.document, "heading": passage.heading}


def grounding_view(trajectory: Trajectory) -> dict[str, Any] | None:
    """What the answer's sentences rest on, and which were withheld; None where it was not checked."""
    found = trajectory.steps[-1].grounding if trajectory.steps else None
    return None if found is None else _grounding_view(found)


def last_words(trajectory: Trajectory) -> str | None:
    """The answer as it is given, or why the run was handed over; None for a run that ended otherwise."""
    if trajectory.outcome not in ("answered", "refused") or not trajectory.steps:
        return None
    if trajectory.outcome is Outcome.ANSWERED and trajectory.steps[-1].grounding is not None:
        return trajectory.answer
    call = trajectory.steps[-1].call
    arguments = {} if call is None else call.arguments
    words = arguments.get("text", arguments.get("reason", trajectory.steps[-1].observation))
    return str(words)


def _grounding_view(found: Grounding) -> dict[str, Any]:
    return {
        "mode": found.mode,
        "sentences": [
            {**asdict(one), "withheld": found.mode == "withhold" and not one.supported} for one in found.sentences
        ],
    }


def _step_view(step: Step, *, observed: bool) -> dict[str, Any]:
    if step.grounding is not None and step.call is not None:
        # Whoever watches a run is told what whoever asked is given.
        said = replace(step.call, arguments={**step.call.arguments, "text": step.grounding.reply})
        step = replace(step, call=said, observation=step.grounding.reply)
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
