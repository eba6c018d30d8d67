"""Memory: folders of documents go in, passages near a question come out.

The shelf is the truth and Chroma its index. Searching and adding may go on at once, in threads and in
processes: a search that finds the index busy is answered from the shelf, exactly and a little slower.
Dense search alone; words are not matched.
"""

from __future__ import annotations

import builtins
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from agent.database import open_engine
from agent.errors import MemoryIndexError
from agent.memory.documents import (
    EMPTY,
    Chunk,
    Document,
    Reading,
    Skipped,
    TokenCounter,
    estimate_tokens,
    read_folder,
    split,
)
from agent.memory.encoder import Encoder, Vectors
from agent.memory.index import ChromaIndex, Hit, IndexLock, Stamp
from agent.memory.shelf import Shelf, ShelfState, StoredDocument, Vector, to_bytes
from tools.context import Passage

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


class Memory:
    """The user's documents. A `tools.context.Retriever`; safe to search from several threads."""

    def __init__(
        self,
        engine: sa.Engine,
        index: Path,
        encoder: Encoder,
        *,
        chunk_tokens: int = 160,
        count_tokens: TokenCounter = estimate_tokens,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes the engine over and disposes of it on close."""
        self._engine = engine
        self._shelf = Shelf(engine)
        self._lock = IndexLock(index / "lock")
        self._index = ChromaIndex(index / "chroma")
        self._generation: int | None = None
        """The shelf's generation that the open index agrees with."""
        self._encoder = encoder
        self._chunk_tokens = chunk_tokens
        self._count_tokens = count_tokens
        self._now = now
        self._matrix: tuple[int, tuple[str, ...], Vectors] | None = None
        self._matrix_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        database: Path,
        index: Path,
        encoder: Encoder,
        *,
        chunk_tokens: int = 160,
        count_tokens: TokenCounter = estimate_tokens,
    ) -> Memory:
        """Open the memory of a home. Chroma is opened by the first search or change, and healed then."""
        return cls(open_engine(database), index, encoder, chunk_tokens=chunk_tokens, count_tokens=count_tokens)

    def add_folder(self, folder: Path, *, progress: Progress | None = None) -> SyncReport:
        """Make the shelf hold what the folder holds now: embeds what is new or changed, forgets what went.

        Documents that were added from other folders stay. Raises MemoryIndexError when the folder is
        missing or another process is changing the index.
        """
        started = time.monotonic()
        folder = folder.resolve()
        with self._lock.required():
            reading = read_folder(folder)
            known = {document.name: document for document in self._shelf.documents()}
            work = _compare(reading, known, folder, self._splitting, self._foreign())
            self._open_index()
            if work.vanished:
                self._forget(work.vanished)
            self._shelf.move([name for name in work.unchanged if known[name].folder != str(folder)], str(folder))
            embedded = self._store(work.todo, known, folder, progress)
        return SyncReport(
            added=tuple(document.name for document in work.todo if document.name not in known),
            changed=tuple(document.name for document in work.todo if document.name in known),
            unchanged=work.unchanged,
            removed=work.vanished,
            skipped=work.skipped,
            chunks_embedded=embedded,
            seconds=time.monotonic() - started,
        )

    def list(self) -> tuple[StoredDocument, ...]:
        """The documents by name."""
        return self._shelf.documents()

    @property
    def version(self) -> str:
        """The same for the same documents, split and encoded the same way, wherever they are stored."""
        parts = [self._encoder.name, self._splitting]
        parts += [f"{document.name} {document.sha256}" for document in self._shelf.documents()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def remove(self, name: str) -> None:
        """Forget one document; it returns when its folder is added again. Raises if it is unknown."""
        with self._lock.required():
            names = [document.name for document in self._shelf.documents()]
            if name not in names:
                raise MemoryIndexError(f"no document is named {name!r} among {len(names)}; see `ratchet docs list`")
            self._open_index()
            self._forget([name])

    def search(self, query: str, k: int) -> builtins.list[Passage]:
        """The k passages nearest to the query, best first; none for a blank query."""
        state = self._shelf.state()
        if k < 1 or not query.strip() or not state.chunks:
            return []
        self._check_encoder(state)
        vector = self._encoder.encode([query])[0]
        with self._lock.held(seconds=0.05) as held:
            hits = self._index_hits(vector, k) if held else None
        if hits is None:
            hits = self._shelf_hits(vector, k)
        chunks = self._shelf.chunks([hit.id for hit in hits])
        # A chunk may have been removed since it was found.
        return [_passage(chunks[hit.id], hit.score) for hit in hits if hit.id in chunks]

    def rebuild(self) -> int:
        """Embed anew what another encoder embedded, then index everything anew. Returns chunks embedded."""
        with self._lock.required():
            foreign = self._foreign()
            # Counts the generation up, so that other processes open the new index.
            self._shelf.replace_vectors({}, self._time())
            chunks = [chunk for chunk in self._shelf.all_chunks() if chunk.document in foreign]
            for start in range(0, len(chunks), _BATCH):
                part = chunks[start : start + _BATCH]
                self._shelf.replace_vectors(self._embed(part), self._time())
            self._reindex()
        return len(chunks)

    def close(self) -> None:
        with self._lock.held(seconds=5.0):
            self._index.close()
            self._generation = None
        self._engine.dispose()

    @property
    def _splitting(self) -> str:
        return f"1/{self._chunk_tokens}"

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _foreign(self) -> set[str]:
        """Documents with vectors of another encoder."""
        if set(self._shelf.state().encoders) <= {self._encoder.name}:
            return set()
        return self._shelf.documents_not_by(self._encoder.name)

    def _check_encoder(self, state: ShelfState) -> None:
        others = [name for name in state.encoders if name != self._encoder.name]
        if others:
            raise MemoryIndexError(
                f"the documents were embedded with {', '.join(others)}, and the encoder is now "
                f"{self._encoder.name}; run `ratchet docs rebuild` to embed them anew"
            )

    def _store(
        self,
        todo: Sequence[Document],
        known: Mapping[str, StoredDocument],
        folder: Path,
        progress: Progress | None,
    ) -> int:
        """Embed and keep documents, several at a time. Returns how many chunks were embedded."""
        embedded = done = 0
        waiting: list[_Prepared] = []
        for position, document in enumerate(todo):
            waiting.append(self._prepare(document))
            missing = [chunk for prepared in waiting for chunk in prepared.missing]
            if len(missing) < _BATCH and position + 1 < len(todo):
                continue
            fresh = self._embed(missing)
            embedded += len(missing)
            self._keep(waiting, fresh, known, folder)
            for prepared in waiting:
                done += 1
                if progress:
                    progress(done, len(todo), prepared.document.name)
            waiting = []
        return embedded

    def _prepare(self, document: Document) -> _Prepared:
        chunks = split(document, chunk_tokens=self._chunk_tokens, count_tokens=self._count_tokens)
        stored = self._shelf.stored_vectors(document.name)
        kept = {key: vector for key, vector in stored.items() if vector.encoder == self._encoder.name}
        return _Prepared(document, chunks, kept)

    def _embed(self, chunks: Sequence[Chunk]) -> dict[str, Vector]:
        vectors = self._encoder.encode([chunk.embedded_text for chunk in chunks])
        name = self._encoder.name
        return {chunk.id: Vector(to_bytes(row), name) for chunk, row in zip(chunks, vectors, strict=True)}

    def _keep(
        self,
        batch: Sequence[_Prepared],
        fresh: Mapping[str, Vector],
        known: Mapping[str, StoredDocument],
        folder: Path,
    ) -> None:
        at = self._time()
        entries = []
        for prepared in batch:
            document, before = prepared.document, known.get(prepared.document.name)
            stored = StoredDocument(
                name=document.name,
                folder=str(folder),
                sha256=document.sha256,
                splitting=self._splitting,
                chunks=len(prepared.chunks),
                added_at=before.added_at if before else at,
                changed_at=at,
            )
            entries.append((stored, prepared.chunks))
        kept = {key: vector for prepared in batch for key, vector in prepared.kept.items()}
        state, gone = self._shelf.put(entries, {**kept, **fresh})
        self._update_index(fresh, gone, state)

    def _forget(self, names: Sequence[str]) -> None:
        state, gone = self._shelf.remove(names)
        self._update_index({}, gone, state)

    def _update_index(self, fresh: Mapping[str, Vector], gone: Sequence[str], state: ShelfState) -> None:
        if self._generation is None:
            return  # The vectors are of several encoders: there is no index until all are of one.
        rows = [np.frombuffer(vector.data, dtype="<f4") for vector in fresh.values()]
        vectors = np.stack(rows) if rows else np.zeros((0, self._encoder.dimensions), dtype=np.float32)
        self._generation = None
        self._index.apply(list(fresh), vectors, gone, self._stamp(state))
        self._generation = state.generation

    def _open_index(self) -> None:
        """Make the open index agree with the shelf. The lock must be held."""
        state = self._shelf.state()
        if self._generation == state.generation:
            return
        self._generation = None
        if set(state.encoders) - {self._encoder.name}:
            self._index.close()
        elif self._index.open() == self._stamp(state):
            self._generation = state.generation
        else:
            self._reindex()

    def _reindex(self) -> None:
        self._generation = None
        state, ids, vectors = self._shelf.vectors()
        self._index.rebuild(ids, vectors, self._stamp(state))
        self._generation = state.generation

    def _stamp(self, state: ShelfState) -> Stamp:
        return Stamp(state.generation, state.chunks, self._encoder.name)

    def _index_hits(self, vector: Vectors, k: int) -> tuple[Hit, ...] | None:
        """None when the index cannot answer; it is opened and healed again by the next use."""
        try:
            self._open_index()
            return self._index.search(vector, k) if self._generation is not None else None
        except MemoryIndexError:
            self._generation = None
            return None

    def _shelf_hits(self, vector: Vectors, k: int) -> tuple[Hit, ...]:
        generation = self._shelf.state().generation
        with self._matrix_lock:
            if self._matrix is None or self._matrix[0] != generation:
                state, ids, matrix = self._shelf.vectors()
                self._check_encoder(state)
                self._matrix = (state.generation, ids, matrix)
            _, ids, matrix = self._matrix
        if not ids:
            return ()
        scores = matrix @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        return tuple(Hit(ids[row], float(scores[row])) for row in best)


@dataclass(frozen=True)
class _Prepared:
    """A document that is split; `kept` are vectors it has already."""

    document: Document
    chunks: tuple[Chunk, ...]
    kept: Mapping[str, Vector]

    @property
    def missing(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.id not in self.kept]


@dataclass(frozen=True)
class _Work:
    """The difference between a folder and the shelf."""

    todo: tuple[Document, ...]
    unchanged: tuple[str, ...]
    vanished: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def _compare(
    reading: Reading, known: Mapping[str, StoredDocument], folder: Path, splitting: str, foreign: set[str]
) -> _Work:
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
    return _Work(tuple(todo), tuple(unchanged), tuple(vanished), tuple(skipped))


def _passage(chunk: Chunk, score: float) -> Passage:
    return Passage(label=0, id=chunk.id, document=chunk.document, heading=chunk.heading, text=chunk.text, score=score)
