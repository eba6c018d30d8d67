"""Which column means what: as it was named, else guessed by name, else by what stands in it; a guess is always told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.errors import DatasetError
from tuner.tasks.data.names import NAMES
from tuner.tasks.data.sources import Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Columns:
    """Columns that the user named; the others are guessed."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    """Several, with commas between, are columns of 0 and 1 of a multi-label task."""
    question: str | None = None
    context: str | None = None
    answer: str | None = None
    target: str | None = None
    """Of translations and summaries; of parallel lines the other file, or how its name ends."""
    rating: str | None = None
    least_rating: float | None = None
    """Answers that were rated lower are left out; None for those not above the middle of their scale."""
    encoding: str | None = None
    multi_label: bool = False
    separator: str | None = None
    """What stands between several labels in one field."""


def find(rows: Sequence[Row], role: str, named: str | None, file: str) -> str:
    """The column of a role, as named or by its name. Raises DatasetError that lists the columns."""
    column = find_maybe(rows, role, named, file)
    if column is None:
        columns = ", ".join(map(repr, rows[0].values)) or "none"
        option = "label" if role in ("tags", "spans") else role
        raise DatasetError(
            f"{file} has the columns {columns}, and none is known for {role}; say which it is with --{option}"
        )
    return column


def find_maybe(rows: Sequence[Row], role: str, named: str | None, file: str) -> str | None:
    """As `find`, and None where no name fits."""
    return column_named(rows, named, NAMES[role], file)


def column_named(rows: Sequence[Row], named: str | None, known: Sequence[str], file: str) -> str | None:
    """The column that was named, else the first that is called as one of `known`. Raises DatasetError."""
    columns = {name.strip().lower(): name for name in rows[0].values}
    if named is not None:
        if named.lower() not in columns:
            raise DatasetError(f"{file} has no column {named!r}; it has {', '.join(map(repr, rows[0].values))}")
        return columns[named.lower()]
    return next((columns[name] for name in known if name in columns), None)


def settle(
    rows: Sequence[Row], found: Mapping[str, str | None], how: str, file: str, say: Say, *, guessed: bool
) -> tuple[str, str]:
    """Two columns that were found, by option; told where any was guessed. Raises DatasetError where one is missing."""
    (first, text), (second, other) = found.items()
    if text is None or other is None or text == other:
        missing = first if text is None else second
        raise DatasetError(
            f"{file} has the columns {', '.join(map(repr, rows[0].values))}, and none looks like the {missing}; say it "
            f"with --{missing}"
        )
    if guessed:
        columns = f"{first} is column {text!r}, {second} is column {other!r}"
        say(f"{file}: {columns} (guessed {how}; else: --{first}, --{second})")
    return text, other


def guess_text_and_label(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> tuple[str, str]:
    """Both columns of a classification, told. Raises DatasetError where only the user can say."""
    text = find_maybe(rows, "text", columns.text, file)
    label = find_maybe(rows, "label", columns.label, file)
    by = "by name"
    others = [name for name in rows[0].values if name not in (text, label) and name != columns.pair]
    if label is None:
        by, label = "by what repeats", _repeating(rows, others)
        others = [name for name in others if name != label]
    if text is None:
        by, text = "by length", _longest(rows, others)
    guessed = columns.text is None or columns.label is None
    return settle(rows, {"text": text, "label": label}, by, file, say, guessed=guessed)


def _repeating(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    """The column with the fewest values that are few against its rows."""
    counts = {name: len({str(row.values.get(name)) for row in rows}) for name in names}
    few = {name: count for name, count in counts.items() if 2 <= count <= max(2, len(rows) // 3)}
    return min(few, key=lambda name: few[name]) if few else None


def _longest(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    lengths = {name: fmean(len(str(row.values.get(name) or "")) for row in rows) for name in names}
    return max(lengths, key=lambda name: lengths[name]) if lengths else None
