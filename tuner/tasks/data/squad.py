"""SQuAD's JSON, version 1 and 2: articles with paragraphs, each a context and questions about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.records import Answer, Asked

_SLACK = 8
"""Characters by which a given start may be wrong."""


def fits(data: object) -> bool:
    """Whether parsed JSON is of this form."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        return False
    return any(isinstance(one, dict) and "paragraphs" in one for one in data["data"])


def parse(data: Any, file: str) -> Iterator[Asked]:
    """All questions. Raises DatasetError that says where one is not as it should be."""
    for article, one in enumerate(data["data"]):
        for number, paragraph in enumerate(one.get("paragraphs", [])):
            place = f"{file}: data[{article}].paragraphs[{number}]"
            try:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    yield _asked(asked, context, place)
            except KeyError as fault:
                raise DatasetError(f"{place}: {fault} is missing; expected SQuAD's context and qas") from None


def answers(value: Any, context: str, start: int | None = None) -> tuple[Answer, ...]:
    """Answers as SQuAD, `datasets` or a table give them, each seen to stand where it says.

    Raises ValueError for one that stands elsewhere, nowhere, or in several places with no start given.
    """
    if value is None or value in ("", [], {}):
        return ()
    if isinstance(value, str):
        return (_answer(value, start, context),)
    if isinstance(value, dict):
        value = [
            {"text": text, "answer_start": at} for text, at in zip(value["text"], value["answer_start"], strict=True)
        ]
    made = [
        _answer(one, None, context) if isinstance(one, str) else _answer(one["text"], one.get("answer_start"), context)
        for one in value
    ]
    return tuple(dict.fromkeys(made))


def _asked(asked: Any, context: str, place: str) -> Asked:
    id = str(asked.get("id", ""))
    try:
        given = () if asked.get("is_impossible") else answers(asked.get("answers"), context)
        return Asked(asked["question"].strip(), context, given, id, f"{place} {id}")
    except ValueError as fault:
        raise DatasetError(f"{place}, question {id!r}: {fault}") from None


def _answer(text: str, start: int | None, context: str) -> Answer:
    """An answer without the white space around it, which no token stands for."""
    if not text.strip():
        raise ValueError(f"answer {text!r} holds nothing but white space")
    return Answer(text.strip(), _place(text, start, context) + len(text) - len(text.lstrip()))


def _place(text: str, start: int | None, context: str) -> int:
    """Where the text stands, by the start that was given or as its only place."""
    if start is not None:
        if context[start : start + len(text)] == text:
            return start
        # Offsets that were counted in another unit, or with other white space, are off by a little.
        near = [at for at in _places(text, context) if abs(at - start) <= _SLACK]
        if near:
            return min(near, key=lambda at: abs(at - start))
        raise ValueError(
            f"answer {text!r} does not stand at {start}; there stands {context[start : start + len(text)]!r}"
        )
    found = _places(text, context)
    if len(found) != 1:
        raise ValueError(f"answer {text!r} stands {len(found)} times in the context; give its answer_start")
    return found[0]


def _places(text: str, context: str) -> list[int]:
    found = []
    at = context.find(text)
    while at >= 0:
        found.append(at)
        at = context.find(text, at + 1)
    return found
