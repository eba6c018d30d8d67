"""Reads a file or folder of any supported format into the examples of a task; every error has file, line and reason.

Formats: tables and JSON by column, CoNLL columns, SQuAD's JSON, marked entities as in SemEval-2010 task 8, fastText's
`__label__` lines, a folder that `datasets` saved, a folder with one file per split, and texts in one folder per class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from tuner.tasks.data import chats, class_folders, conll, marked, pairs, similar, squad
from tuner.tasks.data.columns import (
    ColumnGuess,
    Columns,
    Say,
    find_column,
    find_texts_and_label,
    named_text_columns,
    report_columns,
    require_column,
)
from tuner.tasks.data.records import WRITTEN, AnswerExample, ClassifyExample, RelateExample, Span, TaskExample, TaskName
from tuner.tasks.data.sources import (
    JSON_LINES,
    TABLES,
    TableRow,
    is_saved_dataset,
    read_parts,
    read_rows,
    read_saved_dataset,
    read_text,
    require_text,
)
from tuner.tasks.data.words import tag_words

SPLITS: Mapping[str, str] = {
    **{"train": "train", "training": "train"},
    **{"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"},
    **{"test": "test", "testing": "test", "eval": "test"},
    # Of the shared tasks of CoNLL.
    **{"testa": "validation", "testb": "test"},
}
"""Names of splits, in files and in saved datasets, and the split that each stands for."""
MAX_FAULTS = 5
"""Faulty rows that an error lists."""

ReadRow = Callable[[TableRow], TaskExample]


@dataclass(frozen=True)
class ExampleSplits:
    """The examples of a file or folder, by split; a single file is `train`."""

    splits: Mapping[str, list[TaskExample]] = field(default_factory=dict)

    @property
    def train(self) -> list[TaskExample]:
        return self.splits.get("train", [])


def read_examples(
    task: TaskName, path: Path, columns: Columns | None = None, *, say: Say = lambda text: None
) -> ExampleSplits:
    """Read a file, or a folder with one file or dataset per split. Raises DatasetError."""
    columns = columns or Columns()
    if not path.exists():
        raise DatasetError(f"{path} does not exist; name a file of examples, or a folder with one for each split")
    if path.is_file():
        parts = read_parts(path, SPLITS, columns.encoding)
        if parts:
            return _from_splits(task, parts, columns, f"{path}: ", say)
        return ExampleSplits({"train": read_file(task, path, columns, say=say)})
    if not path.is_dir():
        raise DatasetError(f"{path} is a pipe or a device; save its contents to a file, and name that")
    if is_saved_dataset(path):
        saved = {SPLITS.get(name, name): rows for name, rows in read_saved_dataset(path).items()}
        return _from_splits(task, saved, columns, f"{path}/", say)
    if task == "translate" and (files := pairs.parallel_files(path, SPLITS, columns, say)):
        parallel = {name: pairs.parallel_rows(*both, columns.encoding) for name, both in files.items()}
        return _from_splits(task, parallel, columns, f"{path}/", say)
    if task == "classify" and (folders := class_folders.read_class_splits(path, SPLITS, columns.encoding, say)):
        return _from_splits(task, folders, _class_columns(columns), f"{path}/", say)
    by_split = _split_files(path, say)
    return ExampleSplits({name: read_file(task, file, columns, say=say) for name, file in by_split.items()})


def read_file(
    task: TaskName, path: Path, columns: Columns | None = None, *, say: Say = lambda text: None
) -> list[TaskExample]:
    """Read the examples of one file, or of one folder of classes; at least one. Raises DatasetError."""
    columns = columns or Columns()
    if path.is_dir():
        rows = class_folders.read_class_folder(path, columns.encoding, say) if task == "classify" else []
        if not rows:
            raise DatasetError(f"{path} is a folder; expected a file here")
        return _from_rows(task, rows, _class_columns(columns), str(path), say)
    suffix = path.suffix.lower()
    examples: Sequence[TaskExample]
    target = pairs.target_file(path, columns) if task == "translate" else None
    if target is not None:
        examples = _from_rows(task, pairs.parallel_rows(path, target, columns.encoding), columns, str(path), say)
    elif (suffix in TABLES and task != "tag") or suffix in JSON_LINES:
        examples = _from_rows(task, _rows(task, path, columns), columns, str(path), say)
    elif suffix == ".json":
        examples = _from_json(task, path, columns, say)
    else:
        examples = _from_text(task, path, columns, say)
    if not examples:
        raise DatasetError(f"{path} holds no example; expected some for task {task}")
    return list(examples)


def _split_files(path: Path, say: Say) -> dict[str, Path]:
    """The file of each split: named exactly so, or, without such a `train` file, with the split as a word of its name.

    Raises DatasetError where there is no file to train on, or more than one.
    """
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    exact = {SPLITS[file.stem.lower()]: file for file in files if file.stem.lower() in SPLITS}
    if "train" in exact:
        return exact
    candidates: dict[str, list[Path]] = {}
    for file in files:
        for name in {SPLITS[word] for word in re.split(r"[^a-z]+", file.name.lower()) if word in SPLITS}:
            candidates.setdefault(name, []).append(file)
    if "train" not in candidates or any(len(some) > 1 for some in candidates.values()):
        holds = ", ".join(entry.name for entry in sorted(path.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{path} holds {holds}; expected a file called train (and validation, test), or name files")
    by_split = {name: some[0] for name, some in candidates.items()}
    guess = ", ".join(f"{name} is {file.name}" for name, file in by_split.items())
    say(ColumnGuess(path, guess, "by name", "--data, --validation, --test"))
    return by_split


def _class_columns(columns: Columns) -> Columns:
    """The columns of rows that were read from folders of classes."""
    return replace(columns, text="text", label="label")


def _from_json(task: TaskName, path: Path, columns: Columns, say: Say) -> list[TaskExample]:
    if task == "answer":
        try:
            data = json.loads(read_text(path, columns.encoding))
        except ValueError as fault:
            raise DatasetError(f"{path} is not JSON ({fault}); expected SQuAD's") from None
        if squad.is_squad(data):
            return list(squad.parse_squad(data, str(path)))
    return _from_rows(task, _rows(task, path, columns), columns, str(path), say)


def _from_text(task: TaskName, path: Path, columns: Columns, say: Say) -> list[TaskExample]:
    text = read_text(path, columns.encoding)
    if task == "tag" and (path.suffix.lower() not in TABLES or conll.is_conll(text)):
        return list(conll.parse_conll(text, str(path), word=columns.text, tag=columns.label))
    if task == "relate" and marked.is_marked_text(text):
        return list(marked.parse_marked_file(text, str(path)))
    if task == "classify" and text.lstrip().startswith("__label__"):
        return list(_parse_fasttext(text, path))
    return _from_rows(task, _rows(task, path, columns), columns, str(path), say)


def _rows(task: TaskName, path: Path, columns: Columns) -> list[TableRow]:
    return read_rows(path, columns.encoding, headers=pairs.known_headers(columns) if task in WRITTEN else None)


def _from_splits(
    task: TaskName, splits: Mapping[str, Sequence[TableRow]], columns: Columns, prefix: str, say: Say
) -> ExampleSplits:
    """The examples of rows by split; messages name each as the prefix and its split."""
    return ExampleSplits(
        {name: _from_rows(task, rows, columns, f"{prefix}{name}", say) for name, rows in splits.items()}
    )


def _from_rows(task: TaskName, rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> list[TaskExample]:
    if not rows:
        raise DatasetError(f"{file} holds no rows; expected examples below the names of the columns")
    if task == "tag" and (sentences := conll.rows_by_sentence(rows, columns, file, say)):
        rows, columns = sentences, replace(columns, label="tags")
    if task == "converse":
        return chats.parse_chats(rows, columns, file, say, _convert)
    return _convert(rows, _READERS[task](rows, columns, file, say))


def _convert(rows: Iterable[TableRow], read_row: ReadRow) -> list[TaskExample]:
    """The examples of all rows, or an error that lists the first rows that cannot be read."""
    examples, faults = [], []
    for row in rows:
        try:
            examples.append(read_row(row))
        except (ValueError, KeyError, TypeError) as fault:
            reason = f"field {fault} is missing" if isinstance(fault, KeyError) else str(fault)
            faults.append(f"{row.source}: {reason}")
    if faults:
        more = f"\nand {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise DatasetError("\n".join(faults[:MAX_FAULTS]) + more)
    return examples


def _classify_reader(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> ReadRow:
    several = columns.label.split(",") if columns.label and "," in columns.label else []
    flags = [require_column(rows, "label", name.strip(), file) for name in several]
    if flags:
        texts = named_text_columns(rows, columns, file) or (require_column(rows, "text", None, file),)
    else:
        texts, label = find_texts_and_label(rows, columns, file, say)
    pair = find_column(rows, "pair", columns.pair, file)
    if pair is not None and columns.pair is None:
        say(ColumnGuess(file, f"the text's pair is column {pair!r}", "by name", "--pair"))

    def read_row(row: TableRow) -> ClassifyExample:
        second = None if pair is None else _text(row, pair)
        labels = (
            tuple(name for name in flags if _read_flag(row, name))
            if flags
            else _read_labels(row.values[label], columns)
        )
        if not labels and not (flags or columns.multi_label):
            raise ValueError(f"no label in column {label!r}; every row needs one")
        return ClassifyExample(_joined_text(row, texts), labels, second, row.source)

    return read_row


def _read_labels(value: Any, columns: Columns) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(sorted({str(label).strip() for label in value}))
    if isinstance(value, bool):
        return (str(value).lower(),)
    text = "" if value is None else str(value).strip()
    if not columns.multi_label:
        return (text,) if text else ()
    separator = columns.separator or next((mark for mark in "|;," if mark in text), "|")
    return tuple(sorted({label.strip() for label in text.split(separator) if label.strip()}))


def _read_flag(row: TableRow, name: str) -> bool:
    value = str(row.values[name]).strip().lower()
    if value not in ("0", "1", "0.0", "1.0", "true", "false"):
        raise ValueError(f"{value!r} in column {name!r}; several label columns hold 0 or 1")
    return value in ("1", "1.0", "true")


def _tag_reader(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> ReadRow:
    words = find_column(rows, "words", None, file)
    if words is not None:
        tags = require_column(rows, "tags", columns.label, file)
        return lambda row: conll.make_sentence(
            _read_list(row.values[words], words), _read_list(row.values[tags], tags), row.source
        )
    text = require_column(rows, "text", columns.text, file)
    spans = require_column(rows, "spans", columns.label, file)
    return lambda row: tag_words(_text(row, text), [_read_span(span) for span in row.values[spans] or []], row.source)


def _read_list(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list):
        raise ValueError(f"column {name!r} holds {type(value).__name__}; expected a list of texts")
    if any(not isinstance(item, str) for item in value):
        raise ValueError(f"column {name!r} holds numbers; expected the tags themselves, such as B-PER")
    return value


def _read_span(value: Any) -> Span:
    if isinstance(value, dict):
        label = next((value[name] for name in ("label", "type", "tag", "entity") if name in value), None)
        start, end = value["start"], value["end"]
    elif isinstance(value, list) and len(value) == 3:
        start, end, label = value
    else:
        raise ValueError(f"{value!r} is no span; expected start, end and label")
    if not isinstance(start, int) or not isinstance(end, int) or not label:
        raise ValueError(f"{value!r} is no span; expected two whole numbers and a label")
    return Span(start, end, str(label))


def _relate_reader(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> ReadRow:
    names = {name.lower(): name for name in rows[0].values}
    label = require_column(rows, "label", columns.label, file)
    text = require_column(rows, "text", columns.text, file)
    first, second = (names.get(name) or names.get(other) for name, other in (("e1", "head"), ("e2", "tail")))
    named = columns.text is not None and columns.label is not None
    report_columns(say, file, f"text is column {text!r}, label is column {label!r}", "--text, --label", named=named)

    def read_row(row: TableRow) -> RelateExample:
        relation = str(row.values[label]).strip()
        if not relation:
            raise ValueError(f"no label in column {label!r}; every row needs one")
        inside = _text(row, text)
        if first is None or second is None:
            return marked.parse_marked_text(inside, relation, row.source)
        first_entity, second_entity = (_read_entity(row.values[name], inside) for name in (first, second))
        return RelateExample(inside, first_entity, second_entity, relation, row.source)

    return read_row


def _read_entity(value: Any, text: str) -> tuple[int, int]:
    if isinstance(value, dict):
        value = [value["start"], value["end"]]
    if isinstance(value, str):
        if text.count(value) != 1:
            raise ValueError(f"entity {value!r} is {text.count(value)} times in the text; give its offsets")
        return text.index(value), text.index(value) + len(value)
    start, end = value
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {start}-{end} lies outside of a text of {len(text)} characters")
    return int(start), int(end)


def _answer_reader(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> ReadRow:
    question = require_column(rows, "question", columns.question, file)
    context = require_column(rows, "context", columns.context, file)
    answer = require_column(rows, "answer", columns.answer, file)
    starts = next((name for name in rows[0].values if name.lower() in ("answer_start", "start")), None)

    def read_row(row: TableRow) -> AnswerExample:
        inside = _text(row, context, strip=False)
        start = None if starts is None or row.values[starts] in (None, "") else int(row.values[starts])
        spans = squad.parse_answers(row.values[answer], inside, start)
        return AnswerExample(_text(row, question), inside, spans, str(row.values.get("id") or row.source), row.source)

    return read_row


_READERS: Mapping[str, Callable[[Sequence[TableRow], Columns, str, Say], ReadRow]] = {
    "classify": _classify_reader,
    "tag": _tag_reader,
    "relate": _relate_reader,
    "answer": _answer_reader,
    "embed": similar.embed_reader,
    "translate": pairs.text_pair_reader,
    "summarise": pairs.text_pair_reader,
}
"""By task the function that finds the columns of rows and returns the function that reads one row."""


def _joined_text(row: TableRow, names: Sequence[str]) -> str:
    """The texts of a row, each on its own line; of several some may be empty."""
    filled = [name for name in names if str(row.values[name] or "").strip()]
    return "\n".join(_text(row, name) for name in filled or names[:1])


def _text(row: TableRow, name: str, *, strip: bool = True) -> str:
    return require_text(row.values[name], f"column {name!r}", numbers=True, strip=strip)


_FASTTEXT = re.compile(r"((?:__label__\S+\s+)+)(.+)")


def _parse_fasttext(text: str, path: Path) -> Iterable[ClassifyExample]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _FASTTEXT.fullmatch(line.strip())
        if match is None:
            raise DatasetError(f"{path}:{number}: expected __label__NAME and a text")
        labels = tuple(label.removeprefix("__label__") for label in match.group(1).split())
        yield ClassifyExample(match.group(2), labels, source=f"{path}:{number}")
