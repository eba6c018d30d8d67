"""Prompts of the tasks whose output is held to a form by a grammar: labels, entities, relations and answers.

The grammar allows one of the labels, a list of entities copied from the text, or words of the context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.llm.prompt.json_grammar import canonical, choice_grammar, copyable, value_grammar
from agent.llm.prompt.render import Message
from tuner.tasks.data.records import (
    AnswerExample,
    ClassifyExample,
    RelateExample,
    Span,
    TagExample,
    TaskName,
    display_text,
)
from tuner.tasks.data.schemes import chunks_to_iob2
from tuner.tasks.data.words import spans_from_tags, split_words
from tuner.tasks.example_metrics import measure_answer, measure_classify, measure_relate, measure_tag
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import AnswerPrediction, EntityPrediction, LabelPrediction

MAX_ENTITIES = 32
"""Entities of one text."""
MAX_COPIED = 240
"""Characters of an entity or an answer."""


@dataclass(frozen=True)
class ClassifyPrompt:
    """One label, or a JSON list of labels."""

    labels: tuple[str, ...]
    multi: bool = False
    """Whether a text may have any number of labels."""
    name: TaskName = "classify"

    @property
    def system(self) -> str:
        how = "List the labels that fit, as JSON." if self.multi else "Answer with the one label that fits best."
        return f"You label texts. {how}\nLabels: {', '.join(self.labels)}"

    def messages(self, example: ClassifyExample) -> list[Message]:
        text = example.text if example.pair is None else f"First: {example.text}\nSecond: {example.pair}"
        return [Message("user", text)]

    def target(self, example: ClassifyExample) -> str:
        return canonical(list(example.labels)) if self.multi else example.labels[0]

    def grammar(self, example: ClassifyExample) -> str:
        if not self.multi:
            return choice_grammar(self.labels)
        return value_grammar({"type": "array", "items": {"enum": list(self.labels)}, "maxItems": len(self.labels)})

    def parse(self, example: ClassifyExample, output: str, score: float) -> LabelPrediction:
        if self.multi:
            labels = tuple(sorted({label for label in _strings(output) if label in self.labels}))
            return LabelPrediction(labels, score, dict.fromkeys(labels, score))
        return _one_label(self.labels, output, score)

    def measure(
        self, examples: Sequence[ClassifyExample], predictions: Sequence[LabelPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_classify(examples, predictions, self.labels, multi=self.multi, resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {"multi": self.multi}


@dataclass(frozen=True)
class TagPrompt:
    """A JSON list of entities, each copied from the text, with its type."""

    labels: tuple[str, ...]
    name: TaskName = "tag"

    @property
    def system(self) -> str:
        return (
            f'You find entities in a text. List them in their order, each with its type: [["entity","{self.labels[0]}"'
            f"]]. [] if there are none.\nTypes: {', '.join(self.labels)}"
        )

    def messages(self, example: TagExample) -> list[Message]:
        return [Message("user", example.text)]

    def target(self, example: TagExample) -> str:
        spans = spans_from_tags(example.offsets, example.tags)
        return canonical([[copyable(example.text[span.start : span.end]), span.label] for span in spans])

    def grammar(self, example: TagExample) -> str:
        words = copyable(example.text)
        if not words:
            return choice_grammar(["[]"])
        entity = {"type": "string", "words_of": words, "minLength": 1, "maxLength": MAX_COPIED}
        item = {"type": "array", "prefixItems": [entity, {"enum": list(self.labels)}]}
        return value_grammar({"type": "array", "items": item, "maxItems": MAX_ENTITIES})

    def parse(self, example: TagExample, output: str, score: float) -> EntityPrediction:
        spans: list[Span] = []
        dropped = 0
        for entity, label in _string_pairs(output):
            place = locate_words(entity, example.text, spans[-1].end if spans else 0)
            if place is None or label not in self.labels or any(_overlaps(place, span) for span in spans):
                dropped += 1
            else:
                spans.append(Span(*place, label))
        return EntityPrediction(example.text, tuple(spans), _iob2_tags(example, spans), score, dropped)

    def measure(
        self, examples: Sequence[TagExample], predictions: Sequence[EntityPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_tag(examples, predictions, resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class RelatePrompt:
    """One relation of the set, with its direction."""

    labels: tuple[str, ...]
    name: TaskName = "relate"

    @property
    def system(self) -> str:
        return (
            "You say what the thing in <e1></e1> is to the thing in <e2></e2>. Answer with one relation.\n"
            f"Relations: {', '.join(self.labels)}"
        )

    def messages(self, example: RelateExample) -> list[Message]:
        return [Message("user", display_text(example))]

    def target(self, example: RelateExample) -> str:
        return example.label

    def grammar(self, example: RelateExample) -> str:
        return choice_grammar(self.labels)

    def parse(self, example: RelateExample, output: str, score: float) -> LabelPrediction:
        return _one_label(self.labels, output, score)

    def measure(
        self, examples: Sequence[RelateExample], predictions: Sequence[LabelPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_relate(examples, predictions, self.labels, resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class AnswerPrompt:
    """Words copied from the context in quotes, or null."""

    labels: tuple[str, ...] = ()
    none: bool = True
    """Whether questions may have no answer."""
    name: TaskName = "answer"

    @property
    def system(self) -> str:
        none = " If the text does not say, answer null." if self.none else ""
        return f"You answer questions with words copied from the text, in quotes.{none}"

    def messages(self, example: AnswerExample) -> list[Message]:
        return [Message("user", f"{example.context}\n\nQuestion: {example.question}")]

    def target(self, example: AnswerExample) -> str:
        return canonical(copyable(example.answers[0].text)) if example.answers else "null"

    def grammar(self, example: AnswerExample) -> str:
        words = copyable(example.context)
        copied = {"type": "string", "words_of": words, "minLength": 1, "maxLength": MAX_COPIED}
        none: list[Mapping[str, Any]] = [{"const": None}] if self.none or not words else []
        return value_grammar({"anyOf": [*none, *([copied] if words else [])]})

    def parse(self, example: AnswerExample, output: str, score: float) -> AnswerPrediction:
        words = next(iter(_strings(output)), "")
        place = locate_words(words, example.context) if words else None
        if place is None:
            return AnswerPrediction("", 0, 0, score)
        return AnswerPrediction(example.context[slice(*place)], *place, score)

    def measure(
        self, examples: Sequence[AnswerExample], predictions: Sequence[AnswerPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_answer(examples, predictions, resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {"none": self.none}


def locate_words(words: str, text: str, start: int = 0) -> tuple[int, int] | None:
    """Find whole words in a text, without regard to spacing and quotes.

    Returns:
        Start and end of the first place from character `start` on, else of the first place; None where there is none.
    """
    if not words.strip():
        return None
    starts, ends = (set(column) for column in zip(*split_words(text), strict=True)) if text.strip() else (set(), set())
    pattern = r'[\s"\\\x00-\x1f\x7f]+'.join(map(re.escape, words.split()))
    # Inside a look-ahead, so that overlapping places are found.
    places = [match.span(1) for match in re.finditer(f"(?=({pattern}))", text)]
    whole = [place for place in places if place[0] in starts and place[1] in ends] or places
    return next((place for place in whole if place[0] >= start), whole[0] if whole else None)


def _one_label(labels: Sequence[str], output: str, score: float) -> LabelPrediction:
    """The output as the one label; none where it is no label, such as one that was cut off."""
    predicted = (output,) if output in labels else ()
    return LabelPrediction(predicted, score, dict.fromkeys(predicted, score))


def _overlaps(place: tuple[int, int], span: Span) -> bool:
    return place[0] < span.end and span.start < place[1]


def _iob2_tags(example: TagExample, spans: Sequence[Span]) -> tuple[str, ...]:
    """The IOB2 tags of the example's own words; of spans that share a word the first counts."""
    chunks = []
    taken = set[int]()
    for span in spans:
        inside = [at for at, (start, end) in enumerate(example.offsets) if start < span.end and end > span.start]
        if inside and not taken.intersection(inside):
            taken.update(inside)
            chunks.append((span.label, inside[0], inside[-1] + 1))
    return chunks_to_iob2(chunks, len(example.offsets))


_STRING = r'"((?:[^"\\]|\\.)*)"'


def _strings(output: str) -> list[str]:
    """The strings of JSON that may have been cut off."""
    return [str(json.loads(f'"{string}"')) for string in re.findall(_STRING, output)]


def _string_pairs(output: str) -> list[tuple[str, str]]:
    """The lists of two strings in JSON that may have been cut off."""
    return [
        (str(json.loads(f'"{first}"')), str(json.loads(f'"{second}"')))
        for first, second in re.findall(rf"\[{_STRING},{_STRING}\]", output)
    ]
