"""What the tasks learn from: one frozen record an example, whatever file it came from.

All offsets are characters of the original text, the end exclusive. A record without labels is one to predict.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classify", "tag", "relate", "answer", "embed", "translate", "summarise", "converse"]
TASKS: tuple[TaskName, ...] = (
    "classify",
    "tag",
    "relate",
    "answer",
    "embed",
    "translate",
    "summarise",
    "converse",
)
WRITTEN: tuple[TaskName, ...] = ("translate", "summarise", "converse")
"""Tasks whose outcome is free text: for a language model alone."""


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


@dataclass(frozen=True)
class Similar:
    """Two texts, and how alike they are; without a score they belong together."""

    text: str
    other: str
    score: float | None = None
    """On any scale, more for those more alike."""
    negative: str | None = None
    """A text that does not belong to the first."""
    source: str = ""

    @property
    def label(self) -> str:
        return "" if self.score is None else str(self.score)


@dataclass(frozen=True)
class Written:
    """A text, and what is to be written of it: its translation or its summary."""

    text: str
    target: str = ""
    language: str = ""
    """Of the target, where the file says it."""
    source: str = ""


@dataclass(frozen=True)
class Turn:
    """What one side of a chat said."""

    speaker: Literal["customer", "agent"]
    text: str


@dataclass(frozen=True)
class Conversed:
    """A chat until a customer's turn, and the answer that was best."""

    turns: tuple[Turn, ...]
    """The last is a customer's."""
    answer: str = ""
    chat: str = ""
    """Shared by the examples of one chat; empty for a single question."""
    source: str = ""


Example = Classified | Tagged | Related | Asked | Similar | Written | Conversed


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
        case Similar(text=text, other=other):
            return _normal([text, other])
        case Written(text=text):
            return _normal([text])
        case Conversed(turns=turns):
            return _normal([one.text for one in turns])


def group(example: Example) -> str:
    """What no split may tear apart: a question's context, the pairs of a text, a whole chat, else the text itself."""
    match example:
        case Asked(context=context):
            return _normal([context])
        case Similar(text=text, score=None):
            return _normal([text])
        case Conversed(chat=chat) if chat:
            return _normal([chat])
        case _:
            return key(example)


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
        case Similar() | Written() | Conversed():
            return ""


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
        case Similar(text=text, other=other):
            return f"{text} / {other}"
        case Written(text=text):
            return text
        case Conversed(turns=turns):
            return " / ".join(one.text for one in turns)


def _marked(example: Related) -> str:
    text = example.text
    inserts = [(example.first, "e1"), (example.second, "e2")]
    for (start, end), name in sorted(inserts, reverse=True):
        text = f"{text[:start]}<{name}>{text[start:end]}</{name}>{text[end:]}"
    return text


def _normal(parts: Sequence[str]) -> str:
    return "\x1f".join(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)
