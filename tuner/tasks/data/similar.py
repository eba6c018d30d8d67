"""Reads pairs of texts with a similarity score, pairs that belong together, or triplets with a hard negative.

Columns are guessed by name, else by their contents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns, Say, match_column, report_columns
from tuner.tasks.data.records import EmbedExample
from tuner.tasks.data.sources import TableRow, require_text

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


def embed_reader(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> Callable[[TableRow], EmbedExample]:
    """Return the function that reads one row. Raises DatasetError where only the user can name the columns."""
    first, second, score, negative = _find_columns(rows, columns, file)
    what = f"texts are columns {first!r} and {second!r}"
    what += f", their score is column {score!r}" if score else ", which belong together"
    what += f", a text that does not belong is column {negative!r}" if negative else ""
    named = columns.text is not None and columns.pair is not None
    report_columns(say, file, what, "--text, --pair, --label", named=named)

    def read_row(row: TableRow) -> EmbedExample:
        return EmbedExample(
            require_text(row.values[first], f"column {first!r}"),
            require_text(row.values[second], f"column {second!r}"),
            None if score is None else _read_score(row, score),
            None if negative is None else require_text(row.values[negative], f"column {negative!r}"),
            row.source,
        )

    return read_row


def _find_columns(rows: Sequence[TableRow], columns: Columns, file: str) -> tuple[str, str, str | None, str | None]:
    """The columns of the first text, the second text, the score and the hard negative."""
    names = list(rows[0].values)
    first = match_column(rows, columns.text, FIRST, file)
    second = match_column(rows, columns.pair, SECOND, file)
    score = match_column(rows, columns.label, SCORE, file)
    negative = match_column(rows, None, NEGATIVE, file)
    if score is not None and columns.label is None and not _is_numeric(rows, score):
        score = None
    if score is None and columns.label is None and negative is None:
        score = next((name for name in names if name not in (first, second) and _is_numeric(rows, name)), None)
    free = [name for name in names if name not in (first, second, score, negative)]
    free.sort(key=lambda name: -fmean(len(str(row.values.get(name) or "")) for row in rows))
    # In the order of the file, so that the first column is the query.
    longest = [name for name in names if name in free[: (first is None) + (second is None)]]
    first = first or (longest.pop(0) if longest else None)
    second = second or (longest.pop(0) if longest else None)
    if first is None or second is None:
        raise DatasetError(
            f"{file} has the columns {', '.join(map(repr, names))}; expected two with texts: name them with --text and "
            "--pair"
        )
    return first, second, score, None if score is not None else negative


def _is_numeric(rows: Sequence[TableRow], name: str) -> bool:
    """Whether a column holds only numbers, more than one different, and does not just number the rows."""
    try:
        numbers = {float(row.values[name]) for row in rows}
    except (TypeError, ValueError, KeyError):
        return False
    return len(numbers) > 1 and all(map(math.isfinite, numbers)) and not _numbers_rows(rows, name)


def _numbers_rows(rows: Sequence[TableRow], name: str) -> bool:
    return len(rows) > 2 and [str(row.values[name]) for row in rows] in (
        [str(number) for number in range(start, start + len(rows))] for start in (0, 1)
    )


def _read_score(row: TableRow, name: str) -> float:
    try:
        value = float(row.values[name])
    except (TypeError, ValueError):
        raise ValueError(
            f"{row.values[name]!r} in column {name!r} is no number; expected the similarity of the texts"
        ) from None
    if not math.isfinite(value):
        raise ValueError(f"{value} in column {name!r}; expected the similarity of the texts, a finite number")
    return value
