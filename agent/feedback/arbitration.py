"""The rule that says where a correction belongs: in the documents, in the weights, or in memory alone.

A fact is an answer that says what nothing shown before it says. An exception is done otherwise in nearly all judged
tasks close to its own. All else is a habit, so that what nothing speaks against is trained. Corrections of the same
request are not averaged: the newest counts. The rule sees words and nearness, no reasons; a reviewer's word goes before
it. What it decides is appended to the store, and decided again whenever feedback or documents have changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.encoders.encoder import Vectors
from agent.feedback.approved import Judged, Ruling, judged_runs, rulings
from agent.feedback.cases import ANSWER, Case, agree, asked_the_same, case_of, superseded
from agent.feedback.label_regression import LabelRegression
from agent.feedback.missing_facts import Search, held_by, lacking
from agent.records.feedback import Arbitration, Kind
from agent.storage.store import Store
from agent.text.normalise import SAME_SCORE, all_terms, plain

CLOSE = 0.8
"""Cosine from which two tasks are close enough to be held against each other."""

NEAREST = 8
"""Close tasks that a correction is held against."""

LEAST_CLOSE = 4
"""Fewer close tasks say nothing."""

MAJORITY = 0.75
"""Share of the close tasks that must do the same other thing, to make a correction an exception."""

RECURS = 3
"""Close tasks, its own among them, that make a habit of what others do otherwise."""

SPOKEN = 2
"""Other tasks whose accepted answers use a word, to make it a way of speaking."""

MOST = 2000
"""Steps of one situation that are compared: the newest."""

Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Decision:
    """What the rule says of one correction."""

    kind: Kind
    reason: str
    superseded_by: str | None = None


def settle(store: Store, *, embed: Embed, search: Search | None, new_id: Callable[[], str], at: str) -> int:
    """Let the rule decide every correction that counts, and append what it had not said before; returns how many.

    `search` looks into the documents; None where there are none. Who decided otherwise keeps the last word.
    """
    ruled = rulings(store)
    said = {one.correction: one for one in store.arbitrations() if one.by == "rule"}
    appended = 0
    for id, decision in decide(list(judged_runs(store)), ruled, embed=embed, search=search).items():
        before = said.get(id)
        if before is None or (before.kind, before.reason, before.superseded_by) != (
            decision.kind,
            decision.reason,
            decision.superseded_by,
        ):
            run = ruled[id].correction.run
            store.arbitrate(
                Arbitration(new_id(), run, id, decision.kind, "rule", "", decision.reason, at, decision.superseded_by)
            )
            appended += 1
    return appended


def by_wording(texts: Sequence[str]) -> Vectors:
    """Vectors that are alike for equal texts alone: for who has no encoder."""
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vectors = np.zeros((len(texts), len(place)), dtype=np.float32)
    vectors[np.arange(len(texts)), [place[text] for text in texts]] = 1.0
    return vectors


def decide(
    judged: Sequence[Judged], ruled: Mapping[str, Ruling], *, embed: Embed, search: Search | None
) -> dict[str, Decision]:
    """What the rule says of each newest correction of a step, by id, oldest first. Nothing is written.

    `ruled` has every correction in the order in which they were made, with what was said before; of that only a
    reviewer's exceptions count here.
    """
    cases = [
        case_of(one.trajectory, index, step, one.corrections.get(index))
        for one in judged
        for index, step in one.backed().items()
    ]
    exceptions = {id for id, one in ruled.items() if one.kind == "exception" and one.is_reviewers}
    corrected = {case.correction.id: case for case in cases if case.correction is not None}
    in_order = [corrected[id] for id in ruled if id in corrected]
    embedded = _embedded(cases, embed)
    taken_back = _taken_back([case for case in in_order if _id(case) not in exceptions], embedded)
    manner = Manner(cases)
    others = _Others([case for case in cases if _id(case) not in exceptions | taken_back.keys()], embedded)
    decisions = {}
    for case in in_order:
        kind, reason = _kind(case, manner, others, search)
        decisions[_id(case)] = Decision(kind, reason, taken_back.get(_id(case)))
    return decisions


def _kind(case: Case, manner: Manner, others: _Others, search: Search | None) -> tuple[Kind, str]:
    lack = lacking(case, manner.without(case.task))
    if lack is not None:
        document = held_by(lack, search) if search is not None else None
        if document is None:
            return "fact", f"nothing shown before this step says {_listed(lack.terms)}"
        return "habit", f"what nothing shown before it said, {document} says now"
    return others.kind(case)


class Manner:
    """Words that the model's accepted answers use whatever they say."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._tasks: dict[str, set[str]] = defaultdict(set)
        for case in cases:
            if case.tool == ANSWER and case.correction is None and case.step.author == "model":
                for term in all_terms([case.text]):
                    self._tasks[term].add(case.task)

    def without(self, task: str) -> set[str]:
        """The words, as if this task had not been done."""
        return {term for term, tasks in self._tasks.items() if len(tasks - {task}) >= SPOKEN}


