"""An answer is checked sentence by sentence against what its run was shown; what nothing shown supports is withheld.

A sentence is supported by one sentence that was shown, or, where it has clauses, by two. Told by words, names,
negations and vectors: what all of them miss, such as who did what to whom, is missed here, and a good rewording may be
refused. A figure that is not in the support is never let through. Knows nothing of whether a source is right.

How much each counts was fitted by `tests/bench/grounding_fit.py` on the even-numbered paragraphs of XQuAD, English and
Chinese apart, with the packaged encoder, so that of the sentences changed by rule or taken from elsewhere one in twenty
passes at most. That encoder knows no Chinese, so words alone count there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import Literal

import numpy as np

from agent.encoders.encoder import Encoder, Vectors
from agent.grounding.claims import Claim, contradicts, is_chinese, rarity, share
from agent.records.run import Checked, Evidence, Grounding, Step
from agent.text.quotes import Quote, quotable, quoted
from agent.text.sentences import sentences

Mode = Literal["off", "mark", "withhold"]
EncoderMaker = Callable[[], Encoder]

NEAREST = 5
"""Sentences that are tried in pairs, those that share most with the answer's."""


@dataclass(frozen=True)
class Features:
    """How far a sentence is supported by others; what a rule weighs."""

    words: float
    """Share of its words that stand there, the rarer the heavier."""
    names: float
    """Share of its names; 1 where it has none."""
    nearness: float
    """Cosine of the vectors."""
    denied: float
    """1 where one denies what the other says, else 0."""


@dataclass(frozen=True)
class Rule:
    """A logistic rule: what each feature counts, and the score from which a sentence is supported."""

    bias: float
    words: float
    names: float
    nearness: float
    denied: float
    threshold: float = 0.5

    def score(self, found: Features) -> float:
        """0 to 1."""
        total = (
            self.bias
            + self.words * found.words
            + self.names * found.names
            + self.nearness * found.nearness
            + self.denied * found.denied
        )
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, total))))


@dataclass(frozen=True)
class Thresholds:
    """The rule for each language; what is not Chinese is read as English."""

    english: Rule
    chinese: Rule

    def rule(self, text: str) -> Rule:
        """The one that a sentence is checked by."""
        return self.chinese if is_chinese(text) else self.english


FITTED = Thresholds(
    english=Rule(-4.95, 3.52, 2.33, 0.98, -4.4, threshold=0.77),
    chinese=Rule(-4.08, 3.76, 1.84, 0.0, -3.98, threshold=0.78),
)


@dataclass(frozen=True)
class Grounded:
    """What was found, sentence by sentence."""

    sentences: tuple[Checked, ...]

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The sentences that nothing shown supports."""
        return tuple(one.text for one in self.sentences if not one.supported)


def ground(
    answer: str,
    evidence: Sequence[Evidence],
    encoder: Encoder | EncoderMaker,
    *,
    thresholds: Thresholds = FITTED,
) -> Grounded:
    """Check every sentence of an answer. All that is to be embedded is embedded at once.

    A sentence that was shown word for word is supported; one without a word that carries meaning is not. An encoder
    that is called for is called for only where vectors count.
    """
    parts = _parts(answer, evidence)
    known = {_evened(one.text): one for one in reversed(evidence)}
    open_parts = [part for part in parts if _evened(part) not in known]
    judge = Judge(evidence, open_parts, encoder, thresholds) if open_parts and evidence else None
    checked = []
    for part in parts:
        same = known.get(_evened(part))
        if same is not None:
            checked.append(Checked(part, True, 1.0, (same,)))
        elif judge is None:
            checked.append(Checked(part, False, 0.0))
        else:
            checked.append(judge.checked(part))
    return Grounded(tuple(checked))


def evidence_of(steps: Sequence[Step]) -> tuple[Evidence, ...]:
    """Every sentence that a run was shown, by its passages and its tools, each once."""
    shown = {passage.label: passage for step in steps for passage in step.passages}
    found = []
    for quote in quotable(steps):
        passage = None if quote.label is None else shown[quote.label]
        place = ("", "") if passage is None else (passage.document, passage.heading)
        found.append(Evidence(quote.text, quote.label, *place))
    return tuple(found)


def check_answer(
    question: str,
    answer: str,
    steps: Sequence[Step],
    encoder: Callable[[], Encoder],
    mode: Literal["mark", "withhold"],
    *,
    thresholds: Thresholds = FITTED,
) -> Grounding:
    """The answer behind these steps, checked, and the reply to the question that comes of it."""
    found = ground(answer, evidence_of(steps), encoder, thresholds=thresholds)
    if not found.unsupported and found.sentences:
        return Grounding(mode, found.sentences, answer)
    if mode == "mark":
        return Grounding(mode, found.sentences, " ".join(_marked(one) for one in found.sentences) or answer)
    kept = [one.text for one in found.sentences if one.supported]
    joint = "" if is_chinese(answer) else " "
    return Grounding(mode, found.sentences, joint.join(kept) or nothing_said(question))


def nothing_said(question: str) -> str:
    """What is replied when the documents do not say: so much, and the offer of a person, in the question's language."""
    if is_chinese(question):
        return "文档中没有相关说明。需要为您转接人工吗\uff1f"
    return "The documents do not say. Shall I hand this over to a person?"


