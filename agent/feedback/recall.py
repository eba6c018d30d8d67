"""Recalls solved tasks: the first steps, backed by people, of the tasks most like a new one.

What a reviewer accepts or corrects helps from the next run on, before any tuning. A regression from texts to
beginnings says which ones are likely, and each is shown by the task most like the new one, with its share. A beginning
is a call with its plan and what it chose of what the tool lets it choose from; the names of such choices are examples
of them as well, as soon as one task has taken them and they name one beginning alone. The store is the truth;
here lie only vectors of it in memory, brought up to date before each search. Texts are compared, and shown, without
their numbers: which order was meant says nothing of how to go about it. What a correction says that belongs in the
documents, or was taken back by a newer one, is not shown. Safe to call from several threads.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agent.encoders.encoder import Encoder, Vectors
from agent.feedback.approved import judged_runs, origin_of, rulings, source
from agent.feedback.cases import Case, asked_the_same, case_of, superseded
from agent.feedback.label_regression import LabelRegression
from agent.knowledge.chunking import TokenCounter
from agent.llm.prompt.render import recalled_text
from agent.llm.prompt.step_grammar import ToolSpec, chosen
from agent.records.run import Recalled, ToolCall, Trajectory
from agent.storage.store import Store
from agent.text.normalise import SAME_SCORE, plain

MOST = 2000
"""Solved tasks that are searched: the newest."""

Embed = Callable[[Sequence[str]], Vectors]
Choices = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class _Known:
    task: str
    call: ToolCall
    shown: Recalled
    """Without its choices, which are the tools' to say, and its share."""
    vector: Vectors
    case: Case
    source: str | None
    """The correction that the step comes from, if it comes from one."""


