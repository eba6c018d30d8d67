"""Reads files into rows: CSV and TSV with or without a header, JSON lines, a JSON list, or a saved `datasets` folder.

Text is UTF-8 (with or without a byte order mark) or UTF-16 with one, unless an encoding is named; other bytes are an
error with the line. Does not decide what the columns mean; see `tuner.tasks.data.columns`.
"""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data.names import COLUMN_NAMES

TABLES = frozenset({".csv", ".tsv", ".tab"})
JSON_LINES = frozenset({".jsonl", ".ndjson"})
HEADER_ROWS = 50
"""Rows that are looked at to decide whether the first is a header."""


@dataclass(frozen=True)
class TableRow:
    """One row, by column name; columns of a file without a header are called "1", "2", …"""

    values: Mapping[str, Any]
    source: str
    """File and line, for error messages."""


def read_text(path: Path, encoding: str | None = None) -> str:
    """Read a whole file, line ends as `\\n`. Raises DatasetError, with the line, for bytes of another encoding."""
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise DatasetError(
            f"{path} cannot be read ({fault.strerror}); name a file that exists and is readable"
        ) from fault
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except LookupError:
        raise DatasetError(f"there is no encoding {encoding!r}; name one that Python knows, such as gb18030") from None
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise DatasetError(
            f"{path}:{line}: byte 0x{data[fault.start]:02x} is not {fault.encoding}; save the file as UTF-8, or name "
            "its encoding with --encoding"
        ) from None
    if not text.strip():
        raise DatasetError(f"{path} is empty; expected examples")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def require_text(value: Any, where: str, *, numbers: bool = False, strip: bool = True) -> str:
    """Return a field's text. Raises ValueError where it is empty, or no text and no number that `numbers` allows."""
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in {where}; every row needs one")
    return value.strip() if strip else value


def read_rows(path: Path, encoding: str | None = None, *, headers: Collection[str] | None = None) -> list[TableRow]:
    """Read all rows of a table or of JSON.

    Args:
        headers: Known column names in lower case; where given, the first row of a table is a header only if it has one
            of them. By default the contents decide.

    Raises:
        DatasetError: The file is malformed; the message has file, line and reason.
    """
    suffix = path.suffix.lower()
    text = read_text(path, encoding)
    if suffix in JSON_LINES:
        return _json_lines(path, text)
    if suffix == ".json":
        return _json_list(path, text)
    return _table(path, text, headers)


def read_parts(path: Path, names: Mapping[str, str], encoding: str | None = None) -> dict[str, list[TableRow]]:
    """Read the parts of a JSON object with one list each, as CLINC150 has; empty for any other file.

    Args:
        names: Lower-case names of parts and the split that each stands for; `oos_train` counts as `train`.
    """
    if path.suffix.lower() != ".json":
        return {}
    try:
        data = json.loads(read_text(path, encoding))
    except ValueError:
        return {}
    if not isinstance(data, dict) or not all(isinstance(part, list) for part in data.values()):
        return {}
    parts: dict[str, list[TableRow]] = {}
    for name, rows in data.items():
        split = names.get(name.lower().removeprefix("oos_"))
        if split is not None:
            parts.setdefault(split, []).extend(
                _object(_pair(row), f"{path}: {name}[{place}]") for place, row in enumerate(rows)
            )
    return parts if "train" in parts else {}


