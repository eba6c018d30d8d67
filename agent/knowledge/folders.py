"""A folder of documents is read: every file's text, or the reason why it is not read.

Only hidden files and folders are passed over without a word. What a suffix means is in `formats.py`, how a text is
cut in `splitting.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import MemoryIndexError
from agent.knowledge.formats import EMPTY, FORMATS, NotReadError

SUFFIXES = tuple(FORMATS)
MAX_BYTES = 10_000_000

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
"""Of a Markdown file: lines of `name: value`."""


@dataclass(frozen=True)
class Document:
    """One file's text."""

    name: str
    """Its path inside the folder that was added, with `/`; what an answer cites."""
    text: str
    """Line ends are `\\n`; what is no plain text is written as Markdown."""
    sha256: str
    """Of the file's bytes."""
    markdown: bool = True
    """False for plain text, where `#` starts no heading."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """From the front matter: what a search can ask for."""


@dataclass(frozen=True)
class Skipped:
    """A file, folder or record that was not read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a folder held, sorted by name."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def read_folder(folder: Path) -> Reading:
    """Read every document below `folder`. Raises MemoryIndexError when there is no such folder."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise MemoryIndexError(f"{folder} {found}; name a folder of {', '.join(SUFFIXES)} files")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for path in _files(folder, skipped):
        name = path.relative_to(folder).as_posix()
        try:
            documents.append(_read(path, folder, name, skipped))
        except NotReadError as fault:
            skipped.append(Skipped(_printable(name), str(fault)))
    return Reading(
        tuple(sorted(documents, key=lambda document: document.name)),
        tuple(sorted(skipped, key=lambda entry: entry.name)),
    )


_PAIR = re.compile(r"^([\w-]+):[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def note(fault: OSError) -> None:
        name = Path(str(fault.filename)).relative_to(folder).as_posix()
        skipped.append(Skipped(_printable(f"{name}/"), f"the folder cannot be listed ({fault.strerror})"))

    for root, folders, files in os.walk(folder, onerror=note):
        kept = sorted(name for name in folders if not name.startswith("."))
        for name in kept:
            if Path(root, name).is_symlink():
                inner = Path(root, name).relative_to(folder).as_posix()
                skipped.append(Skipped(_printable(f"{inner}/"), "the folder is a link; add its target instead"))
        folders[:] = kept
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _read(path: Path, folder: Path, name: str, skipped: list[Skipped]) -> Document:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise NotReadError(f"{suffix or 'a name without suffix'} is not read; {', '.join(SUFFIXES)} are")
    if name != _printable(name):
        raise NotReadError("the file's name is not UTF-8; rename it")
    content = _bytes(path, folder)
    if not content.strip():
        raise NotReadError(EMPTY)
    text, left_out = FORMATS[suffix](content)
    skipped.extend(Skipped(f"{name}[{place}]", reason) for place, reason in left_out)
    if not text.strip():
        raise NotReadError(EMPTY)
    front = FRONT_MATTER.match(text) if suffix in (".md", ".markdown") else None
    metadata = {key: value.strip("\"'") for key, value in _PAIR.findall(front[1])} if front else {}
    return Document(name, text, hashlib.sha256(content).hexdigest(), markdown=suffix != ".txt", metadata=metadata)


def _bytes(path: Path, folder: Path) -> bytes:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise NotReadError("the file is a link out of the folder; copy what it points at")
        if not path.is_file():
            raise NotReadError("it is not a regular file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise NotReadError(f"the file has {size:,} bytes, at most {MAX_BYTES:,} are read; split it")
        return path.read_bytes()
    except OSError as fault:
        raise NotReadError(f"the file cannot be read ({fault.strerror or fault})") from fault


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
