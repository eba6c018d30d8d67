from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.encoders.encoder import HashEncoder
from agent.knowledge.chunking import Chunk, chunk_id
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.fulltext import MOST_TERMS
from agent.knowledge.indexer import NewText
from agent.knowledge.knowledge import Knowledge
from agent.knowledge.schema import StoredDocument, Vector, tenant_names, to_bytes
from agent.storage.database import open_engine, reading, writing

FIRST_TABLES = """
CREATE TABLE schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL);
INSERT INTO schema_versions VALUES ('memory', 1);
CREATE TABLE documents (name VARCHAR NOT NULL PRIMARY KEY, folder VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
  splitting VARCHAR NOT NULL, chunks INTEGER NOT NULL, added_at VARCHAR NOT NULL, changed_at VARCHAR NOT NULL);
CREATE TABLE chunks (id VARCHAR NOT NULL PRIMARY KEY, document VARCHAR NOT NULL REFERENCES documents (name),
  ordinal INTEGER NOT NULL, heading VARCHAR NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL,
  encoder VARCHAR NOT NULL, embedded_at VARCHAR NOT NULL);
CREATE INDEX ix_chunks_document ON chunks (document);
CREATE TABLE memory_state (id INTEGER NOT NULL PRIMARY KEY, generation INTEGER NOT NULL);
INSERT INTO memory_state VALUES (1, 7);
INSERT INTO documents VALUES ('a.md', '/help', 'f00', '1/160', 2, 'then', 'now');
"""