@dataclass(frozen=True)
class Best:
    """The best support of a claim that there is."""

    score: float = 0.0
    places: tuple[int, ...] = ()
    """Of the sentences, among the evidence."""
    features: Features | None = None
    """None where the claim says nothing, or no sentence gives its figures."""


class Judge:
    """Looks for the support of sentences among the same evidence."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        parts: Sequence[str],
        encoder: Encoder | EncoderMaker,
        thresholds: Thresholds,
    ) -> None:
        """`parts` are the sentences that may be asked for."""
        self._evidence = evidence
        self._thresholds = thresholds
        self.claims = [Claim(one.text, f"{PurePath(one.document).stem} {one.heading}") for one in evidence]
        self._weights = rarity(self.claims)
        self._unseen = 1.0 + math.log(len(evidence) + 1)
        self._vectors: Vectors | None = None
        self._places: Mapping[str, int] = {part: len(evidence) + number for number, part in enumerate(parts)}
        if any(thresholds.rule(part).nearness for part in parts):
            able = encoder() if callable(encoder) else encoder
            self._vectors = able.encode([*(one.text for one in evidence), *parts])

    def checked(self, part: str) -> Checked:
        """The sentence with the best there is for it."""
        best = self.best(Claim(part))
        supported = best.features is not None and best.score >= self._thresholds.rule(part).threshold
        places = best.places if supported else ()
        return Checked(part, supported, round(best.score, 4), tuple(self._evidence[place] for place in places))

    def best(self, claim: Claim) -> Best:
        """The sentence, or two, that support it best; of equals the one that was shown first."""
        rule = self._thresholds.rule(claim.text)
        found = Best()
        for places in self._tried(claim):
            features = self.features(claim, places)
            if features is not None and (found.features is None or rule.score(features) > found.score):
                found = Best(rule.score(features), places, features)
        return found

    def _tried(self, claim: Claim) -> Iterator[tuple[int, ...]]:
        if claim.words:
            yield from ((place,) for place in range(len(self.claims)))
            if len(claim.clauses) > 1:
                yield from combinations(self._nearest(claim), 2)

    def features(self, claim: Claim, places: tuple[int, ...]) -> Features | None:
        """How these sentences support a claim; None where a figure is missing.

        Of several, each clause is held against the one that fits it best, its figures too.
        """
        if not claim.figures <= sum((self.claims[place].known_figures for place in places), Counter()):
            return None
        parts = claim.clauses if len(places) > 1 else (claim,)
        words, total, denied = 0.0, 0.0, False
        held: frozenset[str] = frozenset()
        for part in parts:
            fitting = [place for place in places if part.figures <= self.claims[place].known_figures]
            if not fitting:
                return None
            best = max(fitting, key=lambda place: self._share(part, place))
            weight = sum(self._weights.get(word, self._unseen) for word in part.words)
            words += weight * self._share(part, best)
            total += weight
            denied = denied or contradicts(part, self.claims[best])
            held |= self.claims[best].held
        if not total:
            return None
        names = len(claim.names & held) / len(claim.names) if claim.names else 1.0
        return Features(words / total, names, self._nearness(claim, places), float(denied))

    def _share(self, claim: Claim, place: int) -> float:
        return share(claim.words, self.claims[place].held, self._weights, self._unseen)

    def _nearest(self, claim: Claim) -> list[int]:
        ranked = sorted(range(len(self.claims)), key=lambda place: -self._share(claim, place))
        return sorted(ranked[:NEAREST])

    def _nearness(self, claim: Claim, places: tuple[int, ...]) -> float:
        if self._vectors is None:
            return 0.0
        vector = self._vectors[list(places)].sum(axis=0)
        length = float(np.linalg.norm(vector))
        return float(vector @ self._vectors[self._places[claim.text]]) / length if length else 0.0


def _parts(answer: str, evidence: Sequence[Evidence]) -> list[str]:
    """The sentences of an answer; one made of quotes is cut where they meet, whatever they end with."""
    made_of = quoted(answer, [Quote(one.text) for one in evidence])
    return list(sentences(answer)) if made_of is None else [one.text for one in made_of]


def _evened(text: str) -> str:
    return " ".join(text.split()).casefold()


def _marked(one: Checked) -> str:
    if one.supported:
        return one.text
    return f"{one.text}\uff08文档中没有\uff09" if is_chinese(one.text) else f"{one.text} [not in the documents]"
