"""TODO: tuner/encoder/ranking.py"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from agent.encoders.encoder import Vectors
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_store import Shelf, StoredDocument, Vector
from agent.knowledge.fusion import fuse
from agent.knowledge.knowledge import CANDIDATES
from agent.storage.database import open_engine

DEEP = 10
"""Places of a ranking that count."""


SENTENCES = 200
"""Pseudo-queries, at most."""


def ndcg(ranked: Sequence[str], relevant: Collection[str], k: int = DEEP) -> float:
    """Normalised discounted cumulative gain, 0 to 1, every relevant one counting the same."""
    wanted = set(relevant)
    gained = sum(1 / math.log2(place + 2) for place, id in enumerate(ranked[:k]) if id in wanted)
    best = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    return gained / best if best else 0.0


def nearest(ids: Sequence[str], matrix: Vectors, vector: Vectors, k: int) -> list[str]:
    """The k ids whose vectors are nearest, nearest first."""
    return [ids[place] for place in np.argsort(-(matrix @ vector), kind="stable")[:k]]


def whole_search(
    ids: Sequence[str], matrix: Vectors, vector: Vectors, words: Shelf, query: str, *, read: float
) -> list[str]:
    """The ids in the order in which `Memory.search` finds them, by their vectors and by their words."""
    cosines = dict(zip(ids, (matrix @ vector).tolist(), strict=True))
    near = nearest(ids, matrix, vector, CANDIDATES)
    by_words = dict(words.word_hits(query, CANDIDATES, also=lambda: near))
    found = {*near, *by_words}
    return fuse({id: cosines[id] for id in found}, by_words, read=read)


@contextmanager
def word_index(passages: Mapping[str, Chunk], matrix: Vectors, encoder: str) -> Iterator[Shelf]:
    """A shelf of these passages alone, to be searched by words. `matrix` are their vectors in the order of the ids."""
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
            shelf = Shelf(engine)
            shelf.put(entries, vectors)
            yield shelf
        finally:
            engine.dispose()


def pseudo_queries(passages: Mapping[str, Chunk], most: int = SENTENCES) -> dict[str, str]:
    """By passage id, a sentence of it, or the end of one that is a single long sentence.

    The same for the same passages, which are chosen by the hash of their id; two with the same sentence have none.
    """
    order = sorted(passages, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    found: dict[str, str] = {}
    for id in order:
        sentence = pseudo_query(passages[id].text)
        if sentence is not None and sentence not in found.values():
            found[id] = sentence
        if len(found) == most:
            break
    return found


_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")


_LEAST_WORDS, _MOST_WORDS = 5, 30


def sentences(text: str) -> list[str]:
    """The sentences of a text that are neither very short nor very long."""
    parts = [part.strip() for part in _SENTENCE.split(text)]
    return [part for part in parts if _LEAST_WORDS <= len(part.split()) <= _MOST_WORDS]


def pseudo_query(text: str) -> str | None:
    """The sentence that the gate asks for a passage with; None where it is too short for one."""
    fit = sentences(text)
    if len(fit) > 1:
        return fit[len(fit) // 2]
    words = text.split()
    return " ".join(words[len(words) // 2 :][:_MOST_WORDS]) if len(words) >= 2 * _LEAST_WORDS else None
