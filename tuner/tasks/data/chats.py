"""Chats with customers: single questions with their best answers, or whole chats, in which every answer is learnt.

A rating says how good an answer was; those that were not good are left out, and that is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns, Guess, Say, find, find_maybe
from tuner.tasks.data.records import Conversed, Example, Turn
from tuner.tasks.data.sources import Row

CUSTOMERS = frozenset({"customer", "user", "usr", "human", "client", "visitor", "caller", "buyer", "guest"})
AGENTS = frozenset({"agent", "assistant", "sys", "system", "bot", "gpt", "support", "operator", "staff", "seller"})
SCALES: tuple[tuple[float, float], ...] = ((0, 1), (-1, 1), (1, 5), (0, 10), (0, 100))
"""The narrowest that holds all ratings is taken for theirs."""
WORDS: Mapping[str, float] = {
    **dict.fromkeys(("up", "good", "yes", "true", "positive", "helpful", "solved", "accepted", "👍"), 1.0),
    **dict.fromkeys(("down", "bad", "no", "false", "negative", "unhelpful", "unsolved", "rejected", "👎"), 0.0),
}

Each = Callable[[Iterable[Row], Callable[[Row], Example]], list[Example]]


def parse(rows: Sequence[Row], columns: Columns, file: str, say: Say, each: Each) -> list[Example]:
    """The examples of rows: questions, chats as lists, or a turn a row. `each` makes of rows what they hold.

    Raises DatasetError.
    """
    turns = find_maybe(rows, "turns", None, file)
    if turns is not None and isinstance(rows[0].values[turns], list):
        kept = _well_rated(rows, columns, file, say)
        whole = each(kept, lambda row: _chat(row, row.values[turns]))
    elif columns.question is None and (by_chat := _by_chat(rows, file, say)):
        whole = each(by_chat, lambda row: _chat(row, row.values["turns"]))
    else:
        return each(_well_rated(rows, columns, file, say), _maker(rows, columns, file, say))
    return [answer for one in whole if isinstance(one, Conversed) for answer in _answers(one)]


def _maker(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> Callable[[Row], Conversed]:
    question = find_maybe(rows, "asked", columns.question, file) or find(rows, "question", None, file)
    answer = find_maybe(rows, "replied", columns.answer, file) or find(rows, "answer", None, file)
    if question == answer:
        raise DatasetError(f"{file}: column {question!r} cannot be both; say them with --question and --answer")
    if columns.question is None or columns.answer is None:
        told = f"question is column {question!r}, answer is column {answer!r}"
        say(Guess(file, told, "by name", "--question, --answer"))

    def make(row: Row) -> Conversed:
        said = [_said(row.values[name], f"column {name!r}") for name in (question, answer)]
        return Conversed((Turn("customer", said[0]),), said[1], source=row.source)

    return make


def _by_chat(rows: Sequence[Row], file: str, say: Say) -> list[Row]:
    """A row for each chat, of rows that hold a turn each; empty where they do not."""
    chat, speaker, text = (find_maybe(rows, name, None, file) for name in ("chat", "speaker", "text"))
    if chat is None or speaker is None or text is None:
        return []
    told = f"a turn a row; chat is column {chat!r}, speaker {speaker!r}, text {text!r}"
    say(Guess(file, told, "by name"))
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.values[chat]), []).append(row)
    return [
        Row({"turns": [{"role": one.values[speaker], "text": one.values[text]} for one in many]}, many[0].source)
        for many in found.values()
    ]


def _chat(row: Row, turns: Any) -> Conversed:
    """All turns of a chat as one record without an answer; neighbours of one speaker become one."""
    merged: list[Turn] = []
    for number, one in enumerate(turns, 1):
        turn = _turn(one, number)
        if merged and merged[-1].speaker == turn.speaker:
            turn = Turn(turn.speaker, f"{merged.pop().text}\n{turn.text}")
        merged.append(turn)
    if not any(before.speaker == "customer" for before in merged[:-1]):
        raise ValueError("the chat has no answer to a customer; expected turns of both")
    return Conversed(tuple(merged), chat=row.source, source=row.source)


def _turn(value: Any, number: int) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"turn {number} is {type(value).__name__}; expected an object with role and content")
    who = next((value[name] for name in ("role", "speaker", "from", "author", "sender") if name in value), None)
    what = next((value[name] for name in ("content", "text", "value", "utterance", "message") if name in value), None)
    said = _said(what, f"turn {number}")
    name = str(who).strip().lower()
    if name in CUSTOMERS:
        return Turn("customer", said)
    if name in AGENTS:
        return Turn("agent", said)
    raise ValueError(f"turn {number} is by {who!r}; expected customer or agent (or user, assistant, usr, sys, …)")


def _answers(chat: Conversed) -> list[Conversed]:
    """An example for each answer to a customer."""
    return [
        Conversed(chat.turns[:place], one.text, chat.chat, chat.source)
        for place, one in enumerate(chat.turns)
        if place and one.speaker == "agent"
    ]


def _well_rated(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> list[Row]:
    """Without the rows that were rated low; those without a rating stay. Raises DatasetError."""
    column = find_maybe(rows, "rating", columns.rating, file)
    if column is None:
        return list(rows)
    ratings = [_rating(row, column) for row in rows]
    known = [one for one in ratings if one is not None]
    if not known:
        return list(rows)
    low, high = _scale(known, f"{file}, column {column!r}")
    least = columns.least_rating
    kept = [
        row
        for row, one in zip(rows, ratings, strict=True)
        if one is None or (one >= least if least is not None else one > (low + high) / 2)
    ]
    rule = f"below {least:g}" if least is not None else f"not above {(low + high) / 2:g} of {low:g} to {high:g}"
    say(
        f"{file}: {len(rows) - len(kept)} of {len(rows)} answers are left out, rated {rule} in column {column!r} "
        "(else: --rating, --least-rating)"
    )
    if not kept:
        raise DatasetError(f"{file}: no answer is rated well; say from which rating on with --least-rating")
    return kept


def _scale(known: Sequence[float], where: str) -> tuple[float, float]:
    fits = [(low, high) for low, high in SCALES if low <= min(known) and max(known) <= high]
    if not fits:
        raise DatasetError(
            f"{where} has ratings from {min(known):g} to {max(known):g}; say which to keep with --least-rating"
        )
    return fits[0]


def _rating(row: Row, column: str) -> float | None:
    value = row.values[column]
    text = "" if value is None else str(value).strip().lower()
    if not text:
        return None
    if text in WORDS:
        return WORDS[text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(f"{row.source}: rating {value!r} is no number, nor a word such as good or bad")
    return number


def _said(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in {where}; every row needs one")
    return value.strip()
