"""Memory: folders of documents go in, passages that fit a question come out.

A question finds passages by its words and by its meaning, and the two are weighed against each other. The shelf is the
truth, with the full-text index in it; the index of vectors is handed what it holds. Searching and adding may go on at
once, in threads and in processes: a search that finds the index of vectors busy is answered from the shelf, exactly and
a little slower. A memory is one tenant's: no search sees another's documents.

The vectors name the encoder that they are of, and a query is encoded by that one. So while all documents are embedded
with another encoder, and behind that in processes that know only the old one, searches are answered as well.
"""

from __future__ import annotations

import builtins
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from agent.encoders.encoder import Encoder, Vectors
from agent.encoders.reranker import RERANKED, Reranker
from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk, TokenCounter, chunk_id, estimate_tokens, split
from agent.knowledge.document_store import Filter, Shelf, StoredDocument, Trust, Vector, to_bytes, to_matrix
from agent.knowledge.folders import Document, read_folder
from agent.knowledge.fusion import fuse
from agent.knowledge.indexer import _BATCH, NewText, Progress, SyncReport, _index, _Prepared
from agent.knowledge.passages import gathered, passage
from agent.knowledge.schema import ShelfState
from agent.knowledge.sync import compare
from agent.knowledge.vector_index import Hit, IndexLock, Stamp
from agent.storage.database import open_engine
from tools.context import Passage

CANDIDATES = 50
"""Chunks that each of the two rankings hands on, at least."""

FEW_CHUNKS = 20_000
"""Up to so many chunks of the documents that were asked for are compared one by one."""


