"""What is to be done so that the shelf holds what a folder holds now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.knowledge.document_store import StoredDocument, Trust
from agent.knowledge.folders import Document, Reading, Skipped
from agent.knowledge.formats import EMPTY


@dataclass(frozen=True)
class Work:
    """The difference between a folder and the shelf."""

    todo: tuple[Document, ...]
    unchanged: tuple[str, ...]
    vanished: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def compare(
    reading: Reading,
    known: Mapping[str, StoredDocument],
    folder: Path,
    splitting: str,
    foreign: set[str],
    trust: Trust | None,
) -> Work:
    """What is to be embedded, what stays, what goes; asks the disk only whether old folders are there."""
    todo: list[Document] = []
    unchanged: list[str] = []
    skipped = list(reading.skipped)
    for document in reading.documents:
        before = known.get(document.name)
        if before and before.folder != str(folder) and Path(before.folder, document.name).exists():
            taken = f"a document of this name was added from {before.folder}; rename one or remove that one first"
            skipped.append(Skipped(document.name, taken))
        elif (
            before
            and (before.sha256, before.splitting) == (document.sha256, splitting)
            and document.name not in foreign
            and trust in (None, before.trust)
        ):
            unchanged.append(document.name)
        else:
            todo.append(document)
    held = {entry.name for entry in skipped if entry.reason != EMPTY}
    present = {document.name for document in reading.documents} | held
    unlisted = tuple(name for name in held if name.endswith("/"))
    vanished = (
        name
        for name, before in known.items()
        if before.folder == str(folder) and name not in present and not name.startswith(unlisted)
    )
    return Work(tuple(todo), tuple(unchanged), tuple(vanished), tuple(skipped))
