"""How a language model is asked for each task: what it is told, what it may say, and how that is read.

A grammar holds it to the form: one of the labels, a list of entities copied from the text, words of the context or
none. Translations, summaries and answers to customers are free text with a most of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.errors import DatasetError
from agent.llm.prompt.json_grammar import canonical, choice_grammar, copyable, value_grammar
from agent.llm.prompt.render import Message
from tuner.tasks import text_metrics
from tuner.tasks.data.languages import language_of
from tuner.tasks.data.records import Asked, Classified, Conversed, Related, Span, Tagged, TaskName, Written, shown
from tuner.tasks.data.schemes import chunks, from_chunks
from tuner.tasks.data.words import spans_of, split_words
from tuner.tasks.metrics import RESAMPLES, Scores, answers, entities, multi_label, relations, single_label
from tuner.tasks.predictions import Entities, Found, Labelled, Prediction, Said

MOST_ENTITIES = 32
LONGEST_COPY = 240
"""Characters of an entity or an answer."""


class Asking(Protocol):
    """One task as a language model is asked for it. Examples are all of the task's own kind of record."""

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels, relations or types of entities; empty where there are none."""
        ...

    @property
    def system(self) -> str:
        """What the model is told first, whatever the text."""
        ...

    def conversation(self, example: Any) -> list[Message]:
        """What it is then shown; the last message is a user's."""
        ...

    def wanted(self, example: Any) -> str:
        """What it should say, of an example with labels."""
        ...

    def grammar(self, example: Any) -> str | None:
        """What it may say, as a Lark grammar; None for any text."""
        ...

    def read(self, example: Any, said: str, score: float) -> Prediction:
        """What it said, as the prediction that it is, whole or cut off."""
        ...

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any], *, resamples: int = RESAMPLES) -> Scores:
        """As `tuner.tasks.head.tasks.Task.measure`."""
        ...

    def options(self) -> dict[str, Any]:
        """What `make_asking` needs beside the labels, as JSON."""
        ...


@dataclass(frozen=True)
class AskClassify:
    """One label, or a list of labels."""

    labels: tuple[str, ...]
    multi: bool = False
    name: TaskName = "classify"

    @property
    def system(self) -> str:
        how = "List the labels that fit, as JSON." if self.multi else "Answer with the one label that fits best."
        return f"You label texts. {how}\nLabels: {', '.join(self.labels)}"

    def conversation(self, example: Classified) -> list[Message]:
        text = example.text if example.pair is None else f"First: {example.text}\nSecond: {example.pair}"
        return [Message("user", text)]

    def wanted(self, example: Classified) -> str:
        return canonical(list(example.labels)) if self.multi else example.labels[0]

    def grammar(self, example: Classified) -> str:
        if not self.multi:
            return choice_grammar(self.labels)
        return value_grammar({"type": "array", "items": {"enum": list(self.labels)}, "maxItems": len(self.labels)})

    def read(self, example: Classified, said: str, score: float) -> Labelled:
        if self.multi:
            found = tuple(sorted({one for one in _strings(said) if one in self.labels}))
        else:
            found = (said,) if said in self.labels else ()
        return Labelled(found, score, dict.fromkeys(found, score))

    def measure(
        self, examples: Sequence[Classified], predictions: Sequence[Labelled], *, resamples: int = RESAMPLES
    ) -> Scores:
        # What was cut off is no label, and counts as wrong.
        said_too = {one.label for one in predictions} if not self.multi else set()
        labels = sorted({*self.labels, *said_too, *(label for one in examples for label in one.labels)})
        if self.multi:
            gold, said = [one.labels for one in examples], [one.labels for one in predictions]
            return multi_label(gold, said, labels, resamples=resamples)
        return single_label(
            [one.labels[0] for one in examples], [one.label for one in predictions], labels, resamples=resamples
        )

    def options(self) -> dict[str, Any]:
        return {"multi": self.multi}


