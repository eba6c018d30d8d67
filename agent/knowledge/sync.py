"""Compares a folder with the document store: what to embed, to keep and to remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.knowledge.folders import Document, FolderListing, Skipped
from agent.knowledge.formats import EMPTY
from agent.knowledge.schema import StoredDocument, Trust


@dataclass(frozen=True)
class FolderChanges:
    """The difference between a folder and the document store."""

    to_embed: tuple[Document, ...]
    """New and changed documents."""
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    """Stored documents whose file is gone."""
    skipped: tuple[Skipped, ...]


def compare(
    listing: FolderListing,
    stored: Mapping[str, StoredDocument],
    folder: Path,
    splitting: str,
    embedded_by_others: set[str],
    trust: Trust | None,
) -> FolderChanges:
    """Compare a folder's documents with the stored ones.

    Reads from disk only to check whether a document's earlier folder still has it.

    Args:
        splitting: The current settings; documents split with others count as changed.
        embedded_by_others: Names of documents with vectors from another encoder, which count as changed.
        trust: If given, documents with another value count as changed.
    """
    to_embed: list[Document] = []
    unchanged: list[str] = []
    skipped = list(listing.skipped)
    for document in listing.documents:
        previous = stored.get(document.name)
        if previous and previous.folder != str(folder) and Path(previous.folder, document.name).exists():
            reason = f"a document of this name was added from {previous.folder}; rename one or remove that one first"
            skipped.append(Skipped(document.name, reason))
        elif (
            previous
            and (previous.sha256, previous.splitting) == (document.sha256, splitting)
            and document.name not in embedded_by_others
            and trust in (None, previous.trust)
        ):
            unchanged.append(document.name)
        else:
            to_embed.append(document)
    unread = {entry.name for entry in skipped if entry.reason != EMPTY}
    present = {document.name for document in listing.documents} | unread
    unlisted_folders = tuple(name for name in unread if name.endswith("/"))
    removed = (
        name
        for name, previous in stored.items()
        if previous.folder == str(folder) and name not in present and not name.startswith(unlisted_folders)
    )
    return FolderChanges(tuple(to_embed), tuple(unchanged), tuple(removed), tuple(skipped))
