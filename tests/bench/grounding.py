"""`make bench-grounding`: whether answers from documents are given where they stand, and refused where they do not.

RGB gives a question with passages that answer it, passages about the same that do not, and passages made false. Without
a language model the answer is the sentence that fits the question best, and a rule of relevance gives or refuses it;
what is told so is searching and checking, not writing. The rule of relevance belongs to this bench: in the product a
model decides whether to answer. English is measured on the counterfactual part alone, the only one at hand. All rules
were fitted on other data (`grounding_fit.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from agent.config.project import Home, find_project
from agent.encoders.encoder import Encoder, SentenceEncoder
from agent.grounding.check import check_sentences, collect_evidence
from agent.grounding.claims import Claim, weighted_share, word_weights
from agent.llm.weights.catalog import DEFAULT_ENCODER
from agent.llm.weights.load import resolve_encoder
from agent.records.run import Evidence, Outcome, Step, Task, ToolCall, Trajectory
from agent.run.limits import Budget
from agent.run.loop import advance
from agent.run.state import Options, Run
from agent.run.tools import make_frame
from agent.runtime import Runtime
from agent.text.quotes import Quote, match_quotes
from agent.text.sentences import split_sentences
from agent.util.ids import timestamp
from tests.bench.results import write_result
from tools.basics import answer, hand_over
from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge

PASSAGES = 5
"""Shown for each question."""
RIGHT = 2
"""Of them, where the question can be answered."""
FILES = {
    ("en", "counterfactual"): "en_fact.json",
    ("zh", "counterfactual"): "zh_fact.json",
    ("zh", "noise"): "zh_refine.json",
    ("zh", "integration"): "zh_int.json",
}
INSTRUCTIONS = "Answer the question from the documents. Search first. If they do not answer it, hand over."
ASKING = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how many|how much|how long|how old|how)\b"
    r"|什么时候|什么地方|多少|什么|哪一|哪些|哪个|哪里|哪|几|谁|何时|何处|为何|何|多久|多大|怎么|如何",
    re.IGNORECASE,
)
_COUNTING = re.compile(
    r"\b(?:when|how (?:many|much|long|old)|date|year)\b|时候|时间|多少|几|何时|多久|多大|日期|哪一?年|人数",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fit:
    """How well a sentence answers a question, as far as rules can see it."""

    words: float
    """Share of the question's words that stand in the sentence, the rarer the heavier."""
    around: float
    """Share of them that stand anywhere in its passage."""
    nearness: float
    """Cosine of the vectors; 0 for Chinese, which the packaged encoder does not know."""
    figure: float
    """1 where a figure is asked for and the sentence gives none that the question did not."""

    def as_list(self) -> list[float]:
        return [self.words, self.around, self.nearness, self.figure]


@dataclass(frozen=True)
class Relevance:
    """A logistic rule of whether a sentence answers a question."""

    bias: float
    words: float
    around: float
    nearness: float
    figure: float
    threshold: float = 0.5

    def score(self, found: Fit) -> float:
        weights = (self.words, self.around, self.nearness, self.figure)
        total = self.bias + sum(weight * one for weight, one in zip(weights, found.as_list(), strict=True))
        return 1.0 / (1.0 + math.exp(-total))


RELEVANCE: Mapping[str, Relevance] = {
    "en": Relevance(-4.92, 1.18, 6.85, 3.48, -0.61, threshold=0.51),
    "zh": Relevance(-2.98, 0.63, 8.16, 0.0, 0.89, threshold=0.44),
}
"""Fitted on XQuAD's even-numbered paragraphs, never on RGB."""


