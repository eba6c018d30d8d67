"""How the search grows: real chunks repeated with noise, vectors made up around real ones."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent.encoders.encoder import Encoder, Vectors
from agent.knowledge.chunking import Chunk, split
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.folders import Document
from agent.knowledge.knowledge import Knowledge
from agent.knowledge.schema import StoredDocument, Vector, to_bytes
from agent.storage.database import open_engine
from tests.bench.retrieval_sets import retrieval_sets

SETS = ("covidqa", "xquad_en", "tau2_banking_kb")
QUERIES = 200
PER_DOCUMENT = 1000
"""Chunks that one transaction keeps."""


def growth(size: int, data: Path, encoder: Encoder) -> dict[str, Any]:
    """Seconds, bytes and milliseconds of a memory of `size` chunks."""
    texts, queries = _material(data)
    vectors = encoder.encode([chunk.embedded_text for chunk in texts])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        engine = open_engine(home / "ratchet.db")
        shelf = DocumentStore(engine)
        started = time.perf_counter()
        for number, (chunks, rows) in enumerate(_made_up(texts, vectors, size)):
            name = f"d{number:06}"
            document = StoredDocument(name, "", "0", "2", len(chunks), "then", "now")
            shelf.put(
                [(document, chunks)],
                {chunk.id: Vector(row, encoder.name) for chunk, row in zip(chunks, rows, strict=True)},
            )
        stored = time.perf_counter() - started
        engine.dispose()
        memory = Knowledge.open(home / "ratchet.db", home / "index", encoder)
        started = time.perf_counter()
        memory.search(queries[0], 5)
        rebuilt = time.perf_counter() - started
        memory.close()
        found = _asked(home, queries)
        on_disk = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    return {
        "chunks": size,
        "store_seconds": stored,
        "rebuild_seconds": rebuilt,
        "disk_bytes_per_chunk": on_disk / size,
        **found,
    }


def _asked(home: Path, queries: list[str]) -> dict[str, Any]:
    """What a process finds that opens the memory anew."""
    command = [sys.executable, "-m", "tests.bench.retrieval_growth", str(home)]
    done = subprocess.run(command, input="\n".join(queries), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ask(home: Path, queries: list[str]) -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped]

    from tests.bench.retrieval import packaged_encoder

    encoder = packaged_encoder()
    encoder.encode(["warm"])
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    memory = Knowledge.open(home / "ratchet.db", home / "index", encoder)
    memory.search(queries[0], 5)
    opened = time.perf_counter() - started
    took = []
    for query in queries:
        started = time.perf_counter()
        memory.search(query, 5)
        took.append((time.perf_counter() - started) * 1000)
    rss = process.memory_info().rss - before
    memory.close()
    took.sort()
    return {
        "open_seconds": opened,
        "p50_ms": statistics.median(took),
        "p95_ms": took[int(0.95 * (len(took) - 1))],
        "memory_bytes": rss,
    }


def _material(data: Path) -> tuple[list[Chunk], list[str]]:
    chunks: list[Chunk] = []
    queries: list[str] = []
    for one in retrieval_sets(data):
        if one.name in SETS:
            for name, text in one.documents.items():
                chunks += split(Document(name, text, "0", markdown=name.endswith(".md")))
            queries += [question.text for question in one.questions if len(question.text) < 200]
    chosen = np.random.default_rng(3).permutation(len(queries))[:QUERIES]
    return chunks, [" ".join(queries[place].split()) for place in chosen]


def _made_up(chunks: list[Chunk], vectors: Vectors, size: int) -> Iterator[tuple[list[Chunk], list[bytes]]]:
    """Each chunk again and again, some of its words left out and a word of its own added; its vector near the real."""
    draws = np.random.default_rng(5)
    for first in range(0, size, PER_DOCUMENT):
        count = min(PER_DOCUMENT, size - first)
        places = draws.integers(0, len(chunks), count)
        noise = draws.standard_normal((count, vectors.shape[1])).astype(np.float32)
        rows = vectors[places] + 0.6 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        made = []
        for offset, place in enumerate(places):
            words = chunks[place].text.split()
            kept = [word for word, draw in zip(words, draws.random(len(words)), strict=True) if draw > 0.15]
            text = " ".join([*kept, f"n{first + offset}"])
            made.append(Chunk(f"{first + offset:016x}", "", chunks[place].heading, offset, text))
        yield made, [to_bytes(row) for row in rows]


if __name__ == "__main__":
    print(json.dumps(_ask(Path(sys.argv[1]), sys.stdin.read().split("\n"))))