def _pair(value: object) -> object:
    """A text and its label in a list, as an object."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return {"text": value[0], "label": value[1]}
    return value


def read_saved_dataset(path: Path) -> dict[str, list[TableRow]]:
    """Read the splits of a folder that `datasets` saved, with class names for numbers. Raises DatasetError."""
    if importlib.util.find_spec("datasets") is None:
        raise DatasetError(
            f"{path} is a folder of Hugging Face datasets, which needs that library: pip install datasets; or save it "
            "as JSON lines"
        )
    from datasets import load_from_disk  # type: ignore[import-not-found]

    try:
        loaded: Any = load_from_disk(str(path))
    except (OSError, ValueError) as fault:
        raise DatasetError(f"{path} does not load as a saved dataset ({fault}); save it with save_to_disk") from fault
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    return {str(name): _named_rows(path, str(name), split) for name, split in splits.items()}


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one that `datasets` saved."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _named_rows(path: Path, name: str, split: Any) -> list[TableRow]:
    names = {column: _class_names(feature) for column, feature in split.features.items()}
    rows = []
    for number, values in enumerate(split, 1):
        by_name = {column: _with_names(value, names[column]) for column, value in values.items()}
        rows.append(TableRow(by_name, f"{path}/{name}:{number}"))
    return rows


def _class_names(feature: Any) -> list[str] | None:
    for candidate in (feature, getattr(feature, "feature", None)):
        names = getattr(candidate, "names", None)
        if names:
            return list(names)
    return None


def _with_names(value: Any, names: Sequence[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_with_names(part, names) for part in value]
    # Numbers below 0 stand for unknown labels, as in the test parts of competitions.
    return None if value is None or value < 0 else names[value]


def _json_lines(path: Path, text: str) -> list[TableRow]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(_object(json.loads(line), f"{path}:{number}"))
            except ValueError as fault:
                raise DatasetError(f"{path}:{number}: not JSON ({fault}); expected one object a line") from None
    return rows


def _json_list(path: Path, text: str) -> list[TableRow]:
    try:
        data = json.loads(text)
    except ValueError as fault:
        raise DatasetError(f"{path} is not JSON ({fault}); expected a list of objects") from None
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        data = data["data"]
    if isinstance(data, dict) and data and all(isinstance(row, dict) for row in data.values()):
        return [TableRow(row, f"{path}: {name}") for name, row in data.items()]
    if not isinstance(data, list):
        raise DatasetError(f"{path} holds {type(data).__name__}; expected a list of objects")
    return [_object(row, f"{path}[{number}]") for number, row in enumerate(data)]


def _object(data: object, source: str) -> TableRow:
    if not isinstance(data, dict):
        raise DatasetError(f"{source}: found {type(data).__name__}; expected an object with named fields")
    return TableRow(data, source)


def _table(path: Path, text: str, headers: Collection[str] | None) -> list[TableRow]:
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(text)
    # A quote inside a field of a TSV is mostly an ordinary character.
    plain = delimiter == "\t" and not _is_quoted(text)
    csv.field_size_limit(2**31 - 1)
    try:
        lines = _cells(text, delimiter, plain=plain)
    except _NotQuotedError as fault:
        if delimiter != "\t":
            raise DatasetError(f"{path}:{fault}; expected fields in straight quotes") from None
        lines = _cells(text, delimiter, plain=True)
    width = Counter(len(cells) for _, cells in lines).most_common(1)[0][0]
    for number, cells in lines:
        if len(cells) != width:
            raise DatasetError(
                f"{path}:{number}: {len(cells)} fields where the others have {width}; put quotes around a field that "
                f"holds {delimiter!r}"
            )
    if headers is None:
        headed = has_header([cells for _, cells in lines[:HEADER_ROWS]])
    else:
        headed = any(cell.strip().lower() in headers for cell in lines[0][1])
    names = [cell.strip() for cell in lines[0][1]] if headed else [str(place + 1) for place in range(width)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}:1: two columns are called {twice!r}; give each its own name")
    return [TableRow(dict(zip(names, cells, strict=True)), f"{path}:{number}") for number, cells in lines[headed:]]


class _NotQuotedError(Exception):
    """A quote is misplaced; the message has the line."""


def _cells(text: str, delimiter: str, *, plain: bool) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with its first line; with `plain` a quote is an ordinary character."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        strict=True,
    )
    lines: list[tuple[int, list[str]]] = []
    first_line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((first_line, cells))
            first_line = reader.line_num + 1
    except csv.Error as fault:
        raise _NotQuotedError(f"{first_line}: not CSV ({fault})") from None
    return lines


def has_header(lines: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: it has a known name, or no value that recurs below."""
    first = [cell.strip().lower() for cell in lines[0]]
    below = [{cells[place].strip().lower() for cells in lines[1:]} for place in range(len(first))]
    repeats = any(cell in column for cell, column in zip(first, below, strict=True))
    if any(cell in COLUMN_NAMES for cell in first) and not repeats:
        return True
    named = all(0 < len(cell) <= 30 and not cell.replace(".", "").isdigit() for cell in first)
    return len(lines) > 2 and named and not repeats and all(len(cell.split()) <= 3 for cell in first)


def _delimiter(text: str) -> str:
    head = text.split("\n", 1)[0]
    return "\t" if "\t" in head else max(",;|", key=head.count)


def _is_quoted(text: str) -> bool:
    return all(line.count('"') % 2 == 0 for line in text.split("\n")[:HEADER_ROWS]) and '\t"' in text
