"""Rankings of passages for the encoder's gate: nDCG, search by vectors alone and whole, and pseudo-queries.

A pseudo-query is a sentence of a passage. It stands for the queries that nobody gave feedback on.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from agent.encoders.encoder import Vectors
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.fusion import fuse
from agent.knowledge.knowledge import CANDIDATES
from agent.knowledge.schema import StoredDocument, Vector
from agent.storage.database import open_engine
from agent.text.sentences import split_sentences_by_line

RANKING_DEPTH = 10
"""Ranks that count, the k of nDCG@k."""
MAX_PSEUDO_QUERIES = 200

_MIN_WORDS, _MAX_WORDS = 5, 30
"""Of a sentence that may be a query."""


def ndcg(ranked: Sequence[str], relevant: Collection[str], k: int = RANKING_DEPTH) -> float:
    """Return the normalised discounted cumulative gain, 0 to 1, with every relevant id of equal gain."""
    wanted = set(relevant)
    gain = sum(1 / math.log2(rank + 2) for rank, id in enumerate(ranked[:k]) if id in wanted)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
    return gain / ideal if ideal else 0.0


def nearest(ids: Sequence[str], matrix: Vectors, vector: Vectors, k: int) -> list[str]:
    """Return the k ids whose vectors are nearest to `vector`, nearest first; `matrix` has a row for each id."""
    return [ids[place] for place in np.argsort(-(matrix @ vector), kind="stable")[:k]]


def whole_search(
    ids: Sequence[str], matrix: Vectors, vector: Vectors, words: DocumentStore, query: str, *, coverage: float
) -> list[str]:
    """Return the ids as `Knowledge.search` ranks them, by their vectors and by their words."""
    cosines = dict(zip(ids, (matrix @ vector).tolist(), strict=True))
    near = nearest(ids, matrix, vector, CANDIDATES)
    by_words = dict(words.search_words(query, CANDIDATES, also=lambda: near))
    candidates = {*near, *by_words}
    return fuse({id: cosines[id] for id in candidates}, by_words, coverage=coverage)


@contextmanager
def word_index(passages: Mapping[str, Chunk], matrix: Vectors, encoder: str) -> Iterator[DocumentStore]:
    """Open a temporary document store of these passages, for the full-text part of a search.

    `matrix` has the passages' vectors in the order of their sorted ids.
    """
    documents: dict[str, list[Chunk]] = {}
    for id in sorted(passages):
        documents.setdefault(passages[id].document, []).append(passages[id])
    entries = [(StoredDocument(name, "", "", "", len(chunks), "", ""), chunks) for name, chunks in documents.items()]
    vectors = {
        id: Vector(row.astype("<f4").tobytes(), encoder) for id, row in zip(sorted(passages), matrix, strict=True)
    }
    with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
        engine = open_engine(Path(scratch) / "words.db")
        try:
            store = DocumentStore(engine)
            store.put(entries, vectors)
            yield store
        finally:
            engine.dispose()


def pseudo_queries(passages: Mapping[str, Chunk], limit: int = MAX_PSEUDO_QUERIES) -> dict[str, str]:
    """Return a pseudo-query by passage id, at most `limit`.

    The hash of the ids decides the order, so the same passages give the same queries. A sentence that several passages
    share is the query of one of them.
    """
    order = sorted(passages, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    queries: dict[str, str] = {}
    for id in order:
        query = pseudo_query(passages[id].text)
        if query is not None and query not in queries.values():
            queries[id] = query
        if len(queries) == limit:
            break
    return queries


def query_sentences(text: str) -> list[str]:
    """Return the sentences of a text that are neither very short nor very long."""
    return [sentence for sentence in split_sentences_by_line(text) if _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS]


def pseudo_query(text: str) -> str | None:
    """Return the pseudo-query of a passage: its middle sentence, or its second half where it has a single one.

    Returns None for a text that is too short.
    """
    candidates = query_sentences(text)
    if len(candidates) > 1:
        return candidates[len(candidates) // 2]
    words = text.split()
    return " ".join(words[len(words) // 2 :][:_MAX_WORDS]) if len(words) >= 2 * _MIN_WORDS else None
