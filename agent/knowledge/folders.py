"""Reads a folder of documents: the text of every file, or the reason why it was skipped.

Hidden files and folders are ignored without a reason. File formats are in `formats.py`, chunking in `chunking.py`.
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
"""The front matter of a Markdown file: lines of `name: value`."""


@dataclass(frozen=True)
class Document:
    """The text of one file."""

    name: str
    """Its path relative to the folder, with `/`; answers cite it."""
    text: str
    """With `\\n` line ends; formats other than plain text are converted to Markdown."""
    sha256: str
    """Hash of the file's bytes."""
    markdown: bool = True
    """False for plain text, in which `#` does not start a heading."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """From the front matter; searches can filter by it."""


@dataclass(frozen=True)
class Skipped:
    """A file, folder or record that was not read."""

    name: str
    reason: str


@dataclass(frozen=True)
class FolderListing:
    """The documents of a folder, and what was skipped, sorted by name."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def read_folder(folder: Path) -> FolderListing:
    """Read every document below `folder`. Raises MemoryIndexError if there is no such folder."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise MemoryIndexError(f"{folder} {problem}; name a folder of {', '.join(SUFFIXES)} files")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for path in _files(folder, skipped):
        name = path.relative_to(folder).as_posix()
        try:
            documents.append(_read(path, folder, name, skipped))
        except NotReadError as fault:
            skipped.append(Skipped(_printable(name), str(fault)))
    return FolderListing(
        tuple(sorted(documents, key=lambda document: document.name)),
        tuple(sorted(skipped, key=lambda entry: entry.name)),
    )


_PAIR = re.compile(r"^([\w-]+):[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def note(fault: OSError) -> None:
        name = Path(str(fault.filename)).relative_to(folder).as_posix()
        skipped.append(Skipped(_printable(f"{name}/"), f"the folder cannot be listed ({fault.strerror})"))

    for root, folders, files in os.walk(folder, onerror=note):
        visible = sorted(name for name in folders if not name.startswith("."))
        for name in visible:
            if Path(root, name).is_symlink():
                inner = Path(root, name).relative_to(folder).as_posix()
                skipped.append(Skipped(_printable(f"{inner}/"), "the folder is a link; add its target instead"))
        folders[:] = visible
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
