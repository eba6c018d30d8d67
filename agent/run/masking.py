"""The scrubbers of a process's runs: what a run and the feedback on it have as placeholders.

Values are kept in memory alone and never written; after a restart a placeholder cannot be put back.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import asdict, replace

from agent.privacy.redaction import Scrubber
from agent.records.run import Grounding, ToolCall, Trajectory
from agent.storage.store import Store

MAX_SCRUBBERS = 4096
"""Runs whose values are kept; those of the oldest are dropped."""


class RunScrubbers:
    """A scrubber for each run, by its id. Safe to share between threads."""

    def __init__(self) -> None:
        self._scrubbers: OrderedDict[str, Scrubber] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run_id: str) -> Scrubber:
        """Return the scrubber of a run; a new one where this process has none."""
        with self._lock:
            scrubber = self._scrubbers.setdefault(run_id, Scrubber())
            while len(self._scrubbers) > MAX_SCRUBBERS:
                self._scrubbers.popitem(last=False)
            return scrubber

    def share(self, run_id: str, scrubber: Scrubber) -> None:
        """Give a run the scrubber of another, so that both have the same placeholders."""
        with self._lock:
            self._scrubbers[run_id] = scrubber

    def for_record(self, trajectory: Trajectory, store: Store) -> Scrubber:
        """Return the scrubber for a recorded run or for feedback on it.

        As long as this process did the run, a value has the placeholder it has there. For a run of an earlier process,
        and for a new value, the placeholder is one that neither the run nor the feedback on it has.
        """
        scrubber, run, feedback = self.get(trajectory.id), trajectory.id, store.feedback
        record = [asdict(trajectory), *(asdict(rating) for rating in feedback.ratings(run))]
        record += [asdict(correction) for correction in feedback.corrections(run)]
        record += [asdict(correction) for correction in feedback.output_corrections(run)]
        record += [asdict(arbitration) for arbitration in feedback.arbitrations() if arbitration.run == run]
        scrubber.reserve(json.dumps(record, ensure_ascii=False))
        return scrubber

    def reveal(self, trajectory: Trajectory) -> Trajectory:
        """Put the values back into a run's calls and its answer, for the caller. Not for the log."""
        scrubber = self._scrubbers.get(trajectory.id)
        if scrubber is None:
            return trajectory
        steps = []
        for step in trajectory.steps:
            if step.call is not None:
                step = replace(step, call=ToolCall(step.call.name, scrubber.unmask(dict(step.call.arguments))))
            if step.grounding is not None:
                step = replace(step, grounding=_unmask_grounding(step.grounding, scrubber))
            steps.append(step)
        return replace(trajectory, steps=tuple(steps))


def _unmask_grounding(grounding: Grounding, scrubber: Scrubber) -> Grounding:
    texts = scrubber.unmask({"reply": grounding.reply, "sentences": [one.text for one in grounding.sentences]})
    sentences = zip(grounding.sentences, texts["sentences"], strict=True)
    return replace(
        grounding,
        reply=texts["reply"],
        sentences=tuple(replace(sentence, text=text) for sentence, text in sentences),
    )
