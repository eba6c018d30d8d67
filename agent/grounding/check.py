"""Checks an answer sentence by sentence against a run's observations, and withholds or marks unsupported sentences.

A sentence is supported by one sentence of the observations or, if it has several clauses, by two. Support is scored
from shared words, names, negations and vectors. Errors that none of these show, such as swapped roles, are missed, and
a good paraphrase may be rejected. A figure missing in the support is always rejected. Does not judge the sources.

The weights were fitted by `tests/bench/grounding_fit.py` on the even-numbered paragraphs of XQuAD, separately for
English and Chinese, with the packaged encoder, so that at most one in twenty sentences that were altered by rule or
taken from elsewhere passes. That encoder knows no Chinese, so the Chinese rule gives vectors no weight.
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
from agent.grounding.claims import Claim, contradicts, is_chinese, weighted_share, word_weights
from agent.records.run import Checked, Evidence, Grounding, Step
from agent.text.quotes import Quote, collect_quotes, match_quotes
from agent.text.sentences import split_sentences

Mode = Literal["off", "mark", "withhold"]
EncoderMaker = Callable[[], Encoder]

NEAREST = 5
"""Sentences tried in pairs: those that share most words with the answer's sentence."""


@dataclass(frozen=True)
class Features:
    """How well sentences support a claim, as input of a `Rule`."""

    words: float
    """Share of the claim's words that are in the support, weighted by rarity."""
    names: float
    """Share of its names; 1 if it has none."""
    nearness: float
    """Cosine of the vectors."""
    denied: float
    """1 if either side negates what the other states, else 0."""


@dataclass(frozen=True)
class Rule:
    """Logistic regression on `Features`, and the score from which a sentence is supported."""

    bias: float
    words: float
    names: float
    nearness: float
    denied: float
    threshold: float = 0.5

    def score(self, features: Features) -> float:
        """Return a score from 0 to 1."""
        total = (
            self.bias
            + self.words * features.words
            + self.names * features.names
            + self.nearness * features.nearness
            + self.denied * features.denied
        )
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, total))))


@dataclass(frozen=True)
class Thresholds:
    """A rule per language; text that is not Chinese is treated as English."""

    english: Rule
    chinese: Rule

    def rule(self, text: str) -> Rule:
        """Return the rule for a sentence."""
        return self.chinese if is_chinese(text) else self.english


FITTED = Thresholds(
    english=Rule(-4.95, 3.52, 2.33, 0.98, -4.4, threshold=0.77),
    chinese=Rule(-4.08, 3.76, 1.84, 0.0, -3.98, threshold=0.78),
)


@dataclass(frozen=True)
class CheckedAnswer:
    """The check of an answer, sentence by sentence."""

    sentences: tuple[Checked, ...]

    @property
    def unsupported(self) -> tuple[str, ...]:
        return tuple(sentence.text for sentence in self.sentences if not sentence.supported)


def check_sentences(
    answer: str,
    evidence: Sequence[Evidence],
    encoder: Encoder | EncoderMaker,
    *,
    thresholds: Thresholds = FITTED,
) -> CheckedAnswer:
    """Check every sentence of an answer.

    A sentence that is in the evidence word for word is supported; one without a word that carries meaning is not.

    Args:
        encoder: A function that returns one is called only if vectors are needed. All texts are embedded in one call.
    """
    sentences = _split_answer(answer, evidence)
    by_text = {_fold(entry.text): entry for entry in reversed(evidence)}
    others = [sentence for sentence in sentences if _fold(sentence) not in by_text]
    finder = SupportFinder(evidence, others, encoder, thresholds) if others and evidence else None
    checked = []
    for sentence in sentences:
        same = by_text.get(_fold(sentence))
        if same is not None:
            checked.append(Checked(sentence, True, 1.0, (same,)))
        elif finder is None:
            checked.append(Checked(sentence, False, 0.0))
        else:
            checked.append(finder.check(sentence))
    return CheckedAnswer(tuple(checked))


def collect_evidence(steps: Sequence[Step]) -> tuple[Evidence, ...]:
    """Return every sentence of a run's passages and observations, each once."""
    passages = {passage.label: passage for step in steps for passage in step.passages}
    evidence = []
    for quote in collect_quotes(steps):
        passage = None if quote.label is None else passages[quote.label]
        place = ("", "") if passage is None else (passage.document, passage.heading)
        evidence.append(Evidence(quote.text, quote.label, *place))
    return tuple(evidence)


def check_answer(
    question: str,
    answer: str,
    steps: Sequence[Step],
    encoder: Callable[[], Encoder],
    mode: Literal["mark", "withhold"],
    *,
    thresholds: Thresholds = FITTED,
) -> Grounding:
    """Check an answer against the steps before it, and mark or withhold its unsupported sentences in the reply."""
    result = check_sentences(answer, collect_evidence(steps), encoder, thresholds=thresholds)
    if not result.unsupported and result.sentences:
        return Grounding(mode, result.sentences, answer)
    if mode == "mark":
        return Grounding(mode, result.sentences, " ".join(map(_mark, result.sentences)) or answer)
    supported = [sentence.text for sentence in result.sentences if sentence.supported]
    separator = "" if is_chinese(answer) else " "
    return Grounding(mode, result.sentences, separator.join(supported) or no_answer_reply(question))


