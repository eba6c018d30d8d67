"""Examples of the classic tasks: one frozen record each, whatever file it came from.

Offsets count characters of the original text, the end exclusive. A record without labels is one to predict.
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
"""Tasks that return free text; only a language model can do them."""


@dataclass(frozen=True)
class Span:
    """A span of a text with its type."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class ClassifyExample:
    """A text, or a pair of texts, with its labels."""

    text: str
    labels: tuple[str, ...] = ()
    """Exactly one, unless the task is multi-label."""
    pair: str | None = None
    source: str = ""
    """File and line, for error messages; the same in every record."""


@dataclass(frozen=True)
class TagExample:
    """A text split into words, each with its tag."""

    text: str
    offsets: tuple[tuple[int, int], ...]
    """Start and end of each word in `text`."""
    tags: tuple[str, ...] = ()
    """In IOB2, one per word."""
    source: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.text[start:end] for start, end in self.offsets)


@dataclass(frozen=True)
class RelateExample:
    """A text with two marked entities, and the relation of the first to the second."""

    text: str
    first: tuple[int, int]
    second: tuple[int, int]
    label: str = ""
    source: str = ""


@dataclass(frozen=True)
class AnswerSpan:
    """An answer as a span of its context."""

    text: str
    start: int


@dataclass(frozen=True)
class AnswerExample:
    """A question about a context, with its correct answers; without any, the context does not answer it."""

    question: str
    context: str
    answers: tuple[AnswerSpan, ...] = ()
    id: str = ""
    source: str = ""


@dataclass(frozen=True)
class EmbedExample:
    """Two texts and their similarity; without a score they belong together."""

    text: str
    other: str
    score: float | None = None
    """On any scale, higher for more similar texts."""
    negative: str | None = None
    """A text that does not belong to the first: a hard negative."""
    source: str = ""

    @property
    def label(self) -> str:
        return "" if self.score is None else str(self.score)


@dataclass(frozen=True)
class WriteExample:
    """A text and its translation or summary."""

    text: str
    target: str = ""
    language: str = ""
    """Of the target, where the file names it."""
    source: str = ""


@dataclass(frozen=True)
class ChatTurn:
    """One message of a chat."""

    speaker: Literal["customer", "agent"]
    text: str


@dataclass(frozen=True)
class ConverseExample:
    """A chat up to a customer's turn, and the best answer."""

    turns: tuple[ChatTurn, ...]
    """The last is a customer's."""
    answer: str = ""
    chat: str = ""
    """Shared by the examples of one chat; empty for a single question."""
    source: str = ""


TaskExample = (
    ClassifyExample | TagExample | RelateExample | AnswerExample | EmbedExample | WriteExample | ConverseExample
)


def example_key(example: TaskExample) -> str:
    """Return the normalised text that identifies an example: NFKC, without regard to case and spacing."""
    match example:
        case ClassifyExample(text=text, pair=pair):
            return _normalise([text] if pair is None else [text, pair])
        case TagExample():
            return _normalise([" ".join(example.words)])
        case RelateExample(text=text, first=first, second=second):
            return _normalise([text, str(first), str(second)])
        case AnswerExample(question=question, context=context):
            return _normalise([question, context])
        case EmbedExample(text=text, other=other):
            return _normalise([text, other])
        case WriteExample(text=text):
            return _normalise([text])
        case ConverseExample(turns=turns):
            return _normalise([turn.text for turn in turns])


def group_key(example: TaskExample) -> str:
    """Return the key of the examples that stay in one split: a context, a text's pairs, a chat, else a text."""
    match example:
        case AnswerExample(context=context):
            return _normalise([context])
        case EmbedExample(text=text, score=None):
            return _normalise([text])
        case ConverseExample(chat=chat) if chat:
            return _normalise([chat])
        case _:
            return example_key(example)


def label_key(example: TaskExample) -> str:
    """Return the label that splits are stratified by."""
    match example:
        case ClassifyExample(labels=labels):
            return "|".join(labels)
        case TagExample(tags=tags):
            return "|".join(sorted({tag[2:] for tag in tags if tag != "O"}))
        case RelateExample(label=label):
            return label
        case AnswerExample(answers=answers):
            return "answer" if answers else "none"
        case EmbedExample() | WriteExample() | ConverseExample():
            return ""


def display_text(example: TaskExample) -> str:
    """Return an example's text as a person reads it."""
    match example:
        case ClassifyExample(text=text, pair=pair):
            return text if pair is None else f"{text} / {pair}"
        case TagExample(text=text):
            return text
        case RelateExample():
            return _mark_entities(example)
        case AnswerExample(question=question):
            return question
        case EmbedExample(text=text, other=other):
            return f"{text} / {other}"
        case WriteExample(text=text):
            return text
        case ConverseExample(turns=turns):
            return " / ".join(turn.text for turn in turns)


def _mark_entities(example: RelateExample) -> str:
    text = example.text
    inserts = [(example.first, "e1"), (example.second, "e2")]
    for (start, end), name in sorted(inserts, reverse=True):
        text = f"{text[:start]}<{name}>{text[start:end]}</{name}>{text[end:]}"
    return text


def _normalise(parts: Sequence[str]) -> str:
    return "\x1f".join(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)
