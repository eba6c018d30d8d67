"""Reads customer chats: single questions with their best answers, or whole chats in which every answer is an example.

A rating column says how good each answer was; answers with a low rating are left out, and a note reports how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.columns import ColumnGuess, Columns, Say, find_column, require_column
from tuner.tasks.data.records import ChatTurn, ConverseExample, TaskExample
from tuner.tasks.data.sources import TableRow, require_text

CUSTOMERS = frozenset({"customer", "user", "usr", "human", "client", "visitor", "caller", "buyer", "guest"})
AGENTS = frozenset({"agent", "assistant", "sys", "system", "bot", "gpt", "support", "operator", "staff", "seller"})
SCALES: tuple[tuple[float, float], ...] = ((0, 1), (-1, 1), (1, 5), (0, 10), (0, 100))
"""Rating scales, lowest and highest value; the narrowest that holds all ratings of a file is used."""
RATING_WORDS: Mapping[str, float] = {
    **dict.fromkeys(("up", "good", "yes", "true", "positive", "helpful", "solved", "accepted", "👍"), 1.0),
    **dict.fromkeys(("down", "bad", "no", "false", "negative", "unhelpful", "unsolved", "rejected", "👎"), 0.0),
}

ConvertRows = Callable[[Iterable[TableRow], Callable[[TableRow], TaskExample]], list[TaskExample]]


def parse_chats(
    rows: Sequence[TableRow], columns: Columns, file: str, say: Say, convert: ConvertRows
) -> list[TaskExample]:
    """Read the examples of rows that are questions, chats as lists, or one turn each.

    Args:
        rows: All rows of the file, at least one.
        convert: Applies a row reader to all rows and collects their faults.

    Raises:
        DatasetError: Columns are missing or ambiguous, a rating is unreadable, or no answer is rated well.
    """
    turns = find_column(rows, "turns", None, file)
    if turns is not None and isinstance(rows[0].values[turns], list):
        rated = _drop_low_rated(rows, columns, file, say)
        chats = convert(rated, lambda row: _read_chat(row, row.values[turns]))
    elif columns.question is None and (by_chat := _rows_by_chat(rows, file, say)):
        chats = convert(by_chat, lambda row: _read_chat(row, row.values["turns"]))
    else:
        return convert(_drop_low_rated(rows, columns, file, say), _question_reader(rows, columns, file, say))
    return [answer for chat in chats if isinstance(chat, ConverseExample) for answer in _answers(chat)]


def _question_reader(
    rows: Sequence[TableRow], columns: Columns, file: str, say: Say
) -> Callable[[TableRow], ConverseExample]:
    question = find_column(rows, "customer_text", columns.question, file) or require_column(
        rows, "question", None, file
    )
    answer = find_column(rows, "agent_text", columns.answer, file) or require_column(rows, "answer", None, file)
    if question == answer:
        raise DatasetError(
            f"{file}: column {question!r} was found for both the question and the answer; name two columns with "
            "--question and --answer"
        )
    if columns.question is None or columns.answer is None:
        guess = f"question is column {question!r}, answer is column {answer!r}"
        say(ColumnGuess(file, guess, "by name", "--question, --answer"))

    def read_row(row: TableRow) -> ConverseExample:
        question_text, answer_text = (require_text(row.values[name], f"column {name!r}") for name in (question, answer))
        return ConverseExample((ChatTurn("customer", question_text),), answer_text, source=row.source)

    return read_row


def _rows_by_chat(rows: Sequence[TableRow], file: str, say: Say) -> list[TableRow]:
    """One row per chat, of rows that hold one turn each; empty for other files."""
    chat, speaker, text = (find_column(rows, name, None, file) for name in ("chat", "speaker", "text"))
    if chat is None or speaker is None or text is None:
        return []
    guess = f"a turn a row; chat is column {chat!r}, speaker {speaker!r}, text {text!r}"
    say(ColumnGuess(file, guess, "by name"))
    by_chat: dict[str, list[TableRow]] = {}
    for row in rows:
        by_chat.setdefault(str(row.values[chat]), []).append(row)
    return [
        TableRow(
            {"turns": [{"role": turn.values[speaker], "text": turn.values[text]} for turn in turns]}, turns[0].source
        )
        for turns in by_chat.values()
    ]


def _read_chat(row: TableRow, turns: Any) -> ConverseExample:
    """All turns of a chat as one record without an answer; consecutive turns of one speaker are joined."""
    merged: list[ChatTurn] = []
    for number, value in enumerate(turns, 1):
        turn = _read_turn(value, number)
        if merged and merged[-1].speaker == turn.speaker:
            turn = ChatTurn(turn.speaker, f"{merged.pop().text}\n{turn.text}")
        merged.append(turn)
    if not any(turn.speaker == "customer" for turn in merged[:-1]):
        raise ValueError("the chat has no answer to a customer; expected turns of both")
    return ConverseExample(tuple(merged), chat=row.source, source=row.source)


def _read_turn(value: Any, number: int) -> ChatTurn:
    if not isinstance(value, dict):
        raise ValueError(f"turn {number} is {type(value).__name__}; expected an object with role and content")
    role = next((value[name] for name in ("role", "speaker", "from", "author", "sender") if name in value), None)
    content = next(
        (value[name] for name in ("content", "text", "value", "utterance", "message") if name in value), None
    )
    text = require_text(content, f"turn {number}")
    name = str(role).strip().lower()
    if name in CUSTOMERS:
        return ChatTurn("customer", text)
    if name in AGENTS:
        return ChatTurn("agent", text)
    raise ValueError(f"turn {number} is by {role!r}; expected customer or agent (or user, assistant, usr, sys, …)")


def _answers(chat: ConverseExample) -> list[ConverseExample]:
    """One example for each answer to a customer."""
    return [
        ConverseExample(chat.turns[:place], turn.text, chat.chat, chat.source)
        for place, turn in enumerate(chat.turns)
        if place and turn.speaker == "agent"
    ]


def _drop_low_rated(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> list[TableRow]:
    """The rows without those with a low rating; rows without a rating stay. Raises DatasetError."""
    column = find_column(rows, "rating", columns.rating, file)
    if column is None:
        return list(rows)
    ratings = [_read_rating(row, column) for row in rows]
    values = [rating for rating in ratings if rating is not None]
    if not values:
        return list(rows)
    low, high = _rating_scale(values, f"{file}, column {column!r}")
    least = columns.least_rating
    remaining = [
        row
        for row, rating in zip(rows, ratings, strict=True)
        if rating is None or (rating >= least if least is not None else rating > (low + high) / 2)
    ]
    rule = f"below {least:g}" if least is not None else f"not above {(low + high) / 2:g} of {low:g} to {high:g}"
    say(
        f"{file}: {len(rows) - len(remaining)} of {len(rows)} answers are left out, rated {rule} in column {column!r} "
        "(else: --rating, --least-rating)"
    )
    if not remaining:
        raise DatasetError(f"{file}: all {len(rows)} answers are rated {rule}; set a lower limit with --least-rating")
    return remaining


def _rating_scale(ratings: Sequence[float], where: str) -> tuple[float, float]:
    fitting = [(low, high) for low, high in SCALES if low <= min(ratings) and max(ratings) <= high]
    if not fitting:
        raise DatasetError(
            f"{where} has ratings from {min(ratings):g} to {max(ratings):g}, which fit no known scale; set the lowest "
            "rating to learn from with --least-rating"
        )
    return fitting[0]


def _read_rating(row: TableRow, column: str) -> float | None:
    value = row.values[column]
    text = "" if value is None else str(value).strip().lower()
    if not text:
        return None
    if text in RATING_WORDS:
        return RATING_WORDS[text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(f"{row.source}: rating {value!r} is neither a number nor a word such as good or bad")
    return number
