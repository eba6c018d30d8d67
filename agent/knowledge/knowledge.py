"""Searches documents: a question goes in, the passages that fit it best come out.

A query is matched by words (full-text index) and by meaning (vectors), and the two scores are fused. Both read the
document store; a search that finds the vector index busy compares the stored vectors instead, exact and a little
slower. Searching and indexing may run at once, in threads and in processes. A `Knowledge` serves one tenant: no search
returns another tenant's documents.

Every vector names its encoder, and queries are encoded by that encoder. So searches go on while all documents are
embedded with a new encoder, and afterwards in processes that only know the old one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from agent.encoders.encoder import Encoder, Vectors
from agent.encoders.reranker import RERANKED, Reranker
from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk, TokenCounter, estimate_tokens
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.fusion import fuse
from agent.knowledge.indexer import Indexer, NewText, Progress, SyncReport, make_vector_index
from agent.knowledge.passages import group_chunks, to_passage
from agent.knowledge.schema import Filter, StoredDocument, StoreState, Trust
from agent.knowledge.vector_index import IndexLock, ScoredChunk
from agent.storage.database import open_engine
from tools.context import Passage

CANDIDATES = 50
"""Chunks that each of the two rankings contributes, at least."""

FEW_CHUNKS = 20_000
"""With at most so many chunks matching the filter, their vectors are compared one by one."""


class Knowledge:
    """One tenant's documents: searches them, and changes them through its `Indexer`.

    A `tools.context.Retriever`; safe to use from several threads.
    """

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
        load_encoder: Callable[[str], Encoder | None] = lambda name: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take ownership of the engine, which `close` disposes of.

        Args:
            index: Folder of the embedded Chroma index and of the lock.
            server: Address of a Chroma server, or of a PostgreSQL database with pgvector, to use instead.
            neighbours: Chunks before and after each result to add to its passage, within its section.
            reranker: Called by the first search with results; its model then orders them.
            load_encoder: Loads an encoder by name; None for names that it does not know. If all vectors come from an
                encoder that it knows, that encoder replaces `encoder`.
        """
        self.store = DocumentStore(engine, tenant=tenant)
        self._engine = engine
        home = index / f"tenant-{self.store.tenant}" if tenant else index
        self._indexer = Indexer(
            self.store,
            make_vector_index(home / "chroma", server, engine, self.store.tenant),
            IndexLock(home / "lock"),
            encoder,
            chunk_tokens=chunk_tokens,
            count_tokens=count_tokens,
            load_encoder=load_encoder,
            now=now,
        )
        self._neighbours = neighbours
        self._reranker = reranker
        self._matrix: tuple[int, tuple[str, ...], Vectors] | None = None
        """Generation, chunk ids and all vectors, for searches without the index."""
        self._matrix_lock = threading.Lock()
        self._vector_searches = ThreadPoolExecutor(thread_name_prefix="ratchet-search")
        """Searches by meaning while the calling thread searches by words."""

    @classmethod
    def open(cls, database: Path, index: Path, encoder: Encoder, **options: Any) -> Knowledge:
        """Open the documents of a home. The first search or change opens the index, and repairs it."""
        return cls(open_engine(database), index, encoder, **options)

    def search(self, query: str, k: int, *, where: Filter | None = None, join: bool = True) -> list[Passage]:
        """Return the k passages that fit the query best, best first; none for a blank query.

        Near-duplicates of a better passage are left out.

        Args:
            where: Metadata that the documents must have: from their front matter, or `trust` and `document`.
            join: Merge chunks that follow each other into one passage.

        Raises:
            MemoryIndexError: The documents were embedded with an encoder that is not available.
        """
        while True:
            state = self.store.state()
            if k < 1 or not query.strip() or not state.chunks:
                return []
            try:
                return self._search(query, k, state, where, join)
            except _EncoderChangedError:
                continue
            except (MemoryIndexError, ValueError):
                # Vectors of two encoders cannot be compared: retry if the encoder changed meanwhile.
                if self.store.state().encoders == state.encoders:
                    raise

    def documents(self, names: Sequence[str] | None = None) -> tuple[StoredDocument, ...]:
        """Return all documents ordered by name, or those with the given names."""
        return self.store.documents(names)

    def texts(self, names: Sequence[str]) -> list[NewText]:
        """Return the texts of documents in the order of `names`; names that are not stored are left out."""
        documents = {document.name: document for document in self.store.documents(names)}
        texts = self.store.texts(list(documents))
        return [NewText(name, texts[name], documents[name].metadata) for name in names if name in texts]

    @property
    def version(self) -> str:
        """A hash of documents, splitting and encoder; does not depend on where they are stored."""
        parts = [self._indexer.encoder.name, self._indexer.splitting]
        parts += [f"{document.name} {document.sha256}" for document in self.store.documents()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def add_folder(self, folder: Path, *, trust: Trust | None = None, progress: Progress | None = None) -> SyncReport:
        """Synchronise the store with a folder. See `Indexer.add_folder`."""
        return self._indexer.add_folder(folder, trust=trust, progress=progress)

    def add_texts(self, texts: Sequence[NewText]) -> None:
        """Store texts as documents. See `Indexer.add_texts`."""
        self._indexer.add_texts(texts)

    def remove(self, name: str) -> None:
        """Remove one document. See `Indexer.remove`."""
        self._indexer.remove(name)

    def remove_all(self, names: Sequence[str], *, for_good: bool = False) -> None:
        """Remove documents. See `Indexer.remove_all`."""
        self._indexer.remove_all(names, for_good=for_good)

    def rebuild(self, encoder: Encoder | None = None) -> int:
        """Embed what another encoder embedded and rebuild the indexes. See `Indexer.rebuild`."""
        return self._indexer.rebuild(encoder)

    def close(self) -> None:
        self._indexer.close()
        self._vector_searches.shutdown()
        self._engine.dispose()

    def _search(self, query: str, k: int, state: StoreState, where: Filter | None, join: bool) -> list[Passage]:
        """Search once. Raises _EncoderChangedError where the vectors were replaced meanwhile."""
        self._indexer.follow_encoder(state)
        self._indexer.require_encoder(state)
        candidates = max(CANDIDATES, 2 * k)
        by_meaning = self._vector_searches.submit(self._search_vectors, query, candidates, where)
        word_scores = dict(self.store.search_words(query, candidates, where=where, also=lambda: by_meaning.result()[1]))
        vector, cosines = by_meaning.result()
        cosines |= self._cosines(word_scores.keys() - cosines.keys(), vector)
        ranked = fuse(cosines, word_scores, coverage=self._indexer.encoder.coverage(query))
        if self._reranker is not None and ranked:
            ranked = self._rerank(query, ranked, self._reranker())
        groups = group_chunks(self._read(ranked, 2 * k), k, join=join)
        if self._neighbours and join:
            groups = [self._add_neighbours(group) for group in groups]
            cosines |= self._cosines({chunk.id for group in groups for chunk in group} - cosines.keys(), vector)
        if self.store.state().encoders != state.encoders:
            raise _EncoderChangedError
        return [to_passage(group, cosines) for group in groups]

    def _search_vectors(self, query: str, k: int, where: Filter | None) -> tuple[Vectors, dict[str, float]]:
        """Return the query's vector, and the cosines of the k nearest chunks."""
        vector = self._indexer.encoder.encode_queries([query])[0]
        return vector, {result.id: result.score for result in self._nearest(vector, k, where)}

    def _nearest(self, vector: Vectors, k: int, where: Filter | None) -> list[ScoredChunk]:
        if where and self.store.count(where) <= FEW_CHUNKS:
            ids, matrix = _concatenate(self.store.vectors(where=where))
            return _most_similar(ids, matrix, vector, k)
        wanted = k
        while True:
            results = self._indexer.nearest(vector, wanted)
            if results is None:
                results = self._nearest_stored(vector, wanted)
            is_all = len(results) < wanted
            if where:
                matching = self.store.matching_ids([result.id for result in results], where)
                results = [result for result in results if result.id in matching]
            if is_all or len(results) >= k:
                return results[:k]
            # Most results may be of documents that the filter excludes: ask for more until enough remain.
            wanted *= 4

    def _nearest_stored(self, vector: Vectors, k: int) -> list[ScoredChunk]:
        """Compare all stored vectors, which are kept in memory until the store changes."""
        state = self.store.state()
        with self._matrix_lock:
            if self._matrix is None or self._matrix[0] != state.generation:
                self._indexer.require_encoder(state)
                self._matrix = (state.generation, *_concatenate(self.store.vectors()))
            _, ids, matrix = self._matrix
        return _most_similar(ids, matrix, vector, k)

    def _cosines(self, ids: Iterable[str], vector: Vectors) -> dict[str, float]:
        return {
            key: float(np.frombuffer(stored.data, dtype="<f4") @ vector)
            for key, stored in self.store.vectors_of(sorted(ids)).items()
            if stored.encoder == self._indexer.encoder.name
        }

    def _rerank(self, query: str, ranked: Sequence[str], reranker: Reranker) -> list[str]:
        """Order the first `RERANKED` ids by the reranker's scores; the rest keep their order."""
        chunks = list(self._read(ranked[:RERANKED], RERANKED))
        scores = reranker.scores(query, [chunk.embedded_text for chunk in chunks])
        order = sorted(range(len(chunks)), key=lambda place: (-scores[place], place))
        return [*(chunks[place].id for place in order), *ranked[RERANKED:]]

    def _read(self, ranked: Sequence[str], size: int) -> Iterator[Chunk]:
        """Read chunks in this order, lazily, `size` at a time."""
        for start in range(0, len(ranked), size):
            part = ranked[start : start + size]
            chunks = self.store.chunks(part)
            # A chunk may have been removed since the search.
            yield from (chunks[key] for key in part if key in chunks)

    def _add_neighbours(self, group: Sequence[Chunk]) -> list[Chunk]:
        chunks = {near.ordinal: near for chunk in group for near in self.store.neighbours(chunk, self._neighbours)}
        return [chunks[place] for place in sorted(chunks) if chunks[place].heading == group[0].heading]


class _EncoderChangedError(Exception):
    """The vectors were replaced by those of another encoder during the search."""


def _concatenate(parts: Iterable[tuple[Sequence[str], Vectors]]) -> tuple[tuple[str, ...], Vectors]:
    batches = list(parts)
    if not batches:
        return (), np.zeros((0, 0), dtype=np.float32)
    return tuple(key for ids, _ in batches for key in ids), np.concatenate([matrix for _, matrix in batches])


def _most_similar(ids: Sequence[str], matrix: Vectors, vector: Vectors, k: int) -> list[ScoredChunk]:
    if not ids:
        return []
    scores = matrix @ vector
    best = np.argsort(-scores, kind="stable")[:k]
    return [ScoredChunk(ids[row], float(scores[row])) for row in best]
