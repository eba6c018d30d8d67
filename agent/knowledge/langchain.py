"""LangChain adapters: embeddings, a vector store and a retriever over the user's documents.

For programs built on LangChain; the agent itself uses `Knowledge`. Each text added to the vector store becomes a
document of one chunk: split long texts before. Searches go by words and by meaning, as in `Knowledge`.
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
from agent.knowledge.knowledge import Knowledge
from tools.context import Passage


class RatchetEmbeddings(Embeddings):
    """An encoder as LangChain embeddings: unit vectors as lists of floats."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(value) for value in row] for row in self.encoder.encode(texts)]

    def embed_query(self, text: str) -> list[float]:
        return [float(value) for value in self.encoder.encode_queries([text])[0]]


class EmbeddingsEncoder:
    """LangChain embeddings as an encoder."""

    def __init__(self, embeddings: Embeddings, *, name: str) -> None:
        """Embed a probe text to find the dimensions.

        Args:
            name: Stored with every vector; another model needs another name.
        """
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
        return _normalise(self._embeddings.embed_documents(list(texts)))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self._dimensions), dtype=np.float32)
        return _normalise([self._embeddings.embed_query(text) for text in texts])

    def coverage(self, text: str) -> float:
        return 1.0


class RatchetVectorStore(VectorStore):
    """A LangChain vector store over a `Knowledge`. Metadata must be JSON; a filter compares its values."""

    def __init__(self, memory: Knowledge, embeddings: Embeddings) -> None:
        """Wrap a `Knowledge`; its encoder must be made of `embeddings`, as `open` does it."""
        self._memory = memory
        self._embeddings = embeddings

    @classmethod
    def open(
        cls, folder: Path, embeddings: Embeddings, *, name: str = "langchain", **options: Any
    ) -> RatchetVectorStore:
        """Open or create a store in a folder of its own.

        Args:
            name: Of the embeddings; see `EmbeddingsEncoder`.
            options: Of `Knowledge`, such as `tenant`.
        """
        encoder = EmbeddingsEncoder(embeddings, name=name)
        return cls(Knowledge.open(folder / "ratchet.db", folder / "index", encoder, **options), embeddings)

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
        contents = list(texts)
        metadata = metadatas or [{} for _ in contents]
        names = [name or str(uuid.uuid4()) for name in ids] if ids else [str(uuid.uuid4()) for _ in contents]
        self._memory.add_texts([NewText(*fields) for fields in zip(names, contents, metadata, strict=True)])
        return names

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [
            Document(id=text.name, page_content=text.text, metadata=dict(text.metadata))
            for text in self._memory.texts(ids)
        ]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete texts; ids that are not stored are ignored. Without ids, delete everything."""
        self._memory.remove_all([document.name for document in self._memory.documents(ids)])
        return True

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Return documents and their cosines, best first. `filter` is a dictionary of metadata."""
        passages = self._memory.search(query, k, where=kwargs.get("filter"), join=False)
        stored = self._memory.documents([passage.document for passage in passages])
        metadata = {document.name: dict(document.metadata) for document in stored}
        return [
            (Document(id=name, page_content=passage.text, metadata=metadata[name]), passage.score)
            for passage in passages
            if (name := passage.document) in metadata
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
        """Create a store of these texts. LangChain's signature, but `folder` is required.

        Raises:
            ValueError: `folder` is missing.
        """
        if folder is None:
            raise ValueError("a RatchetVectorStore needs a folder; pass folder=")
        store = cls.open(Path(folder), embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def close(self) -> None:
        self._memory.close()


class RatchetRetriever(BaseRetriever):
    """A LangChain retriever over a `Knowledge`. The metadata of results has document and heading, for citations."""

    memory: Any
    """A `Knowledge`."""
    k: int = 4
    where: dict[str, str] | None = None
    """Metadata that the documents must have."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        passages = self.memory.search(query, self.k if k is None else k, where=self.where, join=False)
        return [_to_document(passage) for passage in passages]


def _to_document(passage: Passage) -> Document:
    place = {"document": passage.document, "heading": passage.heading, "score": passage.score}
    return Document(id=passage.id, page_content=passage.text, metadata=place)


def _normalise(rows: Sequence[Sequence[float]]) -> Vectors:
    matrix = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.ascontiguousarray(matrix / np.maximum(lengths, 1e-12))