@dataclass(frozen=True)
class AskTag:
    """A list of entities, each copied from the text, with its type."""

    labels: tuple[str, ...]
    name: TaskName = "tag"

    @property
    def system(self) -> str:
        return (
            f'You find entities in a text. List them in their order, each with its type: [["entity","{self.labels[0]}"'
            f"]]. [] if there are none.\nTypes: {', '.join(self.labels)}"
        )

    def conversation(self, example: Tagged) -> list[Message]:
        return [Message("user", example.text)]

    def wanted(self, example: Tagged) -> str:
        spans = spans_of(example.offsets, example.tags)
        return canonical([[copyable(example.text[one.start : one.end]), one.label] for one in spans])

    def grammar(self, example: Tagged) -> str:
        words = copyable(example.text)
        if not words:
            return choice_grammar(["[]"])
        entity = {"type": "string", "words_of": words, "minLength": 1, "maxLength": LONGEST_COPY}
        item = {"type": "array", "prefixItems": [entity, {"enum": list(self.labels)}]}
        return value_grammar({"type": "array", "items": item, "maxItems": MOST_ENTITIES})

    def read(self, example: Tagged, said: str, score: float) -> Entities:
        spans: list[Span] = []
        dropped = 0
        for entity, label in _two_strings(said):
            behind = spans[-1].end if spans else 0
            place = located(entity, example.text, behind)
            if place is None or label not in self.labels or any(_overlap(place, one) for one in spans):
                dropped += 1
            else:
                spans.append(Span(*place, label))
        return Entities(example.text, tuple(spans), _tags(example, spans), score, dropped)

    def measure(
        self, examples: Sequence[Tagged], predictions: Sequence[Entities], *, resamples: int = RESAMPLES
    ) -> Scores:
        return entities([one.tags for one in examples], [one.tags for one in predictions], resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class AskRelate:
    """One relation out of the set, its direction with it."""

    labels: tuple[str, ...]
    name: TaskName = "relate"

    @property
    def system(self) -> str:
        return (
            "You say what the thing in <e1></e1> is to the thing in <e2></e2>. Answer with one relation.\n"
            f"Relations: {', '.join(self.labels)}"
        )

    def conversation(self, example: Related) -> list[Message]:
        return [Message("user", shown(example))]

    def wanted(self, example: Related) -> str:
        return example.label

    def grammar(self, example: Related) -> str:
        return choice_grammar(self.labels)

    def read(self, example: Related, said: str, score: float) -> Labelled:
        found = (said,) if said in self.labels else ()
        return Labelled(found, score, dict.fromkeys(found, score))

    def measure(
        self, examples: Sequence[Related], predictions: Sequence[Labelled], *, resamples: int = RESAMPLES
    ) -> Scores:
        gold, said = [one.label for one in examples], [one.label for one in predictions]
        labels = sorted({*self.labels, *gold, *said})
        return relations(gold, said, labels, resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class AskAnswer:
    """Words copied from the context in quotes, or null."""

    labels: tuple[str, ...] = ()
    none: bool = True
    """Whether the context may not say."""
    name: TaskName = "answer"

    @property
    def system(self) -> str:
        none = " If the text does not say, answer null." if self.none else ""
        return f"You answer questions with words copied from the text, in quotes.{none}"

    def conversation(self, example: Asked) -> list[Message]:
        return [Message("user", f"{example.context}\n\nQuestion: {example.question}")]

    def wanted(self, example: Asked) -> str:
        return canonical(copyable(example.answers[0].text)) if example.answers else "null"

    def grammar(self, example: Asked) -> str:
        words = copyable(example.context)
        copied = {"type": "string", "words_of": words, "minLength": 1, "maxLength": LONGEST_COPY}
        none: list[Mapping[str, Any]] = [{"const": None}] if self.none or not words else []
        return value_grammar({"anyOf": [*none, *([copied] if words else [])]})

    def read(self, example: Asked, said: str, score: float) -> Found:
        words = next(iter(_strings(said)), "")
        place = located(words, example.context) if words else None
        if place is None:
            return Found("", 0, 0, score)
        return Found(example.context[slice(*place)], *place, score)

    def measure(self, examples: Sequence[Asked], predictions: Sequence[Found], *, resamples: int = RESAMPLES) -> Scores:
        gold = [[answer.text for answer in one.answers] for one in examples]
        return answers(gold, [one.text for one in predictions], resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {"none": self.none}


class _Writes:
    """What the tasks that write free text have in common."""

    def grammar(self, example: Any) -> None:
        return None

    def read(self, example: Any, said: str, score: float) -> Said:
        return Said(said.strip(), score)

    def options(self) -> dict[str, Any]:
        return {}


class _WritesOf(_Writes):
    """Those of one text, which is shown as it is."""

    def conversation(self, example: Written) -> list[Message]:
        return [Message("user", example.text)]

    def wanted(self, example: Written) -> str:
        return example.target


@dataclass(frozen=True)
class AskTranslate(_WritesOf):
    """A translation, as free text."""

    labels: tuple[str, ...] = ()
    into: str = ""
    """A language's name; empty where nobody said."""
    name: TaskName = "translate"

    @property
    def system(self) -> str:
        into = f" into {self.into}" if self.into else ""
        return f"You translate{into}. Answer with the translation alone."

    def measure(
        self, examples: Sequence[Written], predictions: Sequence[Said], *, resamples: int = RESAMPLES
    ) -> Scores:
        return text_metrics.translations(*_written(self, examples, predictions), resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {"into": self.into}


@dataclass(frozen=True)
class AskSummarise(_WritesOf):
    """A summary, as free text."""

    labels: tuple[str, ...] = ()
    name: TaskName = "summarise"
    system = "You summarise texts in a few plain sentences. Answer with the summary alone."

    def measure(
        self, examples: Sequence[Written], predictions: Sequence[Said], *, resamples: int = RESAMPLES
    ) -> Scores:
        return text_metrics.summaries(*_written(self, examples, predictions), resamples=resamples)


@dataclass(frozen=True)
class AskConverse(_Writes):
    """The next answer to a customer, as free text; the chat so far is shown as a chat."""

    labels: tuple[str, ...] = ()
    name: TaskName = "converse"
    system = "You answer customers of our service, in their language, briefly and to the point."

    def conversation(self, example: Conversed) -> list[Message]:
        return [Message("user" if one.speaker == "customer" else "assistant", one.text) for one in example.turns]

    def wanted(self, example: Conversed) -> str:
        return example.answer

    def measure(
        self, examples: Sequence[Conversed], predictions: Sequence[Said], *, resamples: int = RESAMPLES
    ) -> Scores:
        return text_metrics.replies(*_written(self, examples, predictions), resamples=resamples)


ASKINGS: Mapping[str, Any] = {
    "classify": AskClassify,
    "tag": AskTag,
    "relate": AskRelate,
    "answer": AskAnswer,
    "translate": AskTranslate,
    "summarise": AskSummarise,
    "converse": AskConverse,
}


def make_asking(name: str, labels: Sequence[str], options: Mapping[str, Any]) -> Asking:
    """A task by name, as it was saved. Raises DatasetError for one that a language model is not asked for."""
    if name not in ASKINGS:
        raise DatasetError(f"a language model is not asked for {name!r}; expected {', '.join(ASKINGS)}")
    made: Asking = ASKINGS[name](tuple(labels), **options)
    return made


def asking_of(name: TaskName, examples: Sequence[Any], *, labels: Sequence[str] = (), into: str = "") -> Asking:
    """A task with the labels that were named, else with those of the examples. Raises DatasetError where none is."""
    named = tuple(labels) or _labels_of(examples)
    options: dict[str, Any] = {}
    if name == "classify" and any(len(one.labels) != 1 for one in examples):
        options["multi"] = True
    if name == "answer" and examples:
        options["none"] = any(not one.answers for one in examples)
    if name == "translate":
        told = next((one.language for one in examples if one.language), "")
        options["into"] = into or told or language_of(one.target for one in examples)
    if name in ("classify", "tag", "relate") and len(named) < (1 if name == "tag" else 2):
        raise DatasetError(
            f"task {name} has the labels {list(named)}; name them with --labels one,other, or give examples with --data"
        )
    return make_asking(name, named if name in ("classify", "tag", "relate") else (), options)


def located(words: str, text: str, behind: int = 0) -> tuple[int, int] | None:
    """Where whole words stand in a text, spacing and quotes aside: the first place from `behind` on, else the first."""
    if not words.strip():
        return None
    starts, ends = (set(column) for column in zip(*split_words(text), strict=True)) if text.strip() else (set(), set())
    pattern = r'[\s"\\\x00-\x1f\x7f]+'.join(map(re.escape, words.split()))
    # Inside a look-ahead, so that places that overlap are found.
    found = [match.span(1) for match in re.finditer(f"(?=({pattern}))", text)]
    whole = [place for place in found if place[0] in starts and place[1] in ends] or found
    return next((place for place in whole if place[0] >= behind), whole[0] if whole else None)


def _written(task: Asking, examples: Sequence[Any], predictions: Sequence[Said]) -> tuple[list[str], list[str]]:
    """What should have been written, and what was."""
    return [task.wanted(one) for one in examples], [one.text for one in predictions]


def _overlap(place: tuple[int, int], span: Span) -> bool:
    return place[0] < span.end and span.start < place[1]


def _tags(example: Tagged, spans: Sequence[Span]) -> tuple[str, ...]:
    """IOB2 of the example's own words; of spans that share one the first counts."""
    found = []
    taken = set[int]()
    for span in spans:
        inside = [at for at, (start, end) in enumerate(example.offsets) if start < span.end and end > span.start]
        if inside and not taken.intersection(inside):
            taken.update(inside)
            found.append((span.label, inside[0], inside[-1] + 1))
    return from_chunks(found, len(example.offsets))


_STRING = r'"((?:[^"\\]|\\.)*)"'


def _strings(said: str) -> list[str]:
    """The strings of JSON that may have been cut off."""
    return [str(json.loads(f'"{one}"')) for one in re.findall(_STRING, said)]


def _two_strings(said: str) -> list[tuple[str, str]]:
    return [
        (str(json.loads(f'"{one}"')), str(json.loads(f'"{other}"')))
        for one, other in re.findall(rf"\[{_STRING},{_STRING}\]", said)
    ]


def _labels_of(examples: Sequence[Any]) -> tuple[str, ...]:
    found: set[str] = set()
    for one in examples:
        match one:
            case Classified(labels=labels):
                found.update(labels)
            case Tagged(tags=tags):
                found.update(kind for kind, _, _ in chunks(tags))
            case Related(label=label):
                found.add(label)
    return tuple(sorted(found))
