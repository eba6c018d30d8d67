"""Fits the rules of `agent.grounding.check`, and the bench's own rule of relevance, and prints them.

    python -m tests.bench.grounding_fit --data ../shared/data

Only the even-numbered paragraphs of XQuAD are read: a claim that one of them supports, changed so that none does, or
taken from another. What is printed is copied by hand into the code. Nothing that is measured is read here.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agent.config.project import Home
from agent.encoders.encoder import Encoder, SentenceEncoder, Vectors
from agent.grounding.check import FITTED, Features, Rule, SupportFinder, Thresholds
from agent.grounding.claims import Claim, is_chinese
from agent.llm.weights.catalog import DEFAULT_ENCODER
from agent.llm.weights.load import resolve_encoder
from agent.records.run import Evidence
from agent.text.sentences import split_sentences
from tests.bench.grounding import ASKING, RELEVANCE, Relevance, fits

ROUNDS = 3
"""Which sentence supports a claim best is chosen by the rule, and the rule is fitted on what was chosen."""
MOST_FALSE = 0.05
"""Share of unsupported claims that may pass."""
RIDGE = 1.0
SEED = 0


@dataclass(frozen=True)
class Asked:
    """A question, the sentence that holds its answer, and the answer."""

    question: str
    sentence: str
    answer: str


@dataclass(frozen=True)
class Paragraph:
    """An even-numbered paragraph."""

    number: int
    article: int
    sentences: tuple[str, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Sample:
    """A claim, what was shown, and whether that supports it."""

    kind: str
    claim: str
    shown: tuple[Evidence, ...]
    supported: bool


def even_paragraphs(path: Path) -> tuple[Paragraph, ...]:
    """The even-numbered paragraphs of one language, counted through all articles."""
    found, number = [], 0
    for article, data in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in data["paragraphs"]:
            if number % 2 == 0:
                cut = tuple(split_sentences(paragraph["context"]))
                asked = [
                    Asked(one["question"], sentence, answer)
                    for one in paragraph["qas"]
                    for answer in [one["answers"][0]["text"]]
                    for sentence in [next((one for one in cut if answer in one), "")]
                    if sentence
                ]
                found.append(Paragraph(number, article, cut, tuple(asked)))
            number += 1
    return tuple(found)


def samples(paragraphs: Sequence[Paragraph], chance: random.Random) -> Iterator[Sample]:
    """Claims of every kind, each shown its paragraph and two others, but for those from elsewhere."""
    answers = [(paragraph.number, one.answer) for paragraph in paragraphs for one in paragraph.asked]
    for paragraph in paragraphs:
        others = chance.sample([one for one in paragraphs if one is not paragraph], 3)
        shown = evidence(paragraph, *others[:2])
        for one in paragraph.asked:
            foreign = chance.choice([text for number, text in answers if number != paragraph.number])
            for kind, claim, supported in (
                ("shorter", shorter(one.sentence, one.answer), True),
                ("turned", turned(one.sentence), True),
                ("stated", stated(one.question, one.answer), True),
                ("number", other_number(one.sentence, chance), False),
                ("name", one.sentence.replace(one.answer, foreign), False),
                ("misstated", stated(one.question, foreign), False),
                ("negated", negated(one.sentence), False),
            ):
                if claim and claim != one.sentence and not (not supported and foreign in one.sentence):
                    yield Sample(kind, claim, shown, supported)
        for sentence in others[2].sentences:
            yield Sample("elsewhere", sentence, shown, False)


def evidence(*paragraphs: Paragraph) -> tuple[Evidence, ...]:
    """What a search that finds these paragraphs shows."""
    return tuple(
        Evidence(sentence, label, "p.txt") for label, one in enumerate(paragraphs, 1) for sentence in one.sentences
    )


def shorter(sentence: str, answer: str) -> str:
    """Without its first clause that does not hold the answer; empty where it has but one."""
    parts = re.split(r"(?<=[,;\uff0c\uff1b])\s*", sentence)
    place = next((place for place, part in enumerate(parts) if answer not in part), None)
    if len(parts) < 2 or place is None:
        return ""
    return ("" if is_chinese(sentence) else " ").join(parts[:place] + parts[place + 1 :])


def turned(sentence: str) -> str:
    """With its last clause in front; empty where it has but one."""
    parts = re.split(r"[,\uff0c]\s*", sentence.rstrip(".\u3002"))
    if len(parts) < 2:
        return ""
    return "\uff0c".join([parts[-1], *parts[:-1]]) if is_chinese(sentence) else ", ".join([parts[-1], *parts[:-1]])


def stated(question: str, answer: str) -> str:
    """The question with the answer in the place of the word that asks; empty where none is found."""
    text, count = ASKING.subn(lambda _: answer, question.rstrip("?\uff1f "), count=1)
    ending = "\u3002" if is_chinese(question) else "."
    return f"{text}{ending}" if count else ""


def other_number(sentence: str, chance: random.Random) -> str:
    """With one number changed; empty without one."""
    found = list(re.finditer(r"\d+", sentence))
    if not found:
        return ""
    one = chance.choice(found)
    return f"{sentence[: one.start()]}{int(one[0]) + chance.randint(1, 9)}{sentence[one.end() :]}"


def negated(sentence: str) -> str:
    """With a negation put in or taken out; empty where there is no place for one."""
    if is_chinese(sentence):
        rules = (("不是", "是"), ("没有", "有"), ("不能", "能"), ("是", "不是"), ("可以", "不可以"), ("会", "不会"))
        return next((sentence.replace(old, new, 1) for old, new in rules if old in sentence), "")
    if re.search(r"\bnot\b", sentence):
        return re.sub(r"\s*\bnot\b", "", sentence, count=1)
    text, count = re.subn(r"\b(is|are|was|were|can|could|will|would|has|had|have|did)\b", r"\1 not", sentence, count=1)
    return text if count else ""


def found_features(samples: Sequence[Sample], encoder: Encoder, rules: Thresholds) -> list[Features | None]:
    """Of each sample under the rule, or None where a figure is missing. Samples shown the same lie together."""
    judges: dict[tuple[Evidence, ...], list[str]] = {}
    for one in samples:
        judges.setdefault(one.shown, []).append(one.claim)
    made = {shown: SupportFinder(shown, claims, encoder, rules) for shown, claims in judges.items()}
    return [made[one.shown].find(Claim(one.claim)).features for one in samples]


def fitted(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression, the bias first, by Newton's method; both outcomes count the same in all."""
    design = np.concatenate([np.ones((len(matrix), 1)), matrix], axis=1)
    counts = np.where(wanted, 0.5 / max(1, wanted.sum()), 0.5 / max(1, (~wanted).sum())) * len(wanted)
    weights = np.zeros(design.shape[1])
    ridge = RIDGE * np.eye(len(weights))
    ridge[0, 0] = 1e-6
    for _ in range(50):
        likely = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (counts * (likely - wanted)) + ridge @ weights
        bend = (design * (counts * likely * (1 - likely))[:, None]).T @ design + ridge
        step = np.linalg.solve(bend, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def threshold_for(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The lowest score that no more than MOST_FALSE of what is not wanted reach."""
    wrong = np.sort(scores[~wanted])[::-1]
    return float(np.nextafter(wrong[int(MOST_FALSE * len(wrong))], 1.0)) if len(wrong) else 0.5


def auc(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The chance that a wanted one scores above another; half of it where they are even."""
    apart = scores[wanted][:, None] - scores[~wanted][None, :]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def fit_support(samples: Sequence[Sample], encoder: Encoder, language: str) -> Rule:
    """The rule for one language; with Chinese the vectors are shown and not used."""
    rules = FITTED
    wanted = np.array([one.supported for one in samples])
    if language == "zh":
        # A little weight has the vectors computed, so that it can be told what they are worth.
        looking = replace(rules, chinese=replace(rules.chinese, nearness=1e-9))
        tell_nearness(found_features(samples, encoder, looking), wanted)
    for _ in range(ROUNDS):
        found = found_features(samples, encoder, rules)
        there = np.array([one is not None for one in found])
        rows = np.array([[one.words, one.names, one.nearness, one.denied] for one in found if one is not None])
        if language == "zh":
            rows[:, 2] = 0.0
        weights = fitted(rows, wanted[there])
        bias, words, names, nearness, denied = (round(float(one), 2) for one in weights)
        rule = Rule(bias, words, names, 0.0 if language == "zh" else nearness, denied)
        rules = Thresholds(*((rule, rules.chinese) if language == "en" else (rules.english, rule)))
    found = found_features(samples, encoder, rules)
    scores = np.array([0.0 if one is None else rule.score(one) for one in found])
    rule = replace(rule, threshold=round(threshold_for(scores, wanted) + 0.005, 2))
    if language == "en":
        tell_nearness(found, wanted)
    print(language, rule, f"auc {auc(scores, wanted):.3f}")
    for kind in dict.fromkeys(one.kind for one in samples):
        chosen = np.array([one.kind == kind for one in samples])
        print(f"  {kind:10} {chosen.sum():5} claims, {(scores[chosen] >= rule.threshold).mean():.3f} supported")
    return rule


def tell_nearness(found: Sequence[Features | None], wanted: np.ndarray) -> None:
    there = np.array([one is not None for one in found])
    kept = [one for one in found if one is not None]
    for name in ("words", "names", "nearness", "denied"):
        values = np.array([getattr(one, name) for one in kept])
        print(f"  {name} alone: auc {auc(values, wanted[there]):.3f}")


def fit_relevance(paragraphs: Sequence[Paragraph], encoder: Encoder, language: str) -> None:
    """The rule of whether a sentence answers a question: the one that does, against the best where none does."""
    chance = random.Random(SEED)
    rule = RELEVANCE[language]
    data = []
    for paragraph in paragraphs:
        near = [one for one in paragraphs if one.article == paragraph.article and one is not paragraph]
        far = chance.sample([one for one in paragraphs if one.article != paragraph.article], 4 - len(near[:2]))
        wrong = [*near[:2], *far]
        for one in paragraph.asked:
            with_it, without = evidence(paragraph, *wrong[:3]), evidence(*wrong)
            place = next(number for number, shown in enumerate(with_it) if shown.text == one.sentence)
            data.append((fits(one.question, with_it, encoder, language)[place], None))
            data.append((None, fits(one.question, without, encoder, language)))
    for _ in range(ROUNDS):
        rows, wanted = [], []
        for right, others in data:
            if right is not None:
                rows.append(right)
            else:
                rows.append(max(others, key=rule.score))
            wanted.append(right is not None)
        matrix, truth = np.array([row.as_list() for row in rows]), np.array(wanted)
        if language == "zh":
            matrix[:, 2] = 0.0
        rule = Relevance(*(round(float(one), 2) for one in fitted(matrix, truth)))
    scores = np.array([rule.score(row) for row in rows])
    cut = np.unique(scores)
    balance = [(scores[truth] >= one).mean() - (scores[~truth] >= one).mean() for one in cut]
    best = float(cut[int(np.argmax(balance))])
    print(language, replace(rule, threshold=round(best, 2)), f"auc {auc(scores, truth):.3f}")
    print(f"  right {(scores[truth] >= best).mean():.3f}, best of wrong {(scores[~truth] >= best).mean():.3f}")


class Remembering:
    """An encoder that embeds no text twice."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, Vectors] = {}

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def dimensions(self) -> int:
        return self._encoder.dimensions

    def encode(self, texts: Sequence[str]) -> Vectors:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(fresh, self._encoder.encode(fresh), strict=True))
        return np.stack([self._known[text] for text in texts])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds xquad")
    parser.add_argument("--home", type=Path, default=Path(".ratchet"), help="where the encoder is, or is put")
    parser.add_argument("--part", choices=("support", "relevance", "all"), default="all")
    parser.add_argument("--language", choices=("en", "zh"), default=None)
    args = parser.parse_args()
    folder = resolve_encoder(DEFAULT_ENCODER, Home(args.home).models)
    encoder = Remembering(SentenceEncoder(folder, name=DEFAULT_ENCODER))
    for language in (args.language,) if args.language else ("en", "zh"):
        paragraphs = even_paragraphs(args.data / "xquad" / f"xquad.{language}.json")
        if args.part != "relevance":
            fit_support(list(samples(paragraphs, random.Random(SEED))), encoder, language)
        if args.part != "support":
            fit_relevance(paragraphs, encoder, language)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