class _Group:
    """The newest steps of one situation, one of each task."""

    def __init__(self, cases: Sequence[Case], embedded: Mapping[str, Vectors]) -> None:
        self.cases = list({case.task: case for case in cases}.values())[-MOST:]
        self.vectors = np.stack([embedded[case.wording] for case in self.cases])
        self._regression: LabelRegression | None = None

    def likeliest(self, vector: Vectors, *, without: str) -> str:
        """The pattern that a regression over the other tasks expects."""
        if self._regression is None:
            self._regression = LabelRegression(self.vectors, [case.pattern for case in self.cases])
        out = [place for place, case in enumerate(self.cases) if case.task == without]
        return self._regression.names[int(np.argmax(self._regression.scores(vector, without=out)))]


class _Others:
    """What was done in other tasks."""

    def __init__(self, cases: Iterable[Case], embedded: Mapping[str, Vectors]) -> None:
        piles: dict[object, list[Case]] = defaultdict(list)
        for case in cases:
            piles[case.situation].append(case)
        self._groups = {situation: _Group(pile, embedded) for situation, pile in piles.items()}
        self._embedded = embedded

    def kind(self, case: Case) -> tuple[Kind, str]:
        """Habit or exception, by what was done in the tasks close to this one."""
        group = self._groups.get(case.situation)
        close = [] if group is None else self._close(group, case)
        alike = sum(agree(case, other) for other in close)
        if alike + 1 >= RECURS:
            return "habit", f"done so in {alike + 1} tasks like it"
        if group is None or len(close) < LEAST_CLOSE:
            return "habit", f"only {len(close)} other judged tasks are close to it, too few to speak against it"
        nearest = close[:NEAREST]
        pattern, count = Counter(other.pattern for other in nearest if not agree(case, other)).most_common(1)[0]
        if count < MAJORITY * len(nearest) or pattern != group.likeliest(
            self._embedded[case.wording], without=case.task
        ):
            return "habit", f"the {len(nearest)} judged tasks closest to it are not of one mind"
        return "exception", f"{count} of the {len(nearest)} judged tasks closest to it were done otherwise: {pattern}"

    def _close(self, group: _Group, case: Case) -> list[Case]:
        """The steps of other tasks that are close, the closest first."""
        cosines = group.vectors @ self._embedded[case.wording]
        places = [int(place) for place in np.argsort(-cosines, kind="stable") if cosines[place] >= CLOSE]
        return [group.cases[place] for place in places if group.cases[place].task != case.task]


def _taken_back(corrections: Sequence[Case], embedded: Mapping[str, Vectors]) -> dict[str, str]:
    newest = corrections[-MOST:]
    if not newest:
        return {}
    vectors = np.stack([embedded[case.wording] for case in newest])
    return superseded(newest, asked_the_same([case.wording for case in newest], vectors @ vectors.T, SAME_SCORE))


def _embedded(cases: Iterable[Case], embed: Embed) -> dict[str, Vectors]:
    """The vector of every wording. One alone need not be embedded to be found equal to itself."""
    texts = list(dict.fromkeys(case.wording for case in cases))
    vectors = (embed if len(texts) > 1 else by_wording)([plain(text) for text in texts]) if texts else ()
    return dict(zip(texts, vectors, strict=True))


def _id(case: Case) -> str:
    return "" if case.correction is None else case.correction.id


def _listed(terms: Sequence[str]) -> str:
    some = ", ".join(terms[:6])
    return some if len(terms) <= 6 else f"{some} and {len(terms) - 6} more words"