class Memory:
    """One tenant's documents. A `tools.context.Retriever`; safe to search from several threads."""

    def __init__(
        self,
        engine: sa.Engine,
        index: Path,
        encoder: Encoder,
        *,
        tenant: str = "",
        server: str = "",
        chunk_tokens: int = 160,
        neighbours: int = 0,
        reranker: Callable[[], Reranker] | None = None,
        count_tokens: TokenCounter = estimate_tokens,
        encoder_named: Callable[[str], Encoder | None] = lambda name: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes the engine over and disposes of it on close.

        `encoder_named` gives other encoders by name, None for those it does not know; where all vectors are of one that
        it knows, that one takes the place of `encoder`.

        `server` is the address of a Chroma server or of a PostgreSQL database with pgvector that holds the vectors in
        place of the embedded Chroma in the folder `index`.
        `reranker` is called by the first search that finds anything, and orders what is found.
        With `neighbours` a passage brings that many pieces before and behind it in its section.
        """
        self._engine = engine
        self._shelf = Shelf(engine, tenant=tenant)
        home = index / f"tenant-{self._shelf.tenant}" if tenant else index
        self._lock = IndexLock(home / "lock")
        self._index = _index(home / "chroma", server, engine, self._shelf.tenant)
        self._generation: int | None = None
        """The shelf's generation that the open index agrees with."""
        self._encoder = encoder
        self._encoder_named = encoder_named
        self._chunk_tokens = chunk_tokens
        self._neighbours = neighbours
        self._reranker = reranker
        self._count_tokens = count_tokens
        self._now = now
        self._matrix: tuple[int, tuple[str, ...], Vectors] | None = None
        self._matrix_lock = threading.Lock()
        self._beside = ThreadPoolExecutor(thread_name_prefix="ratchet-search")
        """Looks for meaning while the searching thread looks for words."""

    @classmethod
    def open(cls, database: Path, index: Path, encoder: Encoder, **options: Any) -> Memory:
        """Open the memory of a home. The index is opened by the first search or change, and healed then."""
        return cls(open_engine(database), index, encoder, **options)

    def add_folder(self, folder: Path, *, trust: Trust | None = None, progress: Progress | None = None) -> SyncReport:
        """Make the shelf hold what the folder holds now: embeds what is new or changed, forgets what went.

        `trust` says whose texts these are; without it they stay what they were, new ones are "own".
        Documents that were added from other folders stay. Raises MemoryIndexError when the folder is
        missing or another process is changing the index.
        """
        started = time.monotonic()
        folder = folder.resolve()
        with self._lock.required():
            self._follow(self._shelf.state())
            reading = read_folder(folder)
            known = {document.name: document for document in self._shelf.documents()}
            work = compare(reading, known, folder, self._splitting, self._foreign(), trust)
            self._open_index()
            if work.vanished:
                self._forget(work.vanished)
            self._shelf.move([name for name in work.unchanged if known[name].folder != str(folder)], str(folder))
            embedded = self._store(work.todo, known, str(folder), trust, progress)
        return SyncReport(
            added=tuple(document.name for document in work.todo if document.name not in known),
            changed=tuple(document.name for document in work.todo if document.name in known),
            unchanged=work.unchanged,
            removed=work.vanished,
            skipped=work.skipped,
            chunks_embedded=embedded,
            seconds=time.monotonic() - started,
        )

    def add_texts(self, texts: Sequence[NewText]) -> None:
        """Keep texts as documents of their own, in place of those of the same name. No folder's change removes them."""
        newest = {text.name: text for text in texts}
        with self._lock.required():
            self._follow(self._shelf.state())
            self._open_index()
            known = {document.name: document for document in self._shelf.documents()}
            batch = []
            for one in newest.values():
                chunk = Chunk(chunk_id(one.name, "", one.text), one.name, "", 0, one.text)
                content = hashlib.sha256(one.text.encode()).hexdigest()
                document = Document(one.name, one.text, content, markdown=False, metadata=one.metadata)
                batch.append(_Prepared(document, (chunk,), self._kept(one.name)))
            fresh = self._embed([chunk for prepared in batch for chunk in prepared.missing])
            self._keep(batch, fresh, known, "", "own")

    def texts(self, names: Sequence[str]) -> builtins.list[NewText]:
        """The documents of these names that are there, in the order they are asked for."""
        documents = {document.name: document for document in self._shelf.documents(names)}
        texts = self._shelf.texts(list(documents))
        return [NewText(name, texts[name], documents[name].metadata) for name in names if name in texts]

    def list(self, names: Sequence[str] | None = None) -> tuple[StoredDocument, ...]:
        """The documents by name, or those of these names."""
        return self._shelf.documents(names)

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

    def remove_all(self, names: Sequence[str], *, for_good: bool = False) -> None:
        """Forget these documents.

        `for_good` leaves nothing of them in the indexes, which otherwise keep words and vectors of what was removed
        for a while: the full-text index is merged and that of vectors emptied, to be made anew by the next use. Made
        here it could hold what this process read of them: Chroma writes memory to its files that it never set. The
        file itself is for `agent.storage.database.scour`.
        """
        if not names:
            return
        with self._lock.required():
            if not for_good:
                self._open_index()
                self._forget(names)
                return
            state, _ = self._shelf.remove(names, for_good=True)
            self._generation = None
            self._index.rebuild((), Stamp(state.generation, 0, self._encoder.name))

    def search(self, query: str, k: int, *, where: Filter | None = None, join: bool = True) -> builtins.list[Passage]:
        """The k passages that fit the query best, best first; none for a blank query.

        `where` names metadata that their documents must have; besides what the documents' front matter says, `trust`
        and `document`. What says the same as a better one is left out; and unless `join` is false, pieces that follow
        each other are one passage.
        """
        while True:
            state = self._shelf.state()
            if k < 1 or not query.strip() or not state.chunks:
                return []
            try:
                return self._search(query, k, state, where, join)
            except _Changed:
                continue
            except (MemoryIndexError, ValueError):
                # Vectors of two encoders cannot be compared: what failed may be in order now.
                if self._shelf.state().encoders == state.encoders:
                    raise

    def rebuild(self, encoder: Encoder | None = None) -> int:
        """Embed anew what another encoder embedded, then index everything anew. Returns chunks embedded.

        With `encoder` that one takes the place of the memory's own. All vectors change in one transaction, so that a
        search is answered with the old ones until it is with the new ones. A kill before that changes nothing.
        """
        encoder = encoder or self._encoder
        with self._lock.required():
            chunks = self._shelf.chunks_not_by(encoder.name)
            vectors: dict[str, Vector] = {}
            for start in range(0, len(chunks), _BATCH):
                vectors |= self._embed(chunks[start : start + _BATCH], encoder)
            # Counts the generation up even where nothing changed, so that other processes open the new index.
            self._shelf.replace_vectors(vectors, self._time())
            self._encoder = encoder
            self._shelf.index_words()
            self._reindex()
        return len(chunks)

    def close(self) -> None:
        with self._lock.held(seconds=5.0):
            self._index.close()
            self._generation = None
        self._beside.shutdown()
        self._engine.dispose()

    @property
    def _splitting(self) -> str:
        return f"2/{self._chunk_tokens}"

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _foreign(self) -> set[str]:
        """Documents with vectors of another encoder."""
        if set(self._shelf.state().encoders) <= {self._encoder.name}:
            return set()
        return self._shelf.documents_not_by(self._encoder.name)

    def _follow(self, state: ShelfState) -> None:
        """Take the encoder that all vectors are of, if it is a known one."""
        if len(state.encoders) == 1 and state.encoders[0] != self._encoder.name:
            self._encoder = self._encoder_named(state.encoders[0]) or self._encoder

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
        folder: str,
        trust: Trust | None,
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
            self._keep(waiting, fresh, known, folder, trust)
            for prepared in waiting:
                done += 1
                if progress:
                    progress(done, len(todo), prepared.document.name)
            waiting = []
        return embedded

    def _prepare(self, document: Document) -> _Prepared:
        chunks = split(document, chunk_tokens=self._chunk_tokens, count_tokens=self._count_tokens)
        return _Prepared(document, chunks, self._kept(document.name))

    def _kept(self, document: str) -> dict[str, Vector]:
        """Vectors of a document that need not be made again."""
        stored = self._shelf.stored_vectors(document)
        return {key: vector for key, vector in stored.items() if vector.encoder == self._encoder.name}

    def _embed(self, chunks: Sequence[Chunk], encoder: Encoder | None = None) -> dict[str, Vector]:
        encoder = encoder or self._encoder
        vectors = encoder.encode([chunk.embedded_text for chunk in chunks])
        return {chunk.id: Vector(to_bytes(row), encoder.name) for chunk, row in zip(chunks, vectors, strict=True)}

    def _keep(
        self,
        batch: Sequence[_Prepared],
        fresh: Mapping[str, Vector],
        known: Mapping[str, StoredDocument],
        folder: str,
        trust: Trust | None,
    ) -> None:
        at = self._time()
        entries = []
        for prepared in batch:
            document, before = prepared.document, known.get(prepared.document.name)
            stored = StoredDocument(
                name=document.name,
                folder=folder,
                sha256=document.sha256,
                splitting=self._splitting,
                chunks=len(prepared.chunks),
                added_at=before.added_at if before else at,
                changed_at=at,
                trust=trust or (before.trust if before else "own"),
                metadata=document.metadata,
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
        vectors = to_matrix([vector.data for vector in fresh.values()])
        self._generation = None
        self._index.apply((list(fresh), vectors), gone, self._stamp(state))
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
        state = self._shelf.state()
        self._check_encoder(state)
        self._index.rebuild(self._shelf.vectors(), self._stamp(state))
        self._generation = state.generation

    def _stamp(self, state: ShelfState) -> Stamp:
        return Stamp(state.generation, state.chunks, self._encoder.name)

    def _search(
        self, query: str, k: int, state: ShelfState, where: Filter | None, join: bool
    ) -> builtins.list[Passage]:
        """One attempt. Raises _Changed where the vectors are no longer of the encoder that they were of."""
        self._follow(state)
        self._check_encoder(state)
        wide = max(CANDIDATES, 2 * k)
        meaning = self._beside.submit(self._by_meaning, query, wide, where)
        by_words = dict(self._shelf.word_hits(query, wide, where=where, also=lambda: meaning.result()[1]))
        vector, cosines = meaning.result()
        cosines |= self._cosines(by_words.keys() - cosines.keys(), vector)
        ranked = fuse(cosines, by_words, read=self._encoder.reads(query))
        if self._reranker is not None and ranked:
            ranked = self._reranked(query, ranked, self._reranker())
        groups = gathered(self._read(ranked, 2 * k), k, join=join)
        if self._neighbours and join:
            groups = [self._widened(group) for group in groups]
            cosines |= self._cosines({chunk.id for group in groups for chunk in group} - cosines.keys(), vector)
        if self._shelf.state().encoders != state.encoders:
            raise _Changed
        return [passage(group, cosines) for group in groups]

    def _by_meaning(self, query: str, k: int, where: Filter | None) -> tuple[Vectors, dict[str, float]]:
        """The vector of the query, and the k chunks nearest to it with their cosines."""
        vector = self._encoder.encode_queries([query])[0]
        return vector, {hit.id: hit.score for hit in self._near(vector, k, where)}

    def _reranked(self, query: str, ranked: Sequence[str], reranker: Reranker) -> builtins.list[str]:
        """The first of them in the reranker's order, then the rest as it was."""
        chunks = list(self._read(ranked[:RERANKED], RERANKED))
        scores = reranker.scores(query, [chunk.embedded_text for chunk in chunks])
        order = sorted(range(len(chunks)), key=lambda place: (-scores[place], place))
        return [*(chunks[place].id for place in order), *ranked[RERANKED:]]

    def _read(self, ranked: Sequence[str], size: int) -> Iterator[Chunk]:
        """Chunks in this order, `size` of them at once, as many as are asked for."""
        for start in range(0, len(ranked), size):
            part = ranked[start : start + size]
            chunks = self._shelf.chunks(part)
            # A chunk may have been removed since it was found.
            yield from (chunks[key] for key in part if key in chunks)

    def _cosines(self, ids: Iterable[str], vector: Vectors) -> dict[str, float]:
        return {
            key: float(np.frombuffer(found.data, dtype="<f4") @ vector)
            for key, found in self._shelf.vectors_of(sorted(ids)).items()
            if found.encoder == self._encoder.name
        }

    def _near(self, vector: Vectors, k: int, where: Filter | None) -> builtins.list[Hit]:
        """The k chunks whose vectors are nearest."""
        if where and self._shelf.count(where) <= FEW_CHUNKS:
            ids, matrix = _joined(self._shelf.vectors(where=where))
            return _nearest(ids, matrix, vector, k)
        wanted = k
        while True:
            hits = self._nearest(vector, wanted)
            every = len(hits) < wanted
            if where:
                held = self._shelf.holds([hit.id for hit in hits], where)
                hits = [hit for hit in hits if hit.id in held]
            if every or len(hits) >= k:
                return hits[:k]
            # Of many chunks most may be of other documents: ask for more until there are enough.
            wanted *= 4

    def _nearest(self, vector: Vectors, k: int) -> builtins.list[Hit]:
        with self._lock.held(seconds=0.05) as held:
            hits = self._index_hits(vector, k) if held else None
        return self._shelf_hits(vector, k) if hits is None else hits

    def _index_hits(self, vector: Vectors, k: int) -> builtins.list[Hit] | None:
        """None when the index cannot answer; it is opened and healed again by the next use."""
        try:
            self._open_index()
            return self._index.search(vector, k) if self._generation is not None else None
        except MemoryIndexError:
            self._generation = None
            return None

    def _shelf_hits(self, vector: Vectors, k: int) -> builtins.list[Hit]:
        state = self._shelf.state()
        with self._matrix_lock:
            if self._matrix is None or self._matrix[0] != state.generation:
                self._check_encoder(state)
                self._matrix = (state.generation, *_joined(self._shelf.vectors()))
            _, ids, matrix = self._matrix
        return _nearest(ids, matrix, vector, k)

    def _widened(self, group: Sequence[Chunk]) -> builtins.list[Chunk]:
        chunks = {one.ordinal: one for chunk in group for one in self._shelf.neighbours(chunk, self._neighbours)}
        return [chunks[place] for place in sorted(chunks) if chunks[place].heading == group[0].heading]


class _Changed(Exception):
    """The vectors are of another encoder than a moment ago."""


def _joined(parts: Iterable[tuple[Sequence[str], Vectors]]) -> tuple[tuple[str, ...], Vectors]:
    every = list(parts)
    if not every:
        return (), np.zeros((0, 0), dtype=np.float32)
    return tuple(key for ids, _ in every for key in ids), np.concatenate([matrix for _, matrix in every])


def _nearest(ids: Sequence[str], matrix: Vectors, vector: Vectors, k: int) -> builtins.list[Hit]:
    if not ids:
        return []
    scores = matrix @ vector
    best = np.argsort(-scores, kind="stable")[:k]
    return [Hit(ids[row], float(scores[row])) for row in best]
