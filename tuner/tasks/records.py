"""What the tasks learn from: one frozen record an example, whatever file it came from.

All offsets are characters of the original text, the end exclusive. A record without labels is one to predict.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classify", "tag", "relate", "answer"]
TASKS: tuple[TaskName, ...] = ("classify", "tag", "relate", "answer")


@dataclass(frozen=True)
class Span:
    """A stretch of a text with its type."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Classified:
    """A text, or a pair of texts, with its labels."""

    text: str
    labels: tuple[str, ...] = ()
    """Exactly one, unless the task is multi-label."""
    pair: str | None = None
    source: str = ""
    """File and line, for errors; so in every record."""


@dataclass(frozen=True)
class Tagged:
    """A text in words, each with its tag."""

    text: str
    offsets: tuple[tuple[int, int], ...]
    """Where each word stands in `text`."""
    tags: tuple[str, ...] = ()
    """IOB2, one a word."""
    source: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.text[start:end] for start, end in self.offsets)


@dataclass(frozen=True)
class Related:
    """A text with two marked stretches, and what the first is to the second."""

    text: str
    first: tuple[int, int]
    second: tuple[int, int]
    label: str = ""
    source: str = ""


@dataclass(frozen=True)
class Answer:
    """A stretch of a context."""

    text: str
    start: int


@dataclass(frozen=True)
class Asked:
    """A question about a context, with the answers that count as right; none means that the context does not say."""

    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    id: str = ""
    source: str = ""


Example = Classified | Tagged | Related | Asked


def key(example: Example) -> str:
    """The normalised text by which the same example is known again: NFKC, case and spacing aside."""
    match example:
        case Classified(text=text, pair=pair):
            return _normal([text] if pair is None else [text, pair])
        case Tagged():
            return _normal([" ".join(example.words)])
        case Related(text=text, first=first, second=second):
            return _normal([text, str(first), str(second)])
        case Asked(question=question, context=context):
            return _normal([question, context])


def group(example: Example) -> str:
    """What must not be torn apart by a split: the context of a question, else the text itself."""
    return _normal([example.context]) if isinstance(example, Asked) else key(example)


def label_of(example: Example) -> str:
    """What a split is stratified by."""
    match example:
        case Classified(labels=labels):
            return "|".join(labels)
        case Tagged(tags=tags):
            return "|".join(sorted({tag[2:] for tag in tags if tag != "O"}))
        case Related(label=label):
            return label
        case Asked(answers=answers):
            return "answer" if answers else "none"


def shown(example: Example) -> str:
    """The example as a person reads it."""
    match example:
        case Classified(text=text, pair=pair):
            return text if pair is None else f"{text} / {pair}"
        case Tagged(text=text):
            return text
        case Related():
            return _marked(example)
        case Asked(question=question):
            return question


def _marked(example: Related) -> str:
    text = example.text
    inserts = [(example.first, "e1"), (example.second, "e2")]
    for (start, end), name in sorted(inserts, reverse=True):
        text = f"{text[:start]}<{name}>{text[start:end]}</{name}>{text[end:]}"
    return text


def _normal(parts: Sequence[str]) -> str:
    return "\x1f".join(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)
