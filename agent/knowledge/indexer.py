"""Adds, changes and removes documents, and keeps the vector index in agreement with the document store.

A folder is synchronised: what is new or changed is split and embedded, what is gone is removed. Work is made durable
batch by batch, so that an interrupted run resumes where it stopped. Changes take the index's lock; another process that
holds it makes them fail. Searching is in `knowledge.py`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agent.encoders.encoder import Encoder, Vectors
from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk, TokenCounter, chunk_id, estimate_tokens, split
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.folders import Document, Skipped, read_folder
from agent.knowledge.pgvector import PgVectorIndex
from agent.knowledge.schema import StoredDocument, StoreState, Trust, Vector, to_bytes, to_matrix
from agent.knowledge.sync import compare
from agent.knowledge.vector_index import ChromaIndex, ChromaServerIndex, IndexLock, ScoredChunk, Stamp, VectorIndex

Progress = Callable[[int, int, str], None]
"""Called with the number of documents done, the number to do, and the name of the last one."""

BATCH = 128
"""Chunks embedded and made durable together: the most work that a kill can lose."""

SPLITTING_VERSION = 3
"""Raised whenever chunking changes, so that documents split by an older version count as changed."""


@dataclass(frozen=True)
class SyncReport:
    """What `Indexer.add_folder` changed. Documents by name."""

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
    """A text to store as a document of its own, in one chunk."""

    name: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _SplitDocument:
    """A document and its chunks; `vectors` are those stored already, by chunk id."""

    document: Document
    chunks: tuple[Chunk, ...]
    vectors: Mapping[str, Vector]

    @property
    def missing(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.id not in self.vectors]


class Indexer:
    """Changes one tenant's documents. Safe to use from several threads and processes."""

    def __init__(
        self,
        store: DocumentStore,
        index: VectorIndex,
        lock: IndexLock,
        encoder: Encoder,
        *,
        chunk_tokens: int = 160,
        count_tokens: TokenCounter = estimate_tokens,
        load_encoder: Callable[[str], Encoder | None] = lambda name: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """See `Knowledge` for the arguments."""
        self.encoder = encoder
        """Embeds documents and queries."""
        self._store = store
        self._index = index
        self._lock = lock
        self._chunk_tokens = chunk_tokens
        self._count_tokens = count_tokens
        self._load_encoder = load_encoder
        self._now = now
        self._generation: int | None = None
        """The store's generation that the open index agrees with; None while no index is open."""

    @property
    def splitting(self) -> str:
        """The settings that documents are split with."""
        return f"{SPLITTING_VERSION}/{self._chunk_tokens}"

    # -- changing documents -----------------------------------------------------------------------------------

    def add_folder(self, folder: Path, *, trust: Trust | None = None, progress: Progress | None = None) -> SyncReport:
        """Synchronise the store with a folder. Documents added from other folders stay.

        Args:
            trust: Who wrote the texts. By default stored documents keep their value and new ones are "own".

        Raises:
            MemoryIndexError: The folder does not exist, or another process is changing the index.
        """
        started = time.monotonic()
        folder = folder.resolve()
        with self._lock.hold():
            self.follow_encoder(self._store.state())
            listing = read_folder(folder)
            stored = {document.name: document for document in self._store.documents()}
            changes = compare(listing, stored, folder, self.splitting, self._embedded_by_others(), trust)
            self._open_index()
            if changes.removed:
                self._remove(changes.removed)
            moved = [name for name in changes.unchanged if stored[name].folder != str(folder)]
            self._store.move(moved, str(folder))
            embedded = self._add(changes.to_embed, stored, str(folder), trust, progress)
        return SyncReport(
            added=tuple(document.name for document in changes.to_embed if document.name not in stored),
            changed=tuple(document.name for document in changes.to_embed if document.name in stored),
            unchanged=changes.unchanged,
            removed=changes.removed,
            skipped=changes.skipped,
            chunks_embedded=embedded,
            seconds=time.monotonic() - started,
        )

    def add_texts(self, texts: Sequence[NewText]) -> None:
        """Store texts as documents, replacing those of the same name. Synchronising a folder does not remove them.

        Raises:
            MemoryIndexError: Another process is changing the index.
        """
        newest = {text.name: text for text in texts}
        with self._lock.hold():
            self.follow_encoder(self._store.state())
            self._open_index()
            stored = {document.name: document for document in self._store.documents()}
            batch = []
            for text in newest.values():
                chunk = Chunk(chunk_id(text.name, "", text.text), text.name, "", 0, text.text)
                digest = hashlib.sha256(text.text.encode()).hexdigest()
                document = Document(text.name, text.text, digest, markdown=False, metadata=text.metadata)
                batch.append(_SplitDocument(document, (chunk,), self._current_vectors(text.name)))
            vectors = self._embed([chunk for document in batch for chunk in document.missing], self.encoder)
            self._put(batch, vectors, stored, "", "own")

    def remove(self, name: str) -> None:
        """Remove one document. It returns when its folder is added again.

        Raises:
            MemoryIndexError: There is no such document, or another process is changing the index.
        """
        with self._lock.hold():
            names = [document.name for document in self._store.documents()]
            if name not in names:
                raise MemoryIndexError(f"no document is named {name!r} among {len(names)}; see `ratchet docs list`")
            self._open_index()
            self._remove([name])

    def remove_all(self, names: Sequence[str], *, for_good: bool = False) -> None:
        """Remove documents; names that are not stored are ignored.

        Args:
            for_good: Leave no trace in the indexes, which otherwise keep words and vectors of removed documents for a
                while: the full-text index is merged, and the vector index emptied and rebuilt by the next use. The
                database file itself is cleaned by `agent.storage.database.scour`.
        """
        if not names:
            return
        with self._lock.hold():
            if not for_good:
                self._open_index()
                self._remove(names)
                return
            state, _ = self._store.remove(names, for_good=True)
            self._generation = None
            # Not rebuilt by this process: Chroma writes uninitialised memory to its files, which may hold the texts.
            self._index.rebuild((), Stamp(state.generation, 0, self.encoder.name))

    def rebuild(self, encoder: Encoder | None = None) -> int:
        """Embed the chunks that another encoder embedded, then rebuild both indexes.

        All vectors change in one transaction, so that a search uses either the old ones or the new ones. A kill before
        that changes nothing.

        Args:
            encoder: Replaces the current encoder.

        Returns:
            The number of chunks embedded.
        """
        encoder = encoder or self.encoder
        with self._lock.hold():
            chunks = self._store.chunks_not_by(encoder.name)
            vectors: dict[str, Vector] = {}
            for start in range(0, len(chunks), BATCH):
                vectors |= self._embed(chunks[start : start + BATCH], encoder)
            # Advances the generation even where nothing changed, so that other processes open the new index.
            self._store.replace_vectors(vectors, self._timestamp())
            self.encoder = encoder
            self._store.rebuild_words()
            self._rebuild_index()
        return len(chunks)

    # -- the encoder and the index, for searching -------------------------------------------------------------

    def follow_encoder(self, state: StoreState) -> None:
        """Switch to the encoder that all vectors come from, if it can be loaded."""
        if len(state.encoders) == 1 and state.encoders[0] != self.encoder.name:
            self.encoder = self._load_encoder(state.encoders[0]) or self.encoder

    def require_encoder(self, state: StoreState) -> None:
        """Raise MemoryIndexError unless all vectors come from the current encoder."""
        others = [name for name in state.encoders if name != self.encoder.name]
        if others:
            raise MemoryIndexError(
                f"the documents were embedded with {', '.join(others)}, and the encoder is now "
                f"{self.encoder.name}; run `ratchet docs rebuild` to embed them anew"
            )

    def nearest(self, vector: Vectors, k: int) -> list[ScoredChunk] | None:
        """Search the vector index. Returns None where it is busy or broken; the next use repairs it."""
        with self._lock.try_hold(seconds=0.05) as is_held:
            if not is_held:
                return None
            try:
                self._open_index()
                return self._index.search(vector, k) if self._generation is not None else None
            except MemoryIndexError:
                self._generation = None
                return None

    def close(self) -> None:
        with self._lock.try_hold(seconds=5.0):
            self._index.close()
            self._generation = None

    # -- embedding and storing; the lock is held --------------------------------------------------------------

    def _add(
        self,
        documents: Sequence[Document],
        stored: Mapping[str, StoredDocument],
        folder: str,
        trust: Trust | None,
        progress: Progress | None,
    ) -> int:
        """Split, embed and store documents in batches. Returns the number of chunks embedded."""
        embedded = done = 0
        batch: list[_SplitDocument] = []
        for position, document in enumerate(documents):
            chunks = split(document, chunk_tokens=self._chunk_tokens, count_tokens=self._count_tokens)
            batch.append(_SplitDocument(document, chunks, self._current_vectors(document.name)))
            missing = [chunk for entry in batch for chunk in entry.missing]
            if len(missing) < BATCH and position + 1 < len(documents):
                continue
            self._put(batch, self._embed(missing, self.encoder), stored, folder, trust)
            embedded += len(missing)
            for entry in batch:
                done += 1
                if progress:
                    progress(done, len(documents), entry.document.name)
            batch = []
        return embedded

    def _current_vectors(self, document: str) -> dict[str, Vector]:
        """Return the stored vectors of a document that come from the current encoder."""
        stored = self._store.stored_vectors(document)
        return {key: vector for key, vector in stored.items() if vector.encoder == self.encoder.name}

    def _embedded_by_others(self) -> set[str]:
        """Return the names of documents with vectors from another encoder."""
        if set(self._store.state().encoders) <= {self.encoder.name}:
            return set()
        return self._store.documents_not_by(self.encoder.name)

    def _embed(self, chunks: Sequence[Chunk], encoder: Encoder) -> dict[str, Vector]:
        vectors = encoder.encode([chunk.embedded_text for chunk in chunks])
        return {chunk.id: Vector(to_bytes(row), encoder.name) for chunk, row in zip(chunks, vectors, strict=True)}

    def _put(
        self,
        batch: Sequence[_SplitDocument],
        new_vectors: Mapping[str, Vector],
        stored: Mapping[str, StoredDocument],
        folder: str,
        trust: Trust | None,
    ) -> None:
        now = self._timestamp()
        rows = []
        for entry in batch:
            document, previous = entry.document, stored.get(entry.document.name)
            row = StoredDocument(
                name=document.name,
                folder=folder,
                sha256=document.sha256,
                splitting=self.splitting,
                chunks=len(entry.chunks),
                added_at=previous.added_at if previous else now,
                changed_at=now,
                trust=trust or (previous.trust if previous else "own"),
                metadata=document.metadata,
            )
            rows.append((row, entry.chunks))
        kept = {key: vector for entry in batch for key, vector in entry.vectors.items()}
        state, removed = self._store.put(rows, {**kept, **new_vectors})
        self._update_index(new_vectors, removed, state)

    def _remove(self, names: Sequence[str]) -> None:
        state, removed = self._store.remove(names)
        self._update_index({}, removed, state)

    def _timestamp(self) -> str:
        return self._now().isoformat(timespec="seconds")

    # -- the vector index; the lock is held -------------------------------------------------------------------

    def _open_index(self) -> None:
        """Open the index, or rebuild it where it does not agree with the store."""
        state = self._store.state()
        if self._generation == state.generation:
            return
        self._generation = None
        if set(state.encoders) - {self.encoder.name}:
            self._index.close()
        elif self._index.open() == self._stamp(state):
            self._generation = state.generation
        else:
            self._rebuild_index()

    def _update_index(self, new_vectors: Mapping[str, Vector], removed: Sequence[str], state: StoreState) -> None:
        if self._generation is None:
            return  # The vectors come from several encoders: there is no index until all come from one.
        matrix = to_matrix([vector.data for vector in new_vectors.values()])
        self._generation = None
        self._index.apply((list(new_vectors), matrix), removed, self._stamp(state))
        self._generation = state.generation

    def _rebuild_index(self) -> None:
        self._generation = None
        state = self._store.state()
        self.require_encoder(state)
        self._index.rebuild(self._store.vectors(), self._stamp(state))
        self._generation = state.generation

    def _stamp(self, state: StoreState) -> Stamp:
        return Stamp(state.generation, state.chunks, self.encoder.name)


def make_vector_index(folder: Path, server: str, engine: sa.Engine, tenant: int) -> VectorIndex:
    """Return the index that `server` names, or the embedded Chroma in `folder` where it is empty.

    Raises:
        MemoryIndexError: The address is neither of a Chroma server nor of PostgreSQL.
    """
    if not server:
        return ChromaIndex(folder)
    # Several projects may use the same server.
    name = f"ratchet_{hashlib.sha256(str(engine.url.database).encode()).hexdigest()[:12]}_{tenant}"
    if server.startswith(("http://", "https://")):
        return ChromaServerIndex(server, name)
    if server.startswith(("postgresql://", "postgresql+")):
        return PgVectorIndex(server, name)
    raise MemoryIndexError(
        f"the index {server!r} is not known; expected http:// for a Chroma server or postgresql:// for pgvector"
    )
