"""Recall of solved tasks: the approved first steps of the tasks most like a new one.

A correction or an accepted run helps from the next run on, before any tuning. A regression from task texts to first
calls estimates which call is likely, and each call is represented by the task most like the new one. A first call is a
tool with its plan and the values that it took where the tool's schema lists them; the names of such values serve as
examples too, where one task has taken them and they stand for one call alone. Texts are compared without their numbers.
Knowledge gaps and superseded corrections are not recalled. The vectors are held in memory and updated from the store
before each search. Safe to use from several threads.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.encoders.encoder import Encoder, Vectors
from agent.feedback.approved import (
    ReviewedRun,
    branch_correction,
    correction_statuses,
    reviewed_runs,
    source_correction,
)
from agent.feedback.label_regression import LabelRegression
from agent.knowledge.chunking import TokenCounter
from agent.llm.prompt.render import recalled_text
from agent.llm.prompt.tool_spec import ToolSpec, enum_arguments
from agent.records.run import Recalled, Task, ToolCall
from agent.storage.store import Store
from agent.text.normalise import SAME_SCORE, normalise_task

if TYPE_CHECKING:
    from agent.config.settings import MemorySettings

MAX_TASKS = 2000
"""Solved tasks that are searched: the newest."""

Embed = Callable[[Sequence[str]], Vectors]
Choices = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class _SolvedTask:
    task: str
    call: ToolCall
    recalled: Recalled
    """Without choices, which depend on the tools, and without a share."""
    vector: Vectors
    correction: str | None
    """Id of the correction that the step comes from."""


class Recall:
    """Searches the solved tasks of one store."""

    def __init__(self, store: Store, encoder: Callable[[], Encoder]) -> None:
        """`encoder` is called when there are texts to compare, and not before."""
        self._store = store
        self._encoder = encoder
        self._lock = threading.Lock()
        self._version = 0
        self._solved: dict[str, _SolvedTask] = {}
        """By run, in the order of the newest feedback on them."""
        self._index: tuple[Choices, _Index] | None = None
        """With the values that the tools list."""

    @property
    def version(self) -> int:
        """A number that changes whenever feedback is given or a person is forgotten."""
        return self._store.feedback.version()

    def search(
        self,
        text: str,
        k: int,
        *,
        tools: Sequence[ToolSpec] = (),
        leave_out: str | None = None,
        same_wording: bool = True,
    ) -> tuple[Recalled, ...]:
        """Return the `k` likeliest first calls, each with the task most like `text` that began so; the likeliest last.

        Args:
            text: the new task.
            k: how many to return at most.
            tools: say which arguments are choices from a list; calls with other choices are then other first calls.
            leave_out: id of a task that is ignored.
            same_wording: False ignores tasks that say the same as `text` too, so that a model that is trained on the
                result learns to choose and not to copy.
        """
        with self._lock:
            self._refresh()
            if not self._solved:
                return ()
            choices = tuple((tool.name, *tool.choices.items()) for tool in tools)
            if self._index is None or self._index[0] != choices:
                self._index = choices, _Index(self._recallable(), tools, lambda texts: self._encoder().encode(texts))
            index = self._index[1]
        if not index.solved:
            return ()
        return index.search(
            self._encoder().encode([normalise_task(text)])[0], k, leave_out=leave_out, same_wording=same_wording
        )

    def _refresh(self) -> None:
        """Read the runs that were reviewed or forgotten since the last search."""
        version, runs = self._store.feedback.runs_since(self._version)
        if version == self._version:
            return
        for run in self._store.forgotten_since(self._version):
            self._solved.pop(run, None)
        solved: list[tuple[ReviewedRun, ToolCall, Recalled]] = []
        for reviewed in reviewed_runs(self._store, runs):
            trajectory = reviewed.trajectory
            self._solved.pop(trajectory.id, None)
            step = reviewed.approved_steps().get(0)
            if step is None or step.call is None:
                continue
            plan = step.plan
            if 0 not in reviewed.corrections and (origin := branch_correction(self._store, trajectory, 0)) is not None:
                # An older version copied the plan of the step as it was.
                plan = origin[0].without_copies(origin[1]).plan
            recalled = Recalled(normalise_task(trajectory.task.text), step.call.name, plan, trajectory.id)
            solved.append((reviewed, step.call, recalled))
        vectors = self._encoder().encode([recalled.text for _, _, recalled in solved]) if solved else ()
        for (reviewed, call, recalled), vector in zip(solved, vectors, strict=True):
            correction = source_correction(self._store, reviewed, 0)
            task = reviewed.trajectory.task.id
            self._solved[reviewed.trajectory.id] = _SolvedTask(task, call, recalled, vector, correction)
        while len(self._solved) > MAX_TASKS:
            del self._solved[next(iter(self._solved))]
        self._version, self._index = version, None

    def _recallable(self) -> list[_SolvedTask]:
        statuses = correction_statuses(self._store)
        excluded = {id for id, status in statuses.items() if not status.is_recalled}
        return [solved for solved in self._solved.values() if solved.correction not in excluded]


def recall_for(
    task: Task,
    recall: Recall,
    settings: MemorySettings,
    *,
    tools: Callable[[], Sequence[ToolSpec]],
    token_counter: Callable[[], TokenCounter],
    same_wording: bool = True,
) -> tuple[Recalled, ...]:
    """Return what a run of this task is given of solved tasks, as `memory.recall_as` says.

    "text" writes them into the prompt, up to `memory.recall_tokens`. "odds" writes nothing: the model's probabilities
    of the first call are multiplied with the shares.
    """
    as_text = settings.recall_as == "text"
    found = recall.search(
        task.text,
        settings.recall,
        tools=() if as_text else tools(),
        leave_out=task.id,
        same_wording=same_wording,
    )
    if as_text:
        found = tuple(replace(recalled, share=0.0) for recalled in found)
        return cut_to_tokens(found, settings.recall_tokens, token_counter)
    return tuple(replace(recalled, shown=False) for recalled in found)


def choice_name(choices: Sequence[tuple[str, str]]) -> str:
    """Return the chosen values as words."""
    return " ".join(value.replace("_", " ") for _, value in choices)


def cut_to_tokens(
    recalled: Sequence[Recalled], max_tokens: int, token_counter: Callable[[], TokenCounter]
) -> tuple[Recalled, ...]:
    """Return the last of `recalled`, the likeliest, as many as have no more than `max_tokens` together.

    `token_counter` is called only where there are more bytes than `max_tokens`, as a token has at least one.
    """
    texts = [recalled_text(one) for one in recalled]
    if sum(len(text.encode()) for text in texts) <= max_tokens:
        return tuple(recalled)
    count = token_counter()
    first = len(recalled)
    while first and (max_tokens := max_tokens - count(texts[first - 1])) >= 0:
        first -= 1
    return tuple(recalled[first:])


class _Index:
    """Solved tasks with a fitted regression; does not change."""

    def __init__(self, solved: Sequence[_SolvedTask], tools: Sequence[ToolSpec], embed: Embed) -> None:
        self.solved = solved
        if not solved:
            return
        self._vectors = np.stack([one.vector for one in solved])
        self._recalled = [replace(one.recalled, choices=enum_arguments(one.call, tools)) for one in solved]
        self._labels = [str((one.tool, one.choices, one.plan)) for one in self._recalled]
        names = {
            label: choice_name(one.choices)
            for label, one in zip(self._labels, self._recalled, strict=True)
            if one.choices
        }
        counts = Counter(names.values())
        names = {label: name for label, name in names.items() if counts[name] == 1}
        self._is_complete = _is_complete({(one.tool, one.choices) for one in self._recalled}, tools)
        vectors = [self._vectors, *([embed(list(names.values()))] if names else [])]
        self._regression = LabelRegression(np.concatenate(vectors), [*self._labels, *names], texts=len(solved))

    def search(self, vector: Vectors, k: int, *, leave_out: str | None, same_wording: bool) -> tuple[Recalled, ...]:
        cosines = self._vectors @ vector
        ignored = {
            place
            for place, one in enumerate(self.solved)
            if one.task == leave_out or (not same_wording and cosines[place] >= SAME_SCORE)
        }
        scores = self._regression.scores(vector, without=sorted(ignored))
        closest = max((float(cosine) for place, cosine in enumerate(cosines) if place not in ignored), default=-1.0)
        shares = self._regression.shares(scores, closest, complete=self._is_complete).tolist()
        share_of = dict(zip(self._regression.names, shares, strict=True))
        nearest: dict[str, int] = {}
        for place in np.argsort(-cosines, kind="stable"):
            if place not in ignored:
                nearest.setdefault(self._labels[place], int(place))
        by_score = sorted(zip(-scores, self._regression.names, strict=True))
        ranked = [label for _, label in by_score if label in nearest]
        return tuple(
            replace(self._recalled[nearest[label]], share=round(share_of[label], 4)) for label in reversed(ranked[:k])
        )


def _is_complete(calls: Collection[tuple[str, tuple[tuple[str, str], ...]]], tools: Sequence[ToolSpec]) -> bool:
    """Whether every call that these tools admit, distinguished by its choices, has occurred."""
    count = sum(math.prod(len(values) for values in tool.choices.values()) for tool in tools)
    if not tools or count > len(calls):
        return False
    return all(
        (tool.name, tuple(zip(tool.choices, values, strict=True))) in calls
        for tool in tools
        for values in itertools.product(*tool.choices.values())
    )
