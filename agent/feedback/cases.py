"""A judged step as it is compared with others: what was asked, what had been shown, what was done about it.

Two steps are compared only where the runs had been shown the same until then, numbers aside. What an argument takes
from its own run is no difference: another order has another number. Pure; nothing is read or written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from agent.records.feedback import Correction
from agent.records.run import Step, Trajectory
from agent.text.normalise import MAX_TEXT, all_terms, content, masked, terms, wording

ANSWER = "answer"
"""The tool whose text says something to whoever asked."""

COPIED, TEXT = "…", "text"
"""What stands in a pattern for an argument taken from the run, and for one of several words."""


@dataclass(frozen=True)
class Case:
    """A step that people stand behind."""

    run: str
    task: str
    index: int
    wording: str
    """What was asked, without its numbers."""
    facts: tuple[str, ...]
    """What was known of the sender, without numbers."""
    way: tuple[str, ...]
    """What was called and shown before, without numbers."""
    shown: tuple[str, ...]
    """All that was shown before this step, the task first."""
    step: Step
    correction: Correction | None = None
    """None for a step of an accepted run."""

    @property
    def situation(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Equal for steps that can be compared, whatever was asked."""
        return self.facts, self.way

    @cached_property
    def known(self) -> frozenset[str]:
        """The words and numbers of all that was shown."""
        return all_terms(self.shown)

    @cached_property
    def pattern(self) -> str:
        """What was done, for a person and as a label: the tool and the arguments it chose."""
        return f"{self.tool}({', '.join(f'{name}={value}' for name, value in self.chosen.items())})"

    @property
    def tool(self) -> str:
        return "" if self.step.call is None else self.step.call.name

    @cached_property
    def chosen(self) -> dict[str, str]:
        """The arguments, those hidden that are copied from the run or are text."""
        return {name: _chosen(value, self.known) for name, value in _arguments(self.step).items()}

    def new_content(self) -> list[str]:
        """Words and numbers of an answer that nothing shown before it holds."""
        if self.tool != ANSWER:
            return []
        return [term for term in content(self.text) if term not in self.known]

    @property
    def text(self) -> str:
        """What an answer says; empty for another step."""
        said = _arguments(self.step).get("text", "") if self.tool == ANSWER else ""
        return said if isinstance(said, str) else ""


def case_of(trajectory: Trajectory, index: int, step: Step, correction: Correction | None) -> Case:
    """`step` is what people would have had in place of the run's step at `index`, or that step itself."""
    task, before = trajectory.task, trajectory.steps[:index]
    way = [f"{'' if one.call is None else one.call.name}: {masked(one.error or one.observation)}" for one in before]
    facts = tuple(f"{name}: {masked(value)}" for name, value in sorted(task.facts.items()))
    told = [text for one in before for text in (one.error or "", one.observation, *_passages(one)) if text]
    return Case(
        trajectory.id,
        task.id,
        index,
        wording(task.text),
        facts,
        tuple(way),
        (task.text, *task.facts.values(), *told),
        step,
        correction,
    )


def agree(one: Case, other: Case) -> bool:
    """Whether two steps do the same kind of thing: the same tool, and no argument chosen otherwise."""
    if one.tool != other.tool:
        return False
    mine, theirs = one.chosen, other.chosen
    return all(
        mine[name] == theirs[name] or {mine[name], theirs[name]} & {COPIED, TEXT}
        for name in mine.keys() & theirs.keys()
    )


def superseded(cases: Sequence[Case], same: np.ndarray) -> dict[str, str]:
    """Corrections that a newer one takes back, by id, each with the newest that says otherwise.

    `cases` are corrections, oldest first; `same` [N, N] says which of them were asked the same.
    """
    taken_back: dict[str, str] = {}
    counting: list[int] = []
    for place in reversed(range(len(cases))):
        one = cases[place]
        assert one.correction is not None
        newer = next((other for other in counting if same[place][other] and _contradicts(cases[other], one)), None)
        if newer is None:
            counting.append(place)
        else:
            by = cases[newer].correction
            assert by is not None
            taken_back[one.correction.id] = by.id
    return taken_back


def asked_the_same(wordings: Sequence[str], alike: np.ndarray, least: float) -> np.ndarray:
    """Which wordings say the same [N, N]: equal ones, and short ones with a cosine of `least`.

    Of long ones only the beginning was compared, which many texts share.
    """
    short = np.array([len(text) <= MAX_TEXT for text in wordings], dtype=bool)
    code = {text: number for number, text in enumerate(wordings)}
    codes = np.array([code[text] for text in wordings])
    equal = codes[:, None] == codes[None, :]
    result: np.ndarray = equal | ((alike >= least) & short[:, None] & short[None, :])
    return result


def _contradicts(newer: Case, older: Case) -> bool:
    """Whether the newer of two corrections of the same request says something else."""
    if older.situation == newer.situation:
        if older.shown == newer.shown:
            return _call(older, raw=True) != _call(newer, raw=True)
        return _call(older) != _call(newer)
    if older.facts != newer.facts or older.tool != ANSWER or newer.tool != ANSWER:
        return False
    # An answer out of the reviewer's head holds whatever was shown; so does what takes it back.
    missing = set(older.new_content()) - set(terms(newer.text))
    return bool(missing)


def _call(one: Case, *, raw: bool = False) -> str:
    arguments: Mapping[str, Any] = _arguments(one.step)
    if not raw:
        arguments = {name: COPIED if _is_copied(value, one.known) else value for name, value in arguments.items()}
    return json.dumps([one.tool, arguments], sort_keys=True, ensure_ascii=False, default=str)


def _arguments(step: Step) -> dict[str, Any]:
    """Without citations, whose labels belong to their run."""
    given = {} if step.call is None else step.call.arguments
    return {name: value for name, value in given.items() if name != "citations"}


def _chosen(value: Any, known: frozenset[str]) -> str:
    if isinstance(value, str) and len(value.split()) > 1:
        return TEXT
    return COPIED if _is_copied(value, known) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _is_copied(value: Any, known: frozenset[str]) -> bool:
    if value is None or isinstance(value, bool):
        return False
    said = terms(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return bool(said) and known.issuperset(said)


def _passages(step: Step) -> list[str]:
    return [f"{passage.heading}\n{passage.text}" for passage in step.passages]
