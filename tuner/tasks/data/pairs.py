"""Reads texts with their translations or summaries, in two columns or in two files of parallel lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.columns import ColumnGuess, Columns, Say, confirm_columns, find_column
from tuner.tasks.data.languages import LANGUAGES, language_from_name
from tuner.tasks.data.names import COLUMN_NAMES
from tuner.tasks.data.records import WriteExample
from tuner.tasks.data.sources import JSON_LINES, TABLES, TableRow, read_text, require_text

STRUCTURED = frozenset({*TABLES, *JSON_LINES, ".json"})
"""Endings of files that are not plain lines of text."""


def text_pair_reader(
    rows: Sequence[TableRow], columns: Columns, file: str, say: Say
) -> Callable[[TableRow], WriteExample]:
    """Return the function that reads one row. Raises DatasetError where only the user can name the columns."""
    nested = _nested_column(rows)
    if nested is not None:
        rows = [TableRow(row.values[nested], row.source) for row in rows if isinstance(row.values[nested], dict)]
    text, target = _find_columns(rows, columns, file, say)
    language = language_from_name(target)

    def read_row(row: TableRow) -> WriteExample:
        values = row.values if nested is None else row.values[nested]
        text_value, target_value = (require_text(values[name], f"column {name!r}") for name in (text, target))
        return WriteExample(text_value, target_value, language, row.source)

    return read_row


def parallel_rows(first: Path, second: Path, encoding: str | None = None) -> list[TableRow]:
    """Read two files line by line, without lines that are empty in both. Raises DatasetError with file and line."""
    names = [_ending(path) or role for path, role in ((first, "source"), (second, "target"))]
    if names[0] == names[1]:
        names = ["source", "target"]
    lines = [read_text(path, encoding).rstrip("\n").split("\n") for path in (first, second)]
    if len(lines[0]) != len(lines[1]):
        raise DatasetError(
            f"{first} has {len(lines[0])} lines and {second} has {len(lines[1])}; expected as many, each line the "
            "translation of the same line in the other file"
        )
    return [
        TableRow(dict(zip(names, texts, strict=True)), f"{first}:{number}")
        for number, texts in enumerate(zip(*lines, strict=True), 1)
        if any(text.strip() for text in texts)
    ]


def target_file(path: Path, columns: Columns) -> Path | None:
    """Return the file of targets beside a plain file of lines: as named, or with the ending that was named."""
    if columns.target is None or path.suffix.lower() in STRUCTURED:
        return None
    named = Path(columns.target)
    beside = path.with_name(f"{path.stem}.{(named.suffix or named.name).lstrip('.')}")
    if beside != path and beside.is_file():
        return beside
    return named if named.is_file() else None


def parallel_files(folder: Path, splits: Mapping[str, str], columns: Columns, say: Say) -> dict[str, tuple[Path, Path]]:
    """Find the two files of parallel lines of each split, source first; empty for a folder of other files.

    Raises:
        DatasetError: A named language has no file, or a split lacks one of the two languages.
    """
    by_split: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stem.lower() in splits and path.suffix.lower() not in STRUCTURED:
            by_split.setdefault(splits[path.stem.lower()], []).append(path)
    if len(by_split.get("train", [])) != 2:
        return {}
    endings = _order_endings(folder, [_ending(path) for path in by_split["train"]], columns, say)
    pairs = {}
    for name, files in by_split.items():
        by_ending = {_ending(path): path for path in files}
        if set(by_ending) != set(endings):
            raise DatasetError(
                f"{folder} has {', '.join(path.name for path in files)} as {name}; expected both languages"
            )
        pairs[name] = (by_ending[endings[0]], by_ending[endings[1]])
    return pairs


def known_headers(columns: Columns) -> frozenset[str]:
    """Return the names, in lower case, that show that a first row is a header; its contents cannot, being any text."""
    named = (columns.text, columns.target, columns.question, columns.answer, columns.rating)
    return COLUMN_NAMES | LANGUAGES.keys() | {name.lower() for name in (*LANGUAGES.values(), *filter(None, named))}


def _order_endings(folder: Path, endings: list[str], columns: Columns, say: Say) -> list[str]:
    """The two endings, that of the source first."""
    text, target = (name.lstrip(".") if name else None for name in (columns.text, columns.target))
    if target == endings[0] or text == endings[1]:
        endings = endings[::-1]
    unknown = next((name for name in (text, target) if name is not None and name not in endings), None)
    if unknown is not None:
        raise DatasetError(f"{folder} has train.{endings[0]} and train.{endings[1]}, and none ends with {unknown!r}")
    if not (columns.text or columns.target):
        guess = f"from .{endings[0]} into .{endings[1]}"
        say(ColumnGuess(folder, guess, "by alphabet", "--text, --target"))
    return endings


def _find_columns(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> tuple[str, str]:
    names = list(rows[0].values)
    target = find_column(rows, "target", _resolve_target(columns.target, names), file)
    text = find_column(rows, "source", columns.text, file)
    languages = [name for name in names if language_from_name(name)]
    how = "by name"
    if target is None:
        target = next((name for name in languages if name not in (text, *languages[:1])), None)
    if text is None:
        text = next((name for name in languages if name != target), None)
    if text is None and target is None and names[:2] == ["1", "2"] and _has_letters(rows):
        how, (text, target) = "by place", ("1", "2")
    guessed = columns.text is None or columns.target is None
    return confirm_columns(rows, {"text": text, "target": target}, how, file, say, guessed=guessed)


def _resolve_target(target: str | None, names: Sequence[str]) -> str | None:
    """The target as named, or the column of its language where a file or its ending was named."""
    if target is None or target in names:
        return target
    language = language_from_name(Path(target).suffix or target)
    return next((name for name in names if language and language_from_name(name) == language), target)


def _has_letters(rows: Sequence[TableRow]) -> bool:
    """Whether both first columns hold texts rather than numbers."""
    return all(any(map(str.isalpha, str(row.values[name]))) for row in rows[:50] for name in ("1", "2"))


def _nested_column(rows: Sequence[TableRow]) -> str | None:
    """The column that holds both languages as an object, as translation sets of `datasets` do."""
    return next((name for name, value in rows[0].values.items() if _is_language_pair(value)), None)


def _is_language_pair(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 2 and all(map(language_from_name, value))


def _ending(path: Path) -> str:
    return path.suffix.lstrip(".")
