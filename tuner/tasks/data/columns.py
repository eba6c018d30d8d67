"""Which column means what: as it was named, else guessed by name, else by what stands in it; a guess is always told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.errors import DatasetError
from tuner.tasks.data.names import NAMES, TITLES
from tuner.tasks.data.sources import Row

Say = Callable[[str], None]
TITLE_WORDS = 3
"""Of a column without a name that is read with the text beside it, as a mean."""


class Guess(str):
    """What was guessed about a file, as it is told; whoever knows better may be asked."""

    file: str
    what: str
    """The guess alone, the same for files that are alike."""
    options: str
    """What says it otherwise; empty where only other names in the file do."""

    def __new__(cls, file: object, what: str, how: str, options: str = "") -> Guess:
        made = super().__new__(cls, f"{file}: {what} (guessed {how}{'; else: ' if options else ''}{options})")
        made.file, made.what, made.options = str(file), what, options
        return made


@dataclass(frozen=True)
class Columns:
    """Columns that the user named; the others are guessed."""

    text: str | None = None
    """Of a classification several, with commas between, are one text: the subject and the body of a mail."""
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
        say(Guess(file, columns, how, f"--{first}, --{second}"))
    return text, other


def guess_texts_and_label(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> tuple[tuple[str, ...], str]:
    """The columns of a classification: those whose texts are read as one, and the label; told where guessed.

    A title goes before a longer text beside it. Raises DatasetError where only the user can say.
    """
    label = find_maybe(rows, "label", columns.label, file)
    named = named_texts(rows, columns, file)
    by = "by name"
    if label is None:
        by = "by what repeats"
        label = _repeating(rows, [name for name in rows[0].values if name not in named and name != columns.pair])
    free = [name for name in rows[0].values if name not in (label, columns.pair)]
    text: str | None = named[0] if named else find_maybe(rows, "text", None, file)
    if text is None or text == label:
        by, text = "by length", _longest(rows, free)
    title = None if named else next((name for name in free if _is_title(rows, name)), None)
    if title is not None and text == title:
        text = _longest(rows, [name for name in free if name.strip().lower() in NAMES["body"]]) or title
    texts = named or tuple(one for one in dict.fromkeys((title, text)) if one is not None)
    told = None if text is None else ",".join(texts)
    guessed = columns.text is None or columns.label is None
    _, label = settle(rows, {"text": told, "label": label}, by, file, say, guessed=guessed)
    return texts, label


def _is_title(rows: Sequence[Row], name: str) -> bool:
    """By its name, or, where columns have none but numbers, by some words a row.

    It is another one nearly each time: a subject may be a category as well.
    """
    values = [str(row.values.get(name) or "") for row in rows]
    if name.strip().lower() not in TITLES and not (name.isdecimal() and fmean(map(_words, values)) >= TITLE_WORDS):
        return False
    return 2 * len(set(values)) > len(rows)


def _words(text: str) -> int:
    return len(text.split())


def named_texts(rows: Sequence[Row], columns: Columns, file: str) -> tuple[str, ...]:
    """The columns that were named for the text, with commas between; a column's own name may have some.

    Raises DatasetError for one that is not there.
    """
    if columns.text is None:
        return ()
    whole = columns.text.lower() in {name.strip().lower() for name in rows[0].values}
    named = [columns.text] if whole else columns.text.split(",")
    return tuple(find(rows, "text", one.strip(), file) for one in named)


def _repeating(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    """The column with the fewest values that are few against its rows."""
    counts = {name: len({str(row.values.get(name)) for row in rows}) for name in names}
    few = {name: count for name, count in counts.items() if 2 <= count <= max(2, len(rows) // 3)}
    return min(few, key=lambda name: few[name]) if few else None


def _longest(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    lengths = {name: fmean(len(str(row.values.get(name) or "")) for row in rows) for name in names}
    return max(lengths, key=lambda name: lengths[name]) if lengths else None
