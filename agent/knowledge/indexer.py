"""TODO: agent/knowledge/indexer.py"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_store import Vector
from agent.knowledge.folders import Document, Skipped
from agent.knowledge.pgvector import PgVectorIndex
from agent.knowledge.vector_index import ChromaIndex, ChromaServerIndex, VectorIndex

Progress = Callable[[int, int, str], None]
"""Called with documents done, documents to do, and the name of the one just done."""


_BATCH = 128
"""Chunks embedded and made durable together; what is lost by a kill is at most so much work."""


@dataclass(frozen=True)
class SyncReport:
    """What adding a folder did. Documents by name."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    """Not read this time. A document stored before keeps its old text, unless its file is now empty."""
    chunks_embedded: int
    seconds: float


@dataclass(frozen=True)
class NewText:
    """A text that is a document of its own, kept whole; and what it is known by."""

    name: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Prepared:
    """A document that is split; `kept` are vectors it has already."""

    document: Document
    chunks: tuple[Chunk, ...]
    kept: Mapping[str, Vector]

    @property
    def missing(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.id not in self.kept]


def _index(folder: Path, server: str, engine: sa.Engine, tenant: int) -> VectorIndex:
    if not server:
        return ChromaIndex(folder)
    # Several projects may use one server.
    name = f"ratchet_{hashlib.sha256(str(engine.url.database).encode()).hexdigest()[:12]}_{tenant}"
    if server.startswith(("http://", "https://")):
        return ChromaServerIndex(server, name)
    if server.startswith(("postgresql://", "postgresql+")):
        return PgVectorIndex(server, name)
    raise MemoryIndexError(
        f"the index {server!r} is not known; expected http:// for a Chroma server or postgresql:// for pgvector"
    )
