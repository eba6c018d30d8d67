"""Pairs of texts with a score of how alike they are, pairs that belong together, or triplets with one that does not.

Columns are guessed as for the other tasks: by name, else by what is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns, Guess, Say, column_named
from tuner.tasks.data.records import Similar
from tuner.tasks.data.sources import Row

FIRST = (
    *("sentence1", "sentence_1", "sentence_a", "text1", "text_1", "anchor", "query", "question1", "question_1"),
    *("question", "text", "premise", "source"),
)
SECOND = (
    *("sentence2", "sentence_2", "sentence_b", "text2", "text_2", "positive", "passage", "question2", "question_2"),
    *("answer", "pair", "hypothesis", "other", "target"),
)
SCORE = (
    *("score", "similarity", "similarity_score", "sim", "relatedness_score", "relatedness", "is_duplicate", "similar"),
    *("label", "gold"),
)
NEGATIVE = ("negative", "hard_negative", "negative1", "neg")


def reader(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> Callable[[Row], Similar]:
    """What makes a record of a row. Raises DatasetError where only the user can say which column is which."""
    first, second, score, negative = _columns(rows, columns, file)
    told = f"texts are columns {first!r} and {second!r}"
    told += f", their score is column {score!r}" if score else ", which belong together"
    told += f", one that does not is column {negative!r}" if negative else ""
    named = columns.text is not None and columns.pair is not None
    say(f"{file}: {told}" if named else Guess(file, told, "by name", "--text, --pair, --label"))

    def make(row: Row) -> Similar:
        return Similar(
            _text(row, first),
            _text(row, second),
            None if score is None else _score(row, score),
            None if negative is None else _text(row, negative),
            row.source,
        )

    return make


def _columns(rows: Sequence[Row], columns: Columns, file: str) -> tuple[str, str, str | None, str | None]:
    names = list(rows[0].values)
    first = column_named(rows, columns.text, FIRST, file)
    second = column_named(rows, columns.pair, SECOND, file)
    score = column_named(rows, columns.label, SCORE, file)
    negative = column_named(rows, None, NEGATIVE, file)
    if score is not None and columns.label is None and not _numbers(rows, score):
        score = None
    if score is None and columns.label is None and negative is None:
        score = next((name for name in names if name not in (first, second) and _numbers(rows, name)), None)
    left = [name for name in names if name not in (first, second, score, negative)]
    left.sort(key=lambda name: -fmean(len(str(row.values.get(name) or "")) for row in rows))
    # In their order in the file, so that the first is the one that asks.
    longest = [name for name in names if name in left[: (first is None) + (second is None)]]
    first = first or (longest.pop(0) if longest else None)
    second = second or (longest.pop(0) if longest else None)
    if first is None or second is None:
        raise DatasetError(
            f"{file} has the columns {', '.join(map(repr, names))}; two texts are expected: say which they "
            "are with --text and --pair"
        )
    return first, second, score, None if score is not None else negative


def _numbers(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds nothing but numbers, and more than one of them."""
    try:
        found = {float(row.values[name]) for row in rows}
    except (TypeError, ValueError, KeyError):
        return False
    return len(found) > 1 and all(map(math.isfinite, found)) and not _counts(rows, name)


def _counts(rows: Sequence[Row], name: str) -> bool:
    """Whether a column only numbers the rows."""
    return len(rows) > 2 and [str(row.values[name]) for row in rows] in (
        [str(number) for number in range(start, start + len(rows))] for start in (0, 1)
    )


def _score(row: Row, name: str) -> float:
    try:
        value = float(row.values[name])
    except (TypeError, ValueError):
        raise ValueError(f"{row.values[name]!r} in column {name!r} is no number; expected how alike they are") from None
    if not math.isfinite(value):
        raise ValueError(f"{value} in column {name!r}; expected how alike they are")
    return value


def _text(row: Row, name: str) -> str:
    value = row.values[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}; every row needs one")
    return value.strip()
