"""Recalls solved tasks: the first steps, backed by people, of the tasks most like a new one.

What a reviewer accepts or corrects helps from the next run on, before any tuning. A regression from texts to
beginnings says which ones are likely, and each is shown by the task most like the new one. The store is the truth;
here lie only vectors of it in memory, brought up to date before each search. Texts are compared, and shown, without
their numbers: which order was meant says nothing of how to go about it. Safe to call from several threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.memory.encoder import Encoder, Vectors
from agent.memory.regression import LabelRegression
from agent.store import Store
from agent.trajectory import Recalled, Step, Trajectory

MOST = 2000
"""Solved tasks that are searched: the newest."""

MAX_TEXT = 160
"""Characters of a task's text that are shown."""

SAME_SCORE = 0.95
"""Cosine from which two texts are the same wording."""


@dataclass(frozen=True)
class _Known:
    task: str
    shown: Recalled
    vector: Vectors


class _Fitted:
    """What is known, ready to be searched."""

    def __init__(self, known: Sequence[_Known]) -> None:
        self.known = known
        self.matrix = np.stack([one.vector for one in known])
        self.labels = [str((one.shown.tool, one.shown.plan)) for one in known]
        self.regression = LabelRegression(self.matrix, self.labels)


class Recall:
    """The solved tasks of one store."""

    def __init__(self, store: Store, encoder: Callable[[], Encoder]) -> None:
        """`encoder` is called when there is something to compare, and not before."""
        self._store = store
        self._encoder = encoder
        self._lock = threading.Lock()
        self._seen = 0
        self._known: dict[str, _Known] = {}
        """By run, in the order in which they were last judged."""
        self._fitted: _Fitted | None = None

    @property
    def version(self) -> int:
        """Changes whenever feedback is given or a run is forgotten."""
        return self._store.feedback_count()

    def search(
        self, text: str, k: int, *, leave_out: str | None = None, same_wording: bool = True
    ) -> tuple[Recalled, ...]:
        """The `k` likeliest beginnings, each with the task most like `text` that began so; the likeliest last.

        `leave_out` is the id of a task that is not to be found; without `same_wording`, neither are those that
        say just the same: so that a model trained on the result learns to choose and not to copy.
        """
        with self._lock:
            self._refresh()
            if not self._known:
                return ()
            if self._fitted is None:
                self._fitted = _Fitted(list(self._known.values()))
            fitted = self._fitted
        vector = self._encoder().encode([plain(text)])[0]
        alike = fitted.matrix @ vector
        hidden = {
            place
            for place, one in enumerate(fitted.known)
            if one.task == leave_out or (not same_wording and alike[place] >= SAME_SCORE)
        }
        scores = fitted.regression.scores(vector, without=sorted(hidden))
        nearest: dict[str, int] = {}
        for place in np.argsort(-alike, kind="stable"):
            if place not in hidden:
                nearest.setdefault(fitted.labels[place], int(place))
        ranked = [name for _, name in sorted(zip(-scores, fitted.regression.names, strict=True)) if name in nearest]
        return tuple(fitted.known[nearest[name]].shown for name in reversed(ranked[:k]))

    def _refresh(self) -> None:
        """Look at the runs that were judged or forgotten since the last time."""
        newest, runs = self._store.judged_since(self._seen)
        if newest == self._seen:
            return
        for run in self._store.forgotten_since(self._seen):
            self._known.pop(run, None)
        fresh: list[tuple[Trajectory, Recalled]] = []
        for trajectory in self._store.trajectories(runs):
            self._known.pop(trajectory.id, None)
            shown = self._backed(trajectory)
            if shown is not None:
                fresh.append((trajectory, shown))
        vectors = self._encoder().encode([shown.text for _, shown in fresh]) if fresh else ()
        for (trajectory, shown), vector in zip(fresh, vectors, strict=True):
            self._known[trajectory.id] = _Known(trajectory.task.id, shown, vector)
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        self._seen, self._fitted = newest, None

    def _backed(self, trajectory: Trajectory) -> Recalled | None:
        """How the task began, if people stand behind it: the first step of an accepted run, or its correction."""
        correction = self._store.newest_corrections(trajectory.id).get(0)
        if correction is not None:
            return _shown(trajectory, correction.as_step())
        ratings = self._store.ratings(trajectory.id)
        accepted = bool(ratings) and ratings[-1].verdict == "up"
        return _shown(trajectory, trajectory.steps[0]) if accepted and trajectory.steps else None


def plain(text: str) -> str:
    """A task's text in one line, its numbers hidden and cut to what is shown."""
    line = " ".join(re.sub(r"\d{3,}", "#", text).split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _shown(trajectory: Trajectory, step: Step) -> Recalled | None:
    if step.call is None:
        return None
    return Recalled(plain(trajectory.task.text), step.call.name, step.plan)
