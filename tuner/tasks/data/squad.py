"""Reads SQuAD's JSON, versions 1 and 2: articles with paragraphs, each a context and questions about it.

Source: Rajpurkar et al., "Know What You Don't Know: Unanswerable Questions for SQuAD" (2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.records import AnswerExample, AnswerSpan

_SLACK = 8
"""Characters by which a given start may be off."""


def is_squad(data: object) -> bool:
    """Whether parsed JSON is in this format."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        return False
    return any(isinstance(article, dict) and "paragraphs" in article for article in data["data"])


def parse_squad(data: Any, file: str) -> Iterator[AnswerExample]:
    """Read all questions. Raises DatasetError with the place of a malformed question."""
    for article_number, article in enumerate(data["data"]):
        for number, paragraph in enumerate(article.get("paragraphs", [])):
            place = f"{file}: data[{article_number}].paragraphs[{number}]"
            try:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    yield _read_question(question, context, place)
            except KeyError as fault:
                raise DatasetError(f"{place}: {fault} is missing; expected SQuAD's context and qas") from None


def parse_answers(value: Any, context: str, start: int | None = None) -> tuple[AnswerSpan, ...]:
    """Read answers as SQuAD, `datasets` or a table give them, and check that each is at its start.

    Args:
        start: First character of the answer in `context`, for a single text.

    Raises:
        ValueError: An answer is elsewhere, nowhere, or in several places without a start.
    """
    if value is None or value in ("", [], {}):
        return ()
    if isinstance(value, str):
        return (_answer(value, start, context),)
    if isinstance(value, dict):
        value = [
            {"text": text, "answer_start": at} for text, at in zip(value["text"], value["answer_start"], strict=True)
        ]
    spans = [
        _answer(answer, None, context)
        if isinstance(answer, str)
        else _answer(answer["text"], answer.get("answer_start"), context)
        for answer in value
    ]
    return tuple(dict.fromkeys(spans))


def _read_question(question: Any, context: str, place: str) -> AnswerExample:
    id = str(question.get("id", ""))
    try:
        spans = () if question.get("is_impossible") else parse_answers(question.get("answers"), context)
        return AnswerExample(question["question"].strip(), context, spans, id, f"{place} {id}")
    except ValueError as fault:
        raise DatasetError(f"{place}, question {id!r}: {fault}") from None


def _answer(text: str, start: int | None, context: str) -> AnswerSpan:
    """An answer without the white space around it, which no token covers."""
    if not text.strip():
        raise ValueError(f"answer {text!r} holds nothing but white space")
    return AnswerSpan(text.strip(), _place(text, start, context) + len(text) - len(text.lstrip()))


def _place(text: str, start: int | None, context: str) -> int:
    """The start of a text: near the start that was given, or its only place."""
    if start is not None:
        if context[start : start + len(text)] == text:
            return start
        # Starts that were counted in another unit, or with other white space, are off by a little.
        near = [at for at in _places(text, context) if abs(at - start) <= _SLACK]
        if near:
            return min(near, key=lambda at: abs(at - start))
        raise ValueError(f"answer {text!r} is not at character {start}; found {context[start : start + len(text)]!r}")
    places = _places(text, context)
    if len(places) != 1:
        raise ValueError(f"answer {text!r} is {len(places)} times in the context; give its answer_start")
    return places[0]


def _places(text: str, context: str) -> list[int]:
    places = []
    at = context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return places
