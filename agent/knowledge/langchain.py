"""The documents as langchain-core knows such things: embeddings, a vector store and a retriever.

For programs that are built on langchain; the agent itself uses `Memory`. Texts that are added here are documents of
their own, kept whole: split them first. Searching is the memory's, by words and by meaning.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore

from agent.encoders.encoder import Encoder, Vectors
from agent.knowledge.indexer import NewText
from agent.knowledge.knowledge import Memory
from tools.context import Passage


class RatchetEmbeddings(Embeddings):
    """An encoder for langchain: lists of floats, of length one each."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(value) for value in row] for row in self.encoder.encode(texts)]

    def embed_query(self, text: str) -> list[float]:
        return [float(value) for value in self.encoder.encode_queries([text])[0]]


class EncoderOfEmbeddings:
    """Embeddings of langchain as an encoder; `name` is kept with every vector, so a new model needs a new one."""

    def __init__(self, embeddings: Embeddings, *, name: str) -> None:
        self._embeddings = embeddings
        self._name = name
        self._dimensions = len(embeddings.embed_query("a"))

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def encode(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self._dimensions), dtype=np.float32)
        return _unit(self._embeddings.embed_documents(list(texts)))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self._dimensions), dtype=np.float32)
        return _unit([self._embeddings.embed_query(text) for text in texts])

    def reads(self, text: str) -> float:
        return 1.0


class RatchetVectorStore(VectorStore):
    """A memory as a vector store. Metadata may be anything that JSON holds; a filter asks for values of it."""

    def __init__(self, memory: Memory, embeddings: Embeddings) -> None:
        """`embeddings` are those that the memory's encoder stands for; see `open`."""
        self._memory = memory
        self._embeddings = embeddings

    @classmethod
    def open(
        cls, folder: Path, embeddings: Embeddings, *, name: str = "langchain", **options: Any
    ) -> RatchetVectorStore:
        """A store in a folder of its own. `options` are those of `Memory`, such as `tenant`."""
        encoder = EncoderOfEmbeddings(embeddings, name=name)
        return cls(Memory.open(folder / "ratchet.db", folder / "index", encoder, **options), embeddings)

    @property
    def embeddings(self) -> Embeddings:
        return self._embeddings

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        every = list(texts)
        notes = metadatas or [{} for _ in every]
        names = [name or str(uuid.uuid4()) for name in ids] if ids else [str(uuid.uuid4()) for _ in every]
        self._memory.add_texts([NewText(*one) for one in zip(names, every, notes, strict=True)])
        return names

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [
            Document(id=one.name, page_content=one.text, metadata=dict(one.metadata)) for one in self._memory.texts(ids)
        ]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Ids that are not there are passed over; without ids, everything goes."""
        self._memory.remove_all([one.name for one in self._memory.list(ids)])
        return True

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Documents, best first, each with its cosine; `filter` is a dictionary of metadata."""
        found = self._memory.search(query, k, where=kwargs.get("filter"), join=False)
        notes = {one.name: one.metadata for one in self._memory.list([passage.document for passage in found])}
        return [
            (Document(id=one.document, page_content=one.text, metadata=dict(notes[one.document])), one.score)
            for one in found
            if one.document in notes
        ]

    def _select_relevance_score_fn(self) -> Any:
        return lambda cosine: (cosine + 1.0) / 2.0

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        folder: Path | str | None = None,
        **kwargs: Any,
    ) -> RatchetVectorStore:
        """As langchain asks for it; `folder` is where it is kept, and is needed."""
        if folder is None:
            raise ValueError("a RatchetVectorStore lies in a folder; pass folder=")
        store = cls.open(Path(folder), embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def close(self) -> None:
        self._memory.close()


class RatchetRetriever(BaseRetriever):
    """Passages of the user's documents for a chain of langchain: their place in the metadata, to cite it."""

    memory: Any
    """A `Memory`."""
    k: int = 4
    where: dict[str, str] | None = None
    """Metadata that the passages' documents must have."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = self.memory.search(query, self.k if k is None else k, where=self.where, join=False)
        return [_as_document(passage) for passage in found]


def _as_document(passage: Passage) -> Document:
    place = {"document": passage.document, "heading": passage.heading, "score": passage.score}
    return Document(id=passage.id, page_content=passage.text, metadata=place)


def _unit(rows: Sequence[Sequence[float]]) -> Vectors:
    matrix = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.ascontiguousarray(matrix / np.maximum(lengths, 1e-12))
