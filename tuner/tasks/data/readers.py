"""A file becomes the records of a task, whatever its format; every fault has file, line and reason.

Tables and JSON by column, words in columns (CoNLL), SQuAD's JSON, texts with marked entities as in SemEval-2010 task 8,
fastText's `__label__`, a folder that `datasets` saved, a folder of such files called after their splits, and texts in a
folder for each class.
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
from tuner.tasks.data.columns import Columns, Guess, Say, find, find_maybe, guess_texts_and_label, named_texts
from tuner.tasks.data.records import WRITTEN, Asked, Classified, Example, Related, Span, TaskName
from tuner.tasks.data.sources import (
    JSON_LINES,
    TABLES,
    Row,
    is_datasets,
    read_datasets,
    read_parts,
    read_rows,
    read_text,
)
from tuner.tasks.data.words import tagged

SPLITS: Mapping[str, str] = {
    **{"train": "train", "training": "train"},
    **{"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"},
    **{"test": "test", "testing": "test", "eval": "test"},
    # Of the shared tasks of CoNLL.
    **{"testa": "validation", "testb": "test"},
}
"""What splits are called, in files and in saved datasets."""
MOST_FAULTS = 5


@dataclass(frozen=True)
class Read:
    """The examples of a file or folder, by split; a single file is `train`."""

    splits: Mapping[str, list[Example]] = field(default_factory=dict)

    @property
    def train(self) -> list[Example]:
        return self.splits.get("train", [])


def read(task: TaskName, path: Path, columns: Columns | None = None, *, say: Say = lambda text: None) -> Read:
    """Read a file, or a folder with a file or dataset for each split. Raises DatasetError."""
    columns = columns or Columns()
    if not path.exists():
        raise DatasetError(f"{path} does not exist; name a file of examples, or a folder with one for each split")
    if path.is_file():
        parts = read_parts(path, SPLITS, columns.encoding)
        if parts:
            return Read({name: _from_rows(task, rows, columns, f"{path}: {name}", say) for name, rows in parts.items()})
        return Read({"train": read_file(task, path, columns, say=say)})
    if not path.is_dir():
        raise DatasetError(f"{path} is a pipe or a device; save what comes through it to a file, and name that")
    if is_datasets(path):
        named = {SPLITS.get(name, name): rows for name, rows in read_datasets(path).items()}
        return Read({name: _from_rows(task, rows, columns, f"{path}/{name}", say) for name, rows in named.items()})
    if task == "translate" and (lines := pairs.parallel_files(path, SPLITS, columns, say)):
        both = {name: pairs.parallel_rows(*two, columns.encoding) for name, two in lines.items()}
        return Read({name: _from_rows(task, rows, columns, f"{path}/{name}", say) for name, rows in both.items()})
    if task == "classify" and (found := class_folders.split_folders(path, SPLITS, columns.encoding, say)):
        return Read({name: _from_classes(rows, columns, f"{path}/{name}", say) for name, rows in found.items()})
    files = _split_files(path, say)
    return Read({name: read_file(task, file, columns, say=say) for name, file in files.items()})


def _split_files(path: Path, say: Say) -> dict[str, Path]:
    """The file of each split: called just so, or, where there is no train, with the split as a word of its name.

    Raises DatasetError where there is none to train on, or more than one.
    """
    files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
    exact = {SPLITS[one.stem.lower()]: one for one in files if one.stem.lower() in SPLITS}
    if "train" in exact:
        return exact
    found: dict[str, list[Path]] = {}
    for one in files:
        for name in {SPLITS[word] for word in re.split(r"[^a-z]+", one.name.lower()) if word in SPLITS}:
            found.setdefault(name, []).append(one)
    if "train" not in found or any(len(some) > 1 for some in found.values()):
        holds = ", ".join(one.name for one in sorted(path.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{path} holds {holds}; expected a file called train (and validation, test), or name files")
    chosen = {name: some[0] for name, some in found.items()}
    told = ", ".join(f"{name} is {one.name}" for name, one in chosen.items())
    say(Guess(path, told, "by name", "--data, --validation, --test"))
    return chosen


def read_file(
    task: TaskName, path: Path, columns: Columns | None = None, *, say: Say = lambda text: None
) -> list[Example]:
    """The examples of one file, at least one. Raises DatasetError."""
    columns = columns or Columns()
    if path.is_dir():
        rows = class_folders.class_rows(path, columns.encoding, say) if task == "classify" else []
        if not rows:
            raise DatasetError(f"{path} is a folder; expected a file here")
        return _from_classes(rows, columns, str(path), say)
    suffix = path.suffix.lower()
    examples: Sequence[Example]
    other = pairs.other_file(path, columns) if task == "translate" else None
    if other is not None:
        examples = _from_rows(task, pairs.parallel_rows(path, other, columns.encoding), columns, str(path), say)
    elif (suffix in TABLES and task != "tag") or suffix in JSON_LINES:
        examples = _from_rows(task, _rows(task, path, columns), columns, str(path), say)
    elif suffix == ".json":
        examples = _from_json(task, path, columns, say)
    else:
        examples = _from_text(task, path, columns, say)
    if not examples:
        raise DatasetError(f"{path} holds no example; expected some for task {task}")
    return list(examples)


def _from_classes(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> list[Example]:
    return _from_rows("classify", rows, replace(columns, text="text", label="label"), file, say)


def _from_json(task: TaskName, path: Path, columns: Columns, say: Say) -> list[Example]:
    if task == "answer":
        try:
            data = json.loads(read_text(path, columns.encoding))
        except ValueError as fault:
            raise DatasetError(f"{path} is not JSON ({fault}); expected SQuAD's") from None
        if squad.fits(data):
            return list(squad.parse(data, str(path)))
    return _from_rows(task, _rows(task, path, columns), columns, str(path), say)


def _from_text(task: TaskName, path: Path, columns: Columns, say: Say) -> list[Example]:
    text = read_text(path, columns.encoding)
    if task == "tag" and (path.suffix.lower() not in TABLES or conll.fits(text)):
        return list(conll.parse(text, str(path), word=columns.text, tag=columns.label))
    if task == "relate" and marked.fits(text):
        return list(marked.parse(text, str(path)))
    if task == "classify" and text.lstrip().startswith("__label__"):
        return list(_fasttext(text, path))
    return _from_rows(task, _rows(task, path, columns), columns, str(path), say)


def _rows(task: TaskName, path: Path, columns: Columns) -> list[Row]:
    return read_rows(path, columns.encoding, headers=pairs.header_names(columns) if task in WRITTEN else None)


def _from_rows(task: TaskName, rows: Sequence[Row], columns: Columns, file: str, say: Say) -> list[Example]:
    if not rows:
        raise DatasetError(f"{file} holds no rows; expected examples below the names of the columns")
    makers: Mapping[str, Callable[[], Callable[[Row], Example]]] = {
        "classify": lambda: _classified(rows, columns, file, say),
        "tag": lambda: _tagged(rows, columns, file),
        "relate": lambda: _related(rows, columns, file, say),
        "answer": lambda: _asked(rows, columns, file),
        "embed": lambda: similar.reader(rows, columns, file, say),
        "translate": lambda: pairs.maker(rows, columns, file, say),
        "summarise": lambda: pairs.maker(rows, columns, file, say),
    }
    if task == "tag" and (sentences := conll.by_sentence(rows, columns, file, say)):
        rows, columns = sentences, replace(columns, label="tags")
    if task == "converse":
        return chats.parse(rows, columns, file, say, _each)
    return _each(rows, makers[task]())


def _each(rows: Iterable[Row], make: Callable[[Row], Example]) -> list[Example]:
    """All rows made, or an error that names the first that cannot be."""
    made, faults = [], []
    for row in rows:
        try:
            made.append(make(row))
        except (ValueError, KeyError, TypeError) as fault:
            said = f"field {fault} is missing" if isinstance(fault, KeyError) else str(fault)
            faults.append(f"{row.source}: {said}")
    if faults:
        more = f"\nand {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise DatasetError("\n".join(faults[:MOST_FAULTS]) + more)
    return made


def _classified(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> Callable[[Row], Example]:
    many = columns.label.split(",") if columns.label and "," in columns.label else []
    if many:
        flags = [find(rows, "label", name.strip(), file) for name in many]
        texts = named_texts(rows, columns, file) or (find(rows, "text", None, file),)
    else:
        flags = []
        texts, label = guess_texts_and_label(rows, columns, file, say)
    pair = find_maybe(rows, "pair", columns.pair, file)
    if pair is not None and columns.pair is None:
        say(Guess(file, f"the text's pair is column {pair!r}", "by name", "--pair"))

    def make(row: Row) -> Example:
        second = None if pair is None else _text(row, pair)
        labels = tuple(name for name in flags if _flag(row, name)) if flags else _labels(row.values[label], columns)
        if not labels and not (flags or columns.multi_label):
            raise ValueError(f"no label in column {label!r}; every row needs one")
        return Classified(_joined(row, texts), labels, second, row.source)

    return make


def _labels(value: Any, columns: Columns) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(sorted({str(one).strip() for one in value}))
    if isinstance(value, bool):
        return (str(value).lower(),)
    text = "" if value is None else str(value).strip()
    if not columns.multi_label:
        return (text,) if text else ()
    separator = columns.separator or next((one for one in "|;," if one in text), "|")
    return tuple(sorted({one.strip() for one in text.split(separator) if one.strip()}))


def _flag(row: Row, name: str) -> bool:
    value = str(row.values[name]).strip().lower()
    if value not in ("0", "1", "0.0", "1.0", "true", "false"):
        raise ValueError(f"{value!r} in column {name!r}; several label columns hold 0 or 1")
    return value in ("1", "1.0", "true")


def _tagged(rows: Sequence[Row], columns: Columns, file: str) -> Callable[[Row], Example]:
    words = find_maybe(rows, "words", None, file)
    if words is not None:
        tags = find(rows, "tags", columns.label, file)
        return lambda row: conll.sentence(
            _listed(row.values[words], words), _listed(row.values[tags], tags), row.source
        )
    text = find(rows, "text", columns.text, file)
    spans = find(rows, "spans", columns.label, file)
    return lambda row: tagged(_text(row, text), [_span(one) for one in row.values[spans] or []], row.source)


def _listed(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list):
        raise ValueError(f"column {name!r} holds {type(value).__name__}; expected a list of texts")
    if any(not isinstance(one, str) for one in value):
        raise ValueError(f"column {name!r} holds numbers; expected the tags themselves, such as B-PER")
    return value


def _span(value: Any) -> Span:
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


def _related(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> Callable[[Row], Example]:
    names = {name.lower(): name for name in rows[0].values}
    label = find(rows, "label", columns.label, file)
    text = find(rows, "text", columns.text, file)
    first, second = (names.get(one) or names.get(other) for one, other in (("e1", "head"), ("e2", "tail")))
    told = f"text is column {text!r}, label is column {label!r}"
    named = columns.text and columns.label
    say(f"{file}: {told}" if named else Guess(file, told, "by name", "--text, --label"))

    def make(row: Row) -> Example:
        said = str(row.values[label]).strip()
        if not said:
            raise ValueError(f"no label in column {label!r}; every row needs one")
        if first is None or second is None:
            return marked.related(_text(row, text), said, row.source)
        inside = _text(row, text)
        return Related(inside, _place(row.values[first], inside), _place(row.values[second], inside), said, row.source)

    return make


def _place(value: Any, text: str) -> tuple[int, int]:
    if isinstance(value, dict):
        value = [value["start"], value["end"]]
    if isinstance(value, str):
        if text.count(value) != 1:
            raise ValueError(f"entity {value!r} stands {text.count(value)} times in the text; give its offsets")
        return text.index(value), text.index(value) + len(value)
    start, end = value
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {start}-{end} lies outside of a text of {len(text)} characters")
    return int(start), int(end)


def _asked(rows: Sequence[Row], columns: Columns, file: str) -> Callable[[Row], Example]:
    question = find(rows, "question", columns.question, file)
    context = find(rows, "context", columns.context, file)
    answer = find(rows, "answer", columns.answer, file)
    starts = next((name for name in rows[0].values if name.lower() in ("answer_start", "start")), None)

    def make(row: Row) -> Example:
        inside = _text(row, context, strip=False)
        start = None if starts is None or row.values[starts] in (None, "") else int(row.values[starts])
        found = squad.answers(row.values[answer], inside, start)
        return Asked(_text(row, question), inside, found, str(row.values.get("id") or row.source), row.source)

    return make


def _joined(row: Row, names: Sequence[str]) -> str:
    """The texts of a row as one, each on a line of its own; one of several may be empty."""
    filled = [name for name in names if str(row.values[name] or "").strip()]
    return "\n".join(_text(row, name) for name in filled or names[:1])


def _text(row: Row, name: str, *, strip: bool = True) -> str:
    value = row.values[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}; every row needs one")
    return value if not strip else value.strip()


_FASTTEXT = re.compile(r"((?:__label__\S+\s+)+)(.+)")


def _fasttext(text: str, path: Path) -> Iterable[Classified]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _FASTTEXT.fullmatch(line.strip())
        if found is None:
            raise DatasetError(f"{path}:{number}: expected __label__NAME and a text")
        labels = tuple(one.removeprefix("__label__") for one in found.group(1).split())
        yield Classified(found.group(2), labels, source=f"{path}:{number}")