def test_documents_of_the_first_version_are_kept(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    with writing(engine) as connection:
        for statement in filter(str.strip, FIRST_TABLES.split(";")):
            connection.exec_driver_sql(statement)
        for place, text in enumerate(("Wash by hand.", "Dry it well.")):
            vector = to_bytes(HashEncoder().encode([text])[0])
            row = (f"c{place}", "a.md", place, "Tents", text, vector, "hash-256", "now")
            connection.exec_driver_sql("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    document_store = DocumentStore(engine)
    assert document_store.documents() == (StoredDocument("a.md", "/help", "f00", "1/160", 2, "then", "now"),)
    assert document_store.state().generation == 7
    assert document_store.state().encoders == ("hash-256",)
    assert [key for key, _ in document_store.search_words("dry", 5)] == ["c1"]
    memory = Knowledge(engine, tmp_path / "index", HashEncoder())
    assert memory.search("wash by hand", 1)[0].text == "Wash by hand."
    with reading(engine) as connection:
        assert not sa.inspect(connection).has_table("chunks")
    memory.close()


@pytest.fixture
def document_store(tmp_path: Path) -> DocumentStore:
    return DocumentStore(open_engine(tmp_path / "ratchet.db"))


def put(document_store: DocumentStore, name: str, *texts: str, encoder: str = "e") -> tuple[str, ...]:
    chunks = [Chunk(chunk_id(name, "", text), name, "", place, text) for place, text in enumerate(texts)]
    document = StoredDocument(name, "", "0", "2", len(chunks), "then", "now")
    vectors = {chunk.id: Vector(to_bytes(np.ones(4, dtype=np.float32)), encoder) for chunk in chunks}
    return document_store.put([(document, chunks)], vectors)[1]


def test_unchanged_chunks_of_a_changed_document_stay_in_the_index(document_store: DocumentStore) -> None:
    put(document_store, "a", "one", "two", "three")
    gone = put(document_store, "a", "zero", "one", "three")
    assert gone == (chunk_id("a", "", "two"),)
    assert document_store.texts(["a"]) == {"a": "zero\n\none\n\nthree"}
    assert document_store.search_words("two", 5) == []
    assert [key for key, _ in document_store.search_words("zero", 5)] == [chunk_id("a", "", "zero")]
    assert document_store.state().chunks == 3


def stored_words(document_store: DocumentStore, engine: sa.Engine) -> bytes:
    with reading(engine) as connection:
        return b"".join(
            connection.exec_driver_sql(f"SELECT block FROM memory_words_{document_store.tenant}_data").scalars()
        )


def test_words_are_erased_from_the_index_only_if_a_document_is_removed_for_good(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    document_store = DocumentStore(engine)
    for name, word in (("a", "quokka"), ("b", "wombat"), ("c", "numbat")):
        put(document_store, name, f"the {word} sleeps")
    document_store.remove(["a"])
    assert b"quokka" in stored_words(document_store, engine)
    document_store.remove(["b"], for_good=True)
    kept = stored_words(document_store, engine)
    assert b"quokka" not in kept
    assert b"wombat" not in kept
    assert [key for key, _ in document_store.search_words("numbat sleeps", 5)] == [
        chunk_id("c", "", "the numbat sleeps")
    ]
    engine.dispose()


def test_listing_tenants_creates_none(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    assert tenant_names(engine) == ()
    with reading(engine) as connection:
        assert sa.inspect(connection).get_table_names() == []
    for tenant in ("", "shop"):
        DocumentStore(engine, tenant=tenant)
    assert tenant_names(engine) == ("", "shop")
    engine.dispose()


def test_vectors_are_counted_by_encoder(document_store: DocumentStore) -> None:
    put(document_store, "a", "one", "two")
    put(document_store, "b", "three", encoder="other")
    assert document_store.state().encoders == ("e", "other")
    assert document_store.documents_not_by("e") == {"b"}
    chunk = chunk_id("b", "", "three")
    document_store.replace_vectors({chunk: Vector(to_bytes(np.zeros(4, dtype=np.float32)), "e")}, "later")
    assert document_store.state().encoders == ("e",)
    document_store.remove(["a", "b"])
    assert (document_store.state().chunks, document_store.state().encoders) == (0, ())


def test_a_missing_full_text_index_is_rebuilt(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    put(DocumentStore(engine), "a", "one")
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE memory_words_1")
    assert len(DocumentStore(engine).search_words("one", 5)) == 1


WORDS = ("tent", "stove", "boots", "退货", "refund", "thirty")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(("", "north", "south")), st.sampled_from("abc"), st.sampled_from(WORDS)), max_size=12
    ),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
)
def test_no_search_crosses_tenants(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[str, str, str]], query: list[str]
) -> None:
    home = tmp_path_factory.mktemp("home")
    memories = {
        tenant: Knowledge.open(home / "ratchet.db", home / "index", HashEncoder(), tenant=tenant)
        for tenant in ("", "north", "south")
    }
    newest: dict[tuple[str, str], str] = {}
    for tenant, name, word in added:
        newest[tenant, name] = f"{word} of {tenant or 'nobody'}"
        memories[tenant].add_texts([NewText(name, newest[tenant, name], {"word": word})])
    try:
        for tenant, memory in memories.items():
            own = {text for (owner, _), text in newest.items() if owner == tenant}
            assert {passage.text for passage in memory.search(" ".join(query), 50)} == own
            one = {passage.text for passage in memory.search("of", 50, where={"word": query[0]})}
            assert one == {text for text in own if text.startswith(query[0])}
            assert {document.name for document in memory.documents()} == {n for owner, n in newest if owner == tenant}
    finally:
        for memory in memories.values():
            memory.close()


def test_the_rare_word_of_a_long_question_is_looked_up_wherever_it_stands(tmp_path: Path) -> None:
    common = [f"word{number}" for number in range(2 * MOST_TERMS)]
    document_store = store_with(tmp_path, [*(" ".join(common) for _ in range(5)), "the numbat sleeps"])
    assert document_store.search_words(" ".join([*common, "numbat"]), 1)[0][0] == "c5"
    assert document_store.search_words(" ".join(["numbat", *common]), 1)[0][0] == "c5"


def test_a_word_that_a_question_repeats_counts_more(tmp_path: Path) -> None:
    document_store = store_with(tmp_path, ["red tents", "gas stoves", "blue boats", "green kites", "old maps"])
    assert document_store.search_words("stoves tents stoves", 1)[0][0] == "c1"
    assert document_store.search_words("tents stoves tents", 1)[0][0] == "c0"


def test_inflected_forms_in_a_long_question_count_as_repetitions(tmp_path: Path) -> None:
    others = [f"word{number}" for number in range(2 * MOST_TERMS)]
    document_store = store_with(tmp_path, [" ".join(others), "a refund"])
    hits = document_store.search_words(" ".join([*others, "refunds, refunded, refunding"]), 5)
    assert "c1" in [key for key, _ in hits]


def test_results_of_the_vector_search_get_a_word_score_too(tmp_path: Path) -> None:
    document_store = store_with(
        tmp_path, ["tents", "tents and much more than tents", "stoves", "boats", "kites", "maps"]
    )
    hits = document_store.search_words("tents", 1, also=lambda: ["c1", "c2", "gone"])
    assert [key for key, _ in hits] == ["c0", "c1"]
    assert hits == document_store.search_words("tents", 2)


def store_with(folder: Path, texts: Sequence[str]) -> DocumentStore:
    """A document store of one document whose chunks c0, c1 … have these texts."""
    document_store = DocumentStore(open_engine(folder / "ratchet.db"))
    chunks = [Chunk(f"c{place}", "a", "", place, text) for place, text in enumerate(texts)]
    vectors = HashEncoder().encode(texts)
    document_store.put(
        [(StoredDocument("a", "", "0", "2", len(chunks), "then", "now"), chunks)],
        {chunk.id: Vector(to_bytes(row), "hash-256") for chunk, row in zip(chunks, vectors, strict=True)},
    )
    return document_store
