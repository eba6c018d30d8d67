"""Reads texts in files of their own, one folder per class: `pos/12.txt`, or `train/pos/12.txt` and `test/pos/3.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.tasks.data.columns import Say
from tuner.tasks.data.sources import TableRow, read_text

UNLABELLED = frozenset({"unsup", "unlabeled", "unlabelled", "unsupervised"})
"""Folders whose texts have no class, such as `unsup` in the film reviews of Maas et al. (2011)."""


def read_class_splits(
    path: Path, splits: Mapping[str, str], encoding: str | None, say: Say
) -> dict[str, list[TableRow]]:
    """Read rows with `text` and `label` by split; a folder of classes is the split `train`.

    Args:
        splits: Lower-case folder names and the split that each stands for.

    Returns:
        Rows by split; empty for a folder without a `train` split of two classes or more.
    """
    rows = read_class_folder(path, encoding, say) if not any(name.lower() in splits for name in _classes(path)) else []
    if rows:
        return {"train": rows}
    by_split = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in splits):
        rows = read_class_folder(folder, encoding, say)
        if rows:
            by_split[splits[folder.name.lower()]] = rows
    return by_split if "train" in by_split else {}


def read_class_folder(path: Path, encoding: str | None, say: Say) -> list[TableRow]:
    """Read one row per file below a folder of two classes or more; empty for any other folder. Raises DatasetError."""
    classes = _classes(path)
    for name in sorted(UNLABELLED & classes.keys()):
        say(f"{path / name} is left out: its {len(classes.pop(name))} files have no class")
    if len(classes) < 2:
        return []
    return [
        TableRow({"text": read_text(file, encoding), "label": name}, str(file))
        for name, files in classes.items()
        for file in files
    ]


def _classes(path: Path) -> dict[str, list[Path]]:
    """The files of each folder directly below, by folder name; folders without files are left out."""
    classes = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
        if files:
            classes[folder.name] = files
    return classes
