"""The LangChain adapters pass the standard suites of langchain-tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from agent.encoders.encoder import HashEncoder
from agent.knowledge.indexer import NewText
from agent.knowledge.knowledge import Knowledge
from agent.knowledge.langchain import RatchetEmbeddings, RatchetRetriever, RatchetVectorStore


class _Hashed:
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return RatchetEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"encoder": HashEncoder()}


class TestEmbeddingsUnit(_Hashed, EmbeddingsUnitTests):
    """The suite skips `test_init_from_env`, since nothing is read from the environment."""


class TestEmbeddings(_Hashed, EmbeddingsIntegrationTests):
    pass


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = RatchetVectorStore.open(tmp_path, self.get_embeddings())
        yield store
        store.close()


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _memory(self, tmp_path: Path) -> Iterator[None]:
        type(self).memory = Knowledge.open(tmp_path / "ratchet.db", tmp_path / "index", HashEncoder())
        self.memory.add_texts([NewText(word, f"All about a {word}.") for word in ("tent", "stove", "boot", "map")])
        yield
        self.memory.close()

    memory: Knowledge

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RatchetRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory, "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "a stove"


def test_a_filter_selects_by_metadata(tmp_path: Path) -> None:
    store = RatchetVectorStore.from_texts(
        ["a red tent", "a green tent"],
        RatchetEmbeddings(HashEncoder()),
        [{"year": 2023, "sold": True}, {"year": 2024, "sold": False}],
        ids=["red", "green"],
        folder=tmp_path,
    )
    assert [one.id for one in store.similarity_search("tent", filter={"year": 2024})] == ["green"]
    (found,) = store.similarity_search("red tent", 1)
    assert (found.id, found.metadata) == ("red", {"year": 2023, "sold": True})
    store.close()


def test_a_retrieved_document_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "help").mkdir()
    (tmp_path / "help" / "tents.md").write_text("# Tents\n\nWash by hand.")
    memory = Knowledge.open(tmp_path / "ratchet.db", tmp_path / "index", HashEncoder())
    memory.add_folder(tmp_path / "help")
    (found,) = RatchetRetriever(memory=memory, k=1).invoke("wash")
    assert (found.metadata["document"], found.metadata["heading"]) == ("tents.md", "Tents")
    memory.close()
