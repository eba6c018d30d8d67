"""Texts and what was written of them: translations and summaries, in columns or in files of parallel lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns, Guess, Say, find_maybe, settle
from tuner.tasks.data.languages import LANGUAGES, language_named
from tuner.tasks.data.names import KNOWN
from tuner.tasks.data.records import Written
from tuner.tasks.data.sources import JSON_LINES, TABLES, Row, read_text


def maker(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> Callable[[Row], Written]:
    """Makes the record of a row. Raises DatasetError where only the user can say which columns it is made of."""
    nested = _nested(rows)
    if nested is not None:
        rows = [Row(row.values[nested], row.source) for row in rows if isinstance(row.values[nested], dict)]
    text, target = _columns(rows, columns, file, say)
    language = language_named(target)

    def make(row: Row) -> Written:
        values = row.values if nested is None else row.values[nested]
        return Written(_said(values[text], text), _said(values[target], target), language, row.source)

    return make


def parallel_rows(first: Path, second: Path, encoding: str | None = None) -> list[Row]:
    """Two files line by line; lines that are empty in both are left out. Raises DatasetError with file and line."""
    names = [_ending(one) or role for one, role in ((first, "source"), (second, "target"))]
    if names[0] == names[1]:
        names = ["source", "target"]
    lines = [read_text(one, encoding).rstrip("\n").split("\n") for one in (first, second)]
    if len(lines[0]) != len(lines[1]):
        raise DatasetError(
            f"{first} has {len(lines[0])} lines and {second} has {len(lines[1])}; line for line they must belong "
            "together"
        )
    rows = []
    for number, two in enumerate(zip(*lines, strict=True), 1):
        if any(one.strip() for one in two):
            rows.append(Row(dict(zip(names, two, strict=True)), f"{first}:{number}"))
    return rows


def other_file(path: Path, columns: Columns) -> Path | None:
    """The file of the targets of a plain file of lines: as named, or the one beside it that ends as was named."""
    if columns.target is None or path.suffix.lower() in (*TABLES, *JSON_LINES, ".json"):
        return None
    named = Path(columns.target)
    beside = path.with_name(f"{path.stem}.{(named.suffix or named.name).lstrip('.')}")
    if beside != path and beside.is_file():
        return beside
    return named if named.is_file() else None


def parallel_files(folder: Path, splits: Mapping[str, str], columns: Columns, say: Say) -> dict[str, tuple[Path, Path]]:
    """By split the two files of parallel lines, source first; empty for a folder of other files."""
    found: dict[str, list[Path]] = {}
    for one in sorted(folder.iterdir()):
        if one.is_file() and one.stem.lower() in splits and one.suffix.lower() not in (*TABLES, *JSON_LINES, ".json"):
            found.setdefault(splits[one.stem.lower()], []).append(one)
    if len(found.get("train", [])) != 2:
        return {}
    endings = [_ending(one) for one in found["train"]]
    wanted = [columns.text, columns.target]
    order = [name.lstrip(".") if name else None for name in wanted]
    if order[1] == endings[0] or order[0] == endings[1]:
        endings.reverse()
    unknown = next((name for name in order if name is not None and name not in endings), None)
    if unknown is not None:
        raise DatasetError(f"{folder} has train.{endings[0]} and train.{endings[1]}, and none ends with {unknown!r}")
    if not any(wanted):
        told = f"from .{endings[0]} into .{endings[1]}"
        say(Guess(folder, told, "by alphabet", "--text, --target"))
    made = {}
    for name, files in found.items():
        by_ending = {_ending(one): one for one in files}
        if set(by_ending) != set(endings):
            raise DatasetError(
                f"{folder} has {', '.join(one.name for one in files)} as {name}; expected both languages"
            )
        made[name] = (by_ending[endings[0]], by_ending[endings[1]])
    return made


def header_names(columns: Columns) -> frozenset[str]:
    """By what a first row is known for names: texts of any kind may stand there, so nothing else tells."""
    named = (columns.text, columns.target, columns.question, columns.answer, columns.rating)
    return KNOWN | LANGUAGES.keys() | {one.lower() for one in (*LANGUAGES.values(), *filter(None, named))}


def _columns(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> tuple[str, str]:
    names = list(rows[0].values)
    target = find_maybe(rows, "target", _column_named(columns.target, names), file)
    text = find_maybe(rows, "source", columns.text, file)
    spoken = [name for name in names if language_named(name)]
    how = "by name"
    if target is None:
        target = next((name for name in spoken if name not in (text, *spoken[:1])), None)
    if text is None:
        text = next((name for name in spoken if name != target), None)
    if text is None and target is None and names[:2] == ["1", "2"] and _has_letters(rows):
        how, (text, target) = "by place", ("1", "2")
    guessed = columns.text is None or columns.target is None
    return settle(rows, {"text": text, "target": target}, how, file, say, guessed=guessed)


def _column_named(target: str | None, names: Sequence[str]) -> str | None:
    """What was named as the target, or the column of its language where a file or its ending was named."""
    if target is None or target in names:
        return target
    language = language_named(Path(target).suffix or target)
    return next((name for name in names if language and language_named(name) == language), target)


def _has_letters(rows: Sequence[Row]) -> bool:
    """Whether both first columns hold texts, and not numbers."""
    return all(any(map(str.isalpha, str(row.values[name]))) for row in rows[:50] for name in ("1", "2"))


def _nested(rows: Sequence[Row]) -> str | None:
    """The column that holds both languages, as translation sets of `datasets` do."""
    return next((name for name, value in rows[0].values.items() if _is_pair(value)), None)


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 2 and all(map(language_named, value))


def _said(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}; every row needs one")
    return value.strip()


def _ending(path: Path) -> str:
    return path.suffix.lstrip(".")