class _Fitted:
    """What is known, ready to be searched."""

    def __init__(self, known: Sequence[_Known], tools: Sequence[ToolSpec], embed: Embed) -> None:
        self.known = known
        if not known:
            return
        self.matrix = np.stack([one.vector for one in known])
        self.shown = [replace(one.shown, choices=chosen(one.call, tools)) for one in known]
        self.labels = [str((one.tool, one.choices, one.plan)) for one in self.shown]
        named = {
            label: choice_name(one.choices) for label, one in zip(self.labels, self.shown, strict=True) if one.choices
        }
        shared = Counter(named.values())
        named = {label: name for label, name in named.items() if shared[name] == 1}
        self.complete = _complete({(one.tool, one.choices) for one in self.shown}, tools)
        vectors = [self.matrix, *([embed(list(named.values()))] if named else [])]
        self.regression = LabelRegression(np.concatenate(vectors), [*self.labels, *named], texts=len(known))


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
        self._fitted: tuple[Choices, _Fitted] | None = None
        """With what could be chosen."""

    @property
    def version(self) -> int:
        """Changes whenever feedback is given or a run is forgotten."""
        return self._store.feedback_count()

    def search(
        self,
        text: str,
        k: int,
        *,
        tools: Sequence[ToolSpec] = (),
        leave_out: str | None = None,
        same_wording: bool = True,
    ) -> tuple[Recalled, ...]:
        """The `k` likeliest beginnings, each with the task most like `text` that began so; the likeliest last.

        `tools` say which arguments are choices: calls that chose otherwise are other beginnings.
        `leave_out` is the id of a task that is not to be found; without `same_wording`, neither are those that
        say just the same: so that a model trained on the result learns to choose and not to copy.
        """
        with self._lock:
            self._refresh()
            if not self._known:
                return ()
            choices = tuple((tool.name, *tool.choices.items()) for tool in tools)
            if self._fitted is None or self._fitted[0] != choices:
                self._fitted = choices, _Fitted(self._counting(), tools, lambda texts: self._encoder().encode(texts))
            fitted = self._fitted[1]
        if not fitted.known:
            return ()
        vector = self._encoder().encode([plain(text)])[0]
        alike = fitted.matrix @ vector
        hidden = {
            place
            for place, one in enumerate(fitted.known)
            if one.task == leave_out or (not same_wording and alike[place] >= SAME_SCORE)
        }
        scores = fitted.regression.scores(vector, without=sorted(hidden))
        closest = max((float(cosine) for place, cosine in enumerate(alike) if place not in hidden), default=-1.0)
        odds = fitted.regression.shares(scores, closest, complete=fitted.complete)
        shares = dict(zip(fitted.regression.names, odds.tolist(), strict=True))
        nearest: dict[str, int] = {}
        for place in np.argsort(-alike, kind="stable"):
            if place not in hidden:
                nearest.setdefault(fitted.labels[place], int(place))
        ranked = [name for _, name in sorted(zip(-scores, fitted.regression.names, strict=True)) if name in nearest]
        return tuple(
            replace(fitted.shown[nearest[name]], share=round(shares[name], 4)) for name in reversed(ranked[:k])
        )

    def _refresh(self) -> None:
        """Look at the runs that were judged or forgotten since the last time."""
        newest, runs = self._store.judged_since(self._seen)
        if newest == self._seen:
            return
        for run in self._store.forgotten_since(self._seen):
            self._known.pop(run, None)
        fresh: list[tuple[Trajectory, ToolCall, Recalled, Case, str | None]] = []
        for judged in judged_runs(self._store, runs):
            trajectory = judged.trajectory
            self._known.pop(trajectory.id, None)
            step = judged.backed().get(0)
            if step is None or step.call is None:
                continue
            correction = judged.corrections.get(0)
            plan = step.plan
            if correction is None and (found := origin_of(self._store, trajectory, 0)) is not None:
                # An older version copied the plan of the step as it was.
                plan = found[0].without_copies(found[1]).plan
            shown = Recalled(plain(trajectory.task.text), step.call.name, plan, trajectory.id)
            case = case_of(trajectory, 0, step, correction)
            fresh.append((trajectory, step.call, shown, case, source(self._store, judged, 0)))
        vectors = self._encoder().encode([shown.text for _, _, shown, _, _ in fresh]) if fresh else ()
        for (trajectory, call, shown, case, fix), vector in zip(fresh, vectors, strict=True):
            self._known[trajectory.id] = _Known(trajectory.task.id, call, shown, vector, case, fix)
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        self._seen, self._fitted = newest, None

    def _counting(self) -> list[_Known]:
        """What is known, without facts and without what a newer correction took back."""
        ruled = rulings(self._store)
        exceptions = {id for id, one in ruled.items() if one.kind == "exception" and one.is_reviewers}
        held = {id for id, one in ruled.items() if not one.is_recalled}
        counting = {one.source: one for one in self._known.values() if one.case.correction is not None}
        # At once, and not only when the rule is asked the next time.
        corrected = [counting[id] for id in ruled if id in counting and id not in held | exceptions]
        if corrected:
            matrix = np.stack([one.vector for one in corrected])
            cases = [one.case for one in corrected]
            same = asked_the_same([case.wording for case in cases], matrix @ matrix.T, SAME_SCORE)
            held |= superseded(cases, same).keys()
        return [one for one in self._known.values() if one.source not in held]


def _complete(seen: Collection[tuple[str, tuple[tuple[str, str], ...]]], tools: Sequence[ToolSpec]) -> bool:
    """Whether each call that these tools admit, told apart by what is chosen, has been seen."""
    ways = sum(math.prod(len(values) for values in tool.choices.values()) for tool in tools)
    if not tools or ways > len(seen):
        return False
    return all(
        (tool.name, tuple(zip(tool.choices, values, strict=True))) in seen
        for tool in tools
        for values in itertools.product(*tool.choices.values())
    )


def choice_name(choices: Sequence[tuple[str, str]]) -> str:
    """What was chosen, as words."""
    return " ".join(value.replace("_", " ") for _, value in choices)


def capped(found: Sequence[Recalled], most: int, count: Callable[[], TokenCounter]) -> tuple[Recalled, ...]:
    """The last of `found`, the likeliest, as many as take no more than `most` tokens together.

    `count` is asked for a counter only where the bytes, of which a token has at least one, are too many.
    """
    texts = [recalled_text(one) for one in found]
    if sum(len(text.encode()) for text in texts) <= most:
        return tuple(found)
    tokens = count()
    first = len(found)
    while first and (most := most - tokens(texts[first - 1])) >= 0:
        first -= 1
    return tuple(found[first:])