def no_answer_reply(question: str) -> str:
    """Return the reply for a question that the documents do not answer, in its language. It offers to escalate."""
    if is_chinese(question):
        return "文档中没有相关说明。需要为您转接人工吗\uff1f"
    return "The documents do not say. Shall I hand this over to a person?"


@dataclass(frozen=True)
class Support:
    """The best support of a claim."""

    score: float = 0.0
    places: tuple[int, ...] = ()
    """Indices of the sentences in the evidence."""
    features: Features | None = None
    """None if the claim has no words, or no sentence states its figures."""


class SupportFinder:
    """Finds the sentences that support claims, for several claims and the same evidence."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        sentences: Sequence[str],
        encoder: Encoder | EncoderMaker,
        thresholds: Thresholds,
    ) -> None:
        """Embed the evidence and `sentences`, the claims that will be checked, if a rule needs their vectors."""
        self._evidence = evidence
        self._thresholds = thresholds
        self.claims = [Claim(entry.text, f"{PurePath(entry.document).stem} {entry.heading}") for entry in evidence]
        self._weights = word_weights(self.claims)
        self._unseen = 1.0 + math.log(len(evidence) + 1)
        self._vectors: Vectors | None = None
        self._rows: Mapping[str, int] = {text: len(evidence) + number for number, text in enumerate(sentences)}
        if any(thresholds.rule(text).nearness for text in sentences):
            loaded = encoder() if callable(encoder) else encoder
            self._vectors = loaded.encode([*(entry.text for entry in evidence), *sentences])

    def check(self, sentence: str) -> Checked:
        """Check one of `sentences` and name its support."""
        best = self.find(Claim(sentence))
        supported = best.features is not None and best.score >= self._thresholds.rule(sentence).threshold
        places = best.places if supported else ()
        return Checked(sentence, supported, round(best.score, 4), tuple(self._evidence[place] for place in places))

    def find(self, claim: Claim) -> Support:
        """Return the sentence, or the two, that support a claim best; of equal ones the first in the evidence."""
        rule = self._thresholds.rule(claim.text)
        best = Support()
        for places in self._candidates(claim):
            features = self.features(claim, places)
            if features is not None and (best.features is None or rule.score(features) > best.score):
                best = Support(rule.score(features), places, features)
        return best

    def features(self, claim: Claim, places: tuple[int, ...]) -> Features | None:
        """Return how well sentences support a claim; None if a figure is missing.

        Of several sentences, each clause is compared with the one that fits it best and states its figures.
        """
        if not claim.figures <= sum((self.claims[place].possible_figures for place in places), Counter()):
            return None
        parts = claim.clauses if len(places) > 1 else (claim,)
        words, total, denied = 0.0, 0.0, False
        support_words: frozenset[str] = frozenset()
        for part in parts:
            fitting = [place for place in places if part.figures <= self.claims[place].possible_figures]
            if not fitting:
                return None
            best = max(fitting, key=lambda place: self._share(part, place))
            weight = sum(self._weights.get(word, self._unseen) for word in part.words)
            words += weight * self._share(part, best)
            total += weight
            denied = denied or contradicts(part, self.claims[best])
            support_words |= self.claims[best].all_words
        if not total:
            return None
        names = len(claim.names & support_words) / len(claim.names) if claim.names else 1.0
        return Features(words / total, names, self._nearness(claim, places), float(denied))

    def _candidates(self, claim: Claim) -> Iterator[tuple[int, ...]]:
        if claim.words:
            yield from ((place,) for place in range(len(self.claims)))
            if len(claim.clauses) > 1:
                ranked = sorted(range(len(self.claims)), key=lambda place: -self._share(claim, place))
                yield from combinations(sorted(ranked[:NEAREST]), 2)

    def _share(self, claim: Claim, place: int) -> float:
        return weighted_share(claim.words, self.claims[place].all_words, self._weights, self._unseen)

    def _nearness(self, claim: Claim, places: tuple[int, ...]) -> float:
        if self._vectors is None:
            return 0.0
        vector = self._vectors[list(places)].sum(axis=0)
        length = float(np.linalg.norm(vector))
        return float(vector @ self._vectors[self._rows[claim.text]]) / length if length else 0.0


def _split_answer(answer: str, evidence: Sequence[Evidence]) -> list[str]:
    """Split an answer into sentences; one that consists of quotes is split between them."""
    quotes = match_quotes(answer, [Quote(entry.text) for entry in evidence])
    return list(split_sentences(answer)) if quotes is None else [quote.text for quote in quotes]


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def _mark(sentence: Checked) -> str:
    if sentence.supported:
        return sentence.text
    if is_chinese(sentence.text):
        return f"{sentence.text}\uff08文档中没有\uff09"
    return f"{sentence.text} [not in the documents]"