@dataclass(frozen=True)
class RgbQuestion:
    """A question of RGB. Each group of `gold` must be met by one of its wordings."""

    text: str
    gold: tuple[tuple[str, ...], ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    false: tuple[str, ...] = ()
    """The right passages with the answer changed."""


@dataclass(frozen=True)
class Extracted:
    """The sentences that fit a question best, the best first, and how well."""

    cited: tuple[Evidence, ...]
    score: float


def fits(question: str, shown: Sequence[Evidence], encoder: Encoder, language: str) -> list[Fit]:
    """How well each sentence that was shown answers the question."""
    claims = [Claim(one.text) for one in shown]
    asked = Claim(ASKING.sub(" ", question))
    weights, unseen = word_weights(claims), 1.0 + math.log(len(claims) + 1)
    around: dict[int | None, frozenset[str]] = {}
    for one, claim in zip(shown, claims, strict=True):
        around[one.label] = around.get(one.label, frozenset()) | claim.all_words
    nearness = np.zeros(len(shown))
    if language == "en":
        vectors = encoder.encode([question, *(one.text for one in shown)])
        nearness = vectors[1:] @ vectors[0]
    counting = _COUNTING.search(question) is not None
    return [
        Fit(
            weighted_share(asked.words, claim.all_words, weights, unseen),
            weighted_share(asked.words, around[one.label], weights, unseen),
            float(near),
            float(counting and not claim.possible_figures - asked.possible_figures),
        )
        for one, claim, near in zip(shown, claims, nearness, strict=True)
    ]


def extract(question: str, shown: Sequence[Evidence], encoder: Encoder, language: str, count: int = 1) -> Extracted:
    """The `count` best sentences."""
    scores = [RELEVANCE[language].score(one) for one in fits(question, shown, encoder, language)]
    best = sorted(range(len(shown)), key=lambda place: -scores[place])[:count]
    return Extracted(tuple(shown[place] for place in best), max(scores, default=0.0))


def rgb(data: Path, encoder: Encoder, *, limit: int | None = None) -> dict[str, Any]:
    """Metrics by language and part, and the rows they come from."""
    rows = []
    for (language, part), name in FILES.items():
        found = list(questions(data / "rgb_zh_en" / name))[:limit]
        rows.append({"language": language, "part": part, **measured(found, encoder, language, part)})
    kept = ("rejection_rate", "false_rejection_rate", "citation_precision", "citation_recall", "supported_share")
    metrics = {f"{row['language']}_{row['part']}_{key}": row[key] for row in rows for key in kept}
    return {"metrics": metrics, "rows": rows}


def measured(found: Sequence[RgbQuestion], encoder: Encoder, language: str, part: str) -> dict[str, Any]:
    """One part. Two sentences are taken where the answer is to be put together from two."""
    threshold = RELEVANCE[language].threshold
    count = 2 if part == "integration" else 1
    refused, missed, gold, precise, recalled, findable = [], [], [], [], [], []
    for one in found:
        without = extract(one.text, evidence(one.wrong[:PASSAGES]), encoder, language)
        refused.append(without.score < threshold)
        right = one.right[:RIGHT]
        shown = evidence([*right, *one.wrong[: PASSAGES - len(right)]])
        findable.append(meets(" ".join(sentence.text for sentence in shown), one.gold))
        made = extract(one.text, shown, encoder, language, count)
        missed.append(made.score < threshold)
        if missed[-1]:
            continue
        gold.append(meets(" ".join(sentence.text for sentence in made.cited), one.gold))
        precise += [holds(sentence.text, one.gold) for sentence in made.cited]
        cited = {sentence.label for sentence in made.cited}
        whole = " ".join(sentence.text for sentence in shown if sentence.label in cited)
        recalled += [meets(whole, (group,)) for group in one.gold]
    supported, believed = grounding_shares(found, encoder)
    return {
        "questions": len(found),
        "rejection_rate": share_of(refused),
        "false_rejection_rate": share_of(missed),
        "findable_share": share_of(findable),
        "gold_share": share_of(gold),
        "citation_precision": share_of(precise),
        "citation_recall": share_of(recalled),
        "supported_share": supported,
        "false_supported_share": believed,
    }


def grounding_shares(found: Sequence[RgbQuestion], encoder: Encoder) -> tuple[float | None, float | None]:
    """How many true sentences other passages support, and how many passages that were made false support.

    The sentence is that of the first right passage that meets the question's answer. It is not shown itself.
    """
    supported, believed = [], []
    for one in found:
        place, claim = next(
            (
                (place, sentence)
                for place, text in enumerate(one.right)
                for sentence in split_sentences(text)
                if holds(sentence, one.gold)
            ),
            (0, ""),
        )
        others = [text for number, text in enumerate(one.right) if number != place]
        if not claim or not others:
            continue
        supported.append(not check_sentences(claim, evidence([*others, *one.wrong[:2]]), encoder).unsupported)
        if one.false:
            believed.append(not check_sentences(claim, evidence(one.false), encoder).unsupported)
    return share_of(supported), share_of(believed)


def rgb_model(
    data: Path, runtime: Runtime, encoder: Encoder, *, limit: int = 60, adapter: str | None = None
) -> dict[str, Any]:
    """The packaged model on the English part: shown passages, it quotes or hands over; half of them hold no answer.

    `adapter` is the id of one of the runtime's; None leaves the model as it is.

    The search is made for it, since untuned it searches again and again (8 of 8 runs ended as looping).

    `checked` counts as refused what the rule of relevance would refuse, too.
    """
    found = list(questions(data / "rgb_zh_en" / FILES["en", "counterfactual"]))[:limit]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, one in enumerate(found):
            answerable = number % 2 == 0
            right = one.right[:RIGHT] if answerable else ()
            passages = [*right, *one.wrong[: PASSAGES - len(right)]]
            context = ToolContext(Path(scratch), Path(scratch), retriever=Given(passages), task=one.text)
            tools = [search_knowledge(context, PASSAGES), answer(quoted=True), hand_over()]
            options = Options(Budget(5), plan=False, thought=False, instructions=INSTRUCTIONS, grounded="withhold")
            stepper = runtime.stepper(adapter)
            task = Task(str(number), one.text)
            state = Run(
                trajectory=Trajectory(task.id, task, stepper.provenance(), timestamp()),
                stepper=stepper,
                tools={tool.name: tool for tool in tools},
                frame=make_frame(tools[1:], options),
                options=options,
                encoder=lambda: encoder,
            )
            made = advance(state, Step(ToolCall("search_knowledge", {"query": one.text[:80]})))
            shown = collect_evidence(made.steps)
            made_of = (
                match_quotes(made.answer or "", [Quote(sentence.text, sentence.label) for sentence in shown]) or ()
            )
            said = [sentence for sentence in shown if sentence.text in {quote.text for quote in made_of}]
            scores = [RELEVANCE["en"].score(fit) for fit in fits(one.text, shown, encoder, "en")] if said else []
            best = max((scores[place] for place, sentence in enumerate(shown) if sentence in said), default=0.0)
            rows.append(
                {
                    "answerable": answerable,
                    "outcome": made.outcome,
                    "answered": made.outcome is Outcome.ANSWERED,
                    "relevant": best >= RELEVANCE["en"].threshold,
                    "withheld": len(made.steps[-1].withheld) if made.steps else 0,
                    "precise": [holds(sentence.text, one.gold) for sentence in said],
                }
            )
    return {"metrics": model_metrics(rows), "rows": rows}


def model_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the model alone, and with the rule of relevance behind it."""
    made: dict[str, float | None] = {}
    for name in ("model", "checked"):
        given = [row["answered"] and (name == "model" or row["relevant"]) for row in rows]
        both = list(zip(rows, given, strict=True))
        made[f"en_{name}_rejection_rate"] = share_of([not one for row, one in both if not row["answerable"]])
        made[f"en_{name}_false_rejection_rate"] = share_of([not one for row, one in both if row["answerable"]])
        precise = [right for row, one in both if one and row["answerable"] for right in row["precise"]]
        made[f"en_{name}_citation_precision"] = share_of(precise)
    return made


class Given:
    """Finds the passages it was given, whatever is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def search(self, query: str, k: int) -> Sequence[Passage]:
        return [Passage(0, str(place), f"{place}.txt", "", text) for place, text in enumerate(self._texts[:k])]


def questions(path: Path) -> Iterator[RgbQuestion]:
    """The questions of one of RGB's files, one JSON object a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            one = json.loads(line)
            gold = [one["answer"]] if isinstance(one["answer"], str) else one["answer"]
            yield RgbQuestion(
                one["query"],
                tuple((group,) if isinstance(group, str) else tuple(group) for group in gold),
                _flat(one["positive"]),
                _flat(one["negative"]),
                _flat(one.get("positive_wrong", ())),
            )


def evidence(texts: Sequence[str]) -> tuple[Evidence, ...]:
    """The sentences of passages, labelled in their order."""
    return tuple(
        Evidence(sentence, label, f"{label}.txt")
        for label, text in enumerate(texts, 1)
        for sentence in split_sentences(text)
    )


def meets(text: str, gold: Sequence[Sequence[str]]) -> bool:
    """Whether a text holds all that the answer is made of."""
    return all(holds(text, (group,)) for group in gold)


def holds(text: str, gold: Sequence[Sequence[str]]) -> bool:
    """Whether a text holds any part of the answer, in any wording."""
    plain = _plain(text)
    return any(_plain(wording) in plain for group in gold for wording in group)


def share_of(found: Sequence[bool]) -> float | None:
    return fmean(map(float, found)) if found else None


def _flat(texts: Sequence[Any]) -> tuple[str, ...]:
    """Where the answer has parts, the first passage of each part comes first."""
    if texts and isinstance(texts[0], list):
        longest = max(map(len, texts))
        return tuple(group[place] for place in range(longest) for group in texts if place < len(group))
    return tuple(texts)


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", str(text)).casefold()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds rgb_zh_en")
    parser.add_argument("--home", type=Path, default=Path(".ratchet"), help="where the models are, or are put")
    parser.add_argument("--limit", type=int, default=None, help="questions of each part, at most")
    parser.add_argument("--model", type=int, default=0, help="questions for the packaged model; 0 leaves it out")
    args = parser.parse_args()
    if not (args.data / "rgb_zh_en").is_dir():
        parser.error(f"{args.data} has no folder rgb_zh_en; name the folder that has one with --data")
    encoder = SentenceEncoder(resolve_encoder(DEFAULT_ENCODER, Home(args.home).models), name=DEFAULT_ENCODER)
    made = rgb(args.data, encoder, limit=args.limit)
    metrics, rows = dict(made["metrics"]), list(made["rows"])
    command = "python -m tests.bench.grounding"
    if args.model:
        with Runtime(find_project(args.home, {"RATCHET_HOME": str(args.home.resolve())})) as runtime:
            metrics |= rgb_model(args.data, runtime, encoder, limit=args.model)["metrics"]
        command += f" --model {args.model}"
    for name, value in metrics.items():
        print(f"{name:45} {'not measured' if value is None else f'{value:.3f}'}")
    print(write_result("grounding", command, metrics, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
