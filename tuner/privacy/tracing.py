"""Which files hold text that names a person, among what was made of runs."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.privacy.subject import Subject
from agent.registry.artifact import CARD, REPORT

_TEXTS = (".json", ".jsonl", ".md", ".html", ".svg", ".tmp")
"""Files of ours that may hold text. Plots and tensors hold none."""


def text_files(folder: Path) -> Iterator[Path]:
    """All files below a folder that may hold text."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in _TEXTS)


def names_subject(path: Path, subject: Subject) -> bool:
    """Whether a file's text has the ID as a whole word."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return False
    return any(subject.is_in(value) for value in _values(path.suffix, text))


def pages_of(folder: Path, subject: Subject) -> Iterator[str]:
    """The documents of a sealed folder that name the ID."""
    for path in (folder / CARD, *text_files(folder / REPORT)):
        if names_subject(path, subject):
            yield path.relative_to(folder).as_posix()


def _values(suffix: str, text: str) -> Iterator[Any]:
    """What a text says: JSON and HTML write some characters otherwise, and stand for it as well."""
    yield text
    if suffix == ".json":
        yield _parsed(text)
    elif suffix == ".jsonl":
        yield from map(_parsed, text.split("\n"))
    else:
        yield html.unescape(text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
