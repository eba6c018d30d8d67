"""Decides which column holds what: as the user named it, else by its name, else by its contents.

Every guess is reported as a `ColumnGuess`, with the options that override it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.errors import DatasetError
from tuner.tasks.data.names import NAMES, TITLES
from tuner.tasks.data.sources import TableRow

Say = Callable[[str], None]
TITLE_WORDS = 3
"""Mean words per row of a nameless column that is read as a title beside the text, at least."""


class ColumnGuess(str):
    """A guess about a file, as the message to show; an interactive caller may ask about it instead."""

    file: str
    what: str
    """The guess alone, the same for files that are alike."""
    options: str
    """Options that override the guess; empty where only renaming in the file does."""

    def __new__(cls, file: object, what: str, how: str, options: str = "") -> ColumnGuess:
        text = f"{file}: {what} (guessed {how}{'; else: ' if options else ''}{options})"
        guess = super().__new__(cls, text)
        guess.file, guess.what, guess.options = str(file), what, options
        return guess


@dataclass(frozen=True)
class Columns:
    """Columns that the user named; the others are guessed."""

    text: str | None = None
    """To classify, several columns separated by commas are joined to one text: the subject and the body of a mail."""
    pair: str | None = None
    label: str | None = None
    """Several, separated by commas, are columns of 0 and 1 of a multi-label task."""
    question: str | None = None
    context: str | None = None
    answer: str | None = None
    target: str | None = None
    """Of translations and summaries; of parallel lines the other file, or its ending."""
    rating: str | None = None
    least_rating: float | None = None
    """Answers with a lower rating are left out; None leaves out those not above the middle of their scale."""
    encoding: str | None = None
    multi_label: bool = False
    separator: str | None = None
    """Stands between several labels in one field."""


def require_column(rows: Sequence[TableRow], role: str, named: str | None, file: str) -> str:
    """Find the column of a role, a key of `NAMES`, as named or by its name.

    Raises:
        DatasetError: There is none; the message lists the columns.
    """
    column = find_column(rows, role, named, file)
    if column is None:
        columns = ", ".join(map(repr, rows[0].values)) or "none"
        option = "label" if role in ("tags", "spans") else role
        raise DatasetError(f"{file} has the columns {columns}, and none is known for {role}; name it with --{option}")
    return column


def find_column(rows: Sequence[TableRow], role: str, named: str | None, file: str) -> str | None:
    """Find the column of a role as `require_column` does, or return None where no name fits."""
    return match_column(rows, named, NAMES[role], file)


def match_column(rows: Sequence[TableRow], named: str | None, known: Sequence[str], file: str) -> str | None:
    """Find the column that the user named, else the first with one of the known names. Raises DatasetError."""
    columns = {name.strip().lower(): name for name in rows[0].values}
    if named is not None:
        if named.lower() not in columns:
            raise DatasetError(f"{file} has no column {named!r}; it has {', '.join(map(repr, rows[0].values))}")
        return columns[named.lower()]
    return next((columns[name] for name in known if name in columns), None)


def confirm_columns(
    rows: Sequence[TableRow], roles: Mapping[str, str | None], how: str, file: str, say: Say, *, guessed: bool
) -> tuple[str, str]:
    """Check that two columns by option name are there and differ, and report them where any was guessed.

    Raises:
        DatasetError: One of them is missing.
    """
    (first, text), (second, other) = roles.items()
    if text is None or other is None or text == other:
        missing = first if text is None else second
        raise DatasetError(
            f"{file} has the columns {', '.join(map(repr, rows[0].values))}, and none looks like the {missing}; name "
            f"it with --{missing}"
        )
    if guessed:
        columns = f"{first} is column {text!r}, {second} is column {other!r}"
        say(ColumnGuess(file, columns, how, f"--{first}, --{second}"))
    return text, other


def report_columns(say: Say, file: str, what: str, options: str, *, named: bool) -> None:
    """Report which columns are read: as a plain message where the user named them, else as a guess."""
    say(f"{file}: {what}" if named else ColumnGuess(file, what, "by name", options))


def find_texts_and_label(
    rows: Sequence[TableRow], columns: Columns, file: str, say: Say
) -> tuple[tuple[str, ...], str]:
    """Find the columns of a classification: those that are joined to one text, a title first, and the label.

    Raises:
        DatasetError: Only the user can say which columns they are.
    """
    label = find_column(rows, "label", columns.label, file)
    named = named_text_columns(rows, columns, file)
    how = "by name"
    if label is None:
        how = "by what repeats"
        label = _most_repeating(rows, [name for name in rows[0].values if name not in named and name != columns.pair])
    free = [name for name in rows[0].values if name not in (label, columns.pair)]
    text: str | None = named[0] if named else find_column(rows, "text", None, file)
    if text is None or text == label:
        how, text = "by length", _longest(rows, free)
    title = None if named else next((name for name in free if _is_title(rows, name)), None)
    if title is not None and text == title:
        text = _longest(rows, [name for name in free if name.strip().lower() in NAMES["body"]]) or title
    texts = named or tuple(name for name in dict.fromkeys((title, text)) if name is not None)
    joined = None if text is None else ",".join(texts)
    guessed = columns.text is None or columns.label is None
    _, label = confirm_columns(rows, {"text": joined, "label": label}, how, file, say, guessed=guessed)
    return texts, label


def named_text_columns(rows: Sequence[TableRow], columns: Columns, file: str) -> tuple[str, ...]:
    """Split the columns that the user named for the text at commas, unless one column has that very name.

    Raises:
        DatasetError: One of them is not there.
    """
    if columns.text is None:
        return ()
    is_one_column = columns.text.lower() in {name.strip().lower() for name in rows[0].values}
    names = [columns.text] if is_one_column else columns.text.split(",")
    return tuple(require_column(rows, "text", name.strip(), file) for name in names)


def _is_title(rows: Sequence[TableRow], name: str) -> bool:
    """Whether a column holds titles: by its name, or, in a table without names, by its few words per row.

    Most values must differ, since a subject may also be a category.
    """
    values = [str(row.values.get(name) or "") for row in rows]
    words = fmean(len(value.split()) for value in values)
    if name.strip().lower() not in TITLES and not (name.isdecimal() and words >= TITLE_WORDS):
        return False
    return 2 * len(set(values)) > len(rows)


def _most_repeating(rows: Sequence[TableRow], names: Sequence[str]) -> str | None:
    """The column with the fewest different values, where those are few for the number of rows."""
    counts = {name: len({str(row.values.get(name)) for row in rows}) for name in names}
    few = {name: count for name, count in counts.items() if 2 <= count <= max(2, len(rows) // 3)}
    return min(few, key=lambda name: few[name]) if few else None


def _longest(rows: Sequence[TableRow], names: Sequence[str]) -> str | None:
    lengths = {name: fmean(len(str(row.values.get(name) or "")) for row in rows) for name in names}
    return max(lengths, key=lambda name: lengths[name]) if lengths else None
