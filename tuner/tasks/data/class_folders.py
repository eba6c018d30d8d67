"""Texts in files of their own, a folder for each class: `pos/12.txt`, or `train/pos/12.txt` and `test/pos/3.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.tasks.data.columns import Say
from tuner.tasks.data.sources import Row, read_text

UNLABELLED = frozenset({"unsup", "unlabeled", "unlabelled", "unsupervised"})
"""Folders whose texts have no class, such as `unsup` of the film reviews of Maas et al. (2011)."""


def split_folders(path: Path, splits: Mapping[str, str], encoding: str | None, say: Say) -> dict[str, list[Row]]:
    """Rows with `text` and `label` by split; a folder of classes is `train`. Empty where it is neither."""
    rows = class_rows(path, encoding, say) if not any(name.lower() in splits for name in _classes(path)) else []
    if rows:
        return {"train": rows}
    found = {}
    for inner in sorted(one for one in path.iterdir() if one.is_dir() and one.name.lower() in splits):
        rows = class_rows(inner, encoding, say)
        if rows:
            found[splits[inner.name.lower()]] = rows
    return found if "train" in found else {}


def class_rows(path: Path, encoding: str | None, say: Say) -> list[Row]:
    """A row for each file below a folder of two classes or more; empty for any other folder. Raises DatasetError."""
    classes = _classes(path)
    for name in sorted(UNLABELLED & classes.keys()):
        say(f"{path / name} is left out: {len(classes.pop(name))} files whose class nobody says")
    if len(classes) < 2:
        return []
    return [
        Row({"text": read_text(file, encoding), "label": name}, str(file))
        for name, files in classes.items()
        for file in files
    ]


def _classes(path: Path) -> dict[str, list[Path]]:
    """The files of each folder directly below, by its name; folders without any are no classes."""
    found = {}
    for inner in sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")):
        files = sorted(one for one in inner.iterdir() if one.is_file() and not one.name.startswith("."))
        if files:
            found[inner.name] = files
    return found
