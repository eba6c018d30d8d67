"""Those who search the same chunks with the same vectors: plain Chroma, bm25s, LangChain's ensemble, and Ratchet.

Each is handed the chunks of Ratchet's own splitting, and answers a query with names of documents, best first: those of
its first `CHUNKS` chunks, each once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.encoders.encoder import Encoder, Vectors
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.knowledge import Knowledge
from agent.storage.database import open_engine
from agent.text.tokens import UNSPACED, bigrams, normal

CHUNKS = 50

Search = Callable[[str], list[str]]
"""From a query to names of documents."""


@dataclass(frozen=True)
class Corpus:
    """What all of them search."""

    chunks: Sequence[Chunk]
    vectors: Vectors
    """[n, d], a row a chunk."""
    encoder: Encoder
    memory: Knowledge
    shelf: DocumentStore


@contextmanager
def corpus(documents: Mapping[str, str], encoder: Encoder) -> Iterator[Corpus]:
    """A memory of these documents, and what it made of them."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = home / "documents"
        folder.mkdir()
        for name, text in documents.items():
            (folder / name).write_text(text, encoding="utf-8")
        memory = Knowledge.open(home / "ratchet.db", home / "index", encoder)
        stack.callback(memory.close)
        memory.add_folder(folder)
        engine = open_engine(home / "ratchet.db")
        stack.callback(engine.dispose)
        shelf = DocumentStore(engine)
        parts = list(shelf.vectors())
        ids = [key for part, _ in parts for key in part]
        chunks = shelf.chunks(ids)
        vectors = np.concatenate([matrix for _, matrix in parts])
        yield Corpus([chunks[key] for key in ids], vectors, encoder, memory, shelf)


def ratchet(over: Corpus) -> Search:
    return lambda query: _names(passage.document for passage in over.memory.search(query, CHUNKS, join=False))


def chroma(over: Corpus) -> Search:
    """Nearest vectors alone."""
    import chromadb

    collection = chromadb.EphemeralClient().get_or_create_collection(
        f"c{id(over)}", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    for start in range(0, len(over.chunks), 1000):
        part = over.chunks[start : start + 1000]
        collection.add(ids=[chunk.id for chunk in part], embeddings=over.vectors[start : start + 1000])
    document = {chunk.id: chunk.document for chunk in over.chunks}

    def search(query: str) -> list[str]:
        vector = over.encoder.encode([query])
        found = collection.query(query_embeddings=vector, n_results=min(CHUNKS, len(document)), include=[])
        return _names(document[key] for key in found["ids"][0])

    return search


def bm25s(over: Corpus) -> Search:
    """Words alone, as bm25s cuts them; scripts without spaces are cut into pairs first, which it cannot do itself."""
    import bm25s as library

    index = library.BM25()
    tokens = library.tokenize(
        [_segment(chunk.embedded_text) for chunk in over.chunks], stopwords="en", show_progress=False
    )
    index.index(tokens, show_progress=False)

    def search(query: str) -> list[str]:
        asked = library.tokenize([_segment(query)], stopwords="en", show_progress=False)
        places, scores = index.retrieve(asked, k=min(CHUNKS, len(over.chunks)), show_progress=False)
        pairs = zip(places[0].tolist(), scores[0].tolist(), strict=True)
        return _names(over.chunks[place].document for place, score in pairs if score > 0)

    return search


def words(over: Corpus) -> Search:
    """Ratchet's own words alone."""
    document = {chunk.id: chunk.document for chunk in over.chunks}
    return lambda query: _names(document[key] for key, _ in over.shelf.search_words(query, CHUNKS))


def ensemble(over: Corpus) -> Search:
    """LangChain's EnsembleRetriever of the two above, each counting half."""
    from langchain_classic.retrievers.ensemble import EnsembleRetriever
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Retriever(BaseRetriever):
        search: Any

        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            return [Document(page_content=name) for name in self.search(query)]

    both = EnsembleRetriever(
        retrievers=[Retriever(search=bm25s(over)), Retriever(search=chroma(over))], weights=[0.5, 0.5]
    )
    return lambda query: [document.page_content for document in both.invoke(query)]


SIDES: dict[str, Callable[[Corpus], Search]] = {
    "ratchet": ratchet,
    "chroma": chroma,
    "bm25s": bm25s,
    "words": words,
    "ensemble": ensemble,
}


def _names(found: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _segment(text: str) -> str:
    """Put spaces into runs of characters without spaces: all pairs of neighbours, then the last character alone."""
    return UNSPACED.sub(lambda run: f" {' '.join(bigrams(run[0]))} {run[0][-1]} ", normal(text))
