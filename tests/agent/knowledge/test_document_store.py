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
from agent.knowledge.document_store import Shelf, StoredDocument, Vector, to_bytes
from agent.knowledge.fulltext import MOST_TERMS
from agent.knowledge.indexer import NewText
from agent.knowledge.knowledge import Memory
from agent.knowledge.schema import tenant_names
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
    shelf = Shelf(engine)
    assert shelf.documents() == (StoredDocument("a.md", "/help", "f00", "1/160", 2, "then", "now"),)
    assert shelf.state().generation == 7
    assert shelf.state().encoders == ("hash-256",)
    assert [key for key, _ in shelf.word_hits("dry", 5)] == ["c1"]
    memory = Memory(engine, tmp_path / "index", HashEncoder())
    assert memory.search("wash by hand", 1)[0].text == "Wash by hand."
    with reading(engine) as connection:
        assert not sa.inspect(connection).has_table("chunks")
    memory.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(open_engine(tmp_path / "ratchet.db"))


def put(shelf: Shelf, name: str, *texts: str, encoder: str = "e") -> tuple[str, ...]:
    chunks = [Chunk(chunk_id(name, "", text), name, "", place, text) for place, text in enumerate(texts)]
    document = StoredDocument(name, "", "0", "2", len(chunks), "then", "now")
    vectors = {chunk.id: Vector(to_bytes(np.ones(4, dtype=np.float32)), encoder) for chunk in chunks}
    return shelf.put([(document, chunks)], vectors)[1]


def test_what_stays_of_a_document_keeps_its_place(shelf: Shelf) -> None:
    put(shelf, "a", "one", "two", "three")
    gone = put(shelf, "a", "zero", "one", "three")
    assert gone == (chunk_id("a", "", "two"),)
    assert shelf.texts(["a"]) == {"a": "zero\n\none\n\nthree"}
    assert shelf.word_hits("two", 5) == []
    assert [key for key, _ in shelf.word_hits("zero", 5)] == [chunk_id("a", "", "zero")]
    assert shelf.state().chunks == 3


def words_kept(shelf: Shelf, engine: sa.Engine) -> bytes:
    with reading(engine) as connection:
        return b"".join(connection.exec_driver_sql(f"SELECT block FROM memory_words_{shelf.tenant}_data").scalars())


def test_words_are_purged_only_where_a_document_is_removed_for_good(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    shelf = Shelf(engine)
    for name, word in (("a", "quokka"), ("b", "wombat"), ("c", "numbat")):
        put(shelf, name, f"the {word} sleeps")
    shelf.remove(["a"])
    assert b"quokka" in words_kept(shelf, engine)
    shelf.remove(["b"], for_good=True)
    kept = words_kept(shelf, engine)
    assert b"quokka" not in kept
    assert b"wombat" not in kept
    assert [key for key, _ in shelf.word_hits("numbat sleeps", 5)] == [chunk_id("c", "", "the numbat sleeps")]
    engine.dispose()


def test_tenants_are_named_without_making_any(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    assert tenant_names(engine) == ()
    with reading(engine) as connection:
        assert sa.inspect(connection).get_table_names() == []
    for tenant in ("", "shop"):
        Shelf(engine, tenant=tenant)
    assert tenant_names(engine) == ("", "shop")
    engine.dispose()


def test_vectors_are_counted_by_encoder(shelf: Shelf) -> None:
    put(shelf, "a", "one", "two")
    put(shelf, "b", "three", encoder="other")
    assert shelf.state().encoders == ("e", "other")
    assert shelf.documents_not_by("e") == {"b"}
    chunk = chunk_id("b", "", "three")
    shelf.replace_vectors({chunk: Vector(to_bytes(np.zeros(4, dtype=np.float32)), "e")}, "later")
    assert shelf.state().encoders == ("e",)
    shelf.remove(["a", "b"])
    assert (shelf.state().chunks, shelf.state().encoders) == (0, ())


def test_a_lost_index_of_words_is_made_again(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    put(Shelf(engine), "a", "one")
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE memory_words_1")
    assert len(Shelf(engine).word_hits("one", 5)) == 1


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
        tenant: Memory.open(home / "ratchet.db", home / "index", HashEncoder(), tenant=tenant)
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
            assert {document.name for document in memory.list()} == {n for owner, n in newest if owner == tenant}
    finally:
        for memory in memories.values():
            memory.close()


def test_the_telling_word_of_a_long_question_is_looked_up_wherever_it_stands(tmp_path: Path) -> None:
    common = [f"word{number}" for number in range(2 * MOST_TERMS)]
    shelf = shelf_of(tmp_path, [*(" ".join(common) for _ in range(5)), "the numbat sleeps"])
    assert shelf.word_hits(" ".join([*common, "numbat"]), 1)[0][0] == "c5"
    assert shelf.word_hits(" ".join(["numbat", *common]), 1)[0][0] == "c5"


def test_a_word_that_a_question_repeats_counts_more(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, ["red tents", "gas stoves", "blue boats", "green kites", "old maps"])
    assert shelf.word_hits("stoves tents stoves", 1)[0][0] == "c1"
    assert shelf.word_hits("tents stoves tents", 1)[0][0] == "c0"


def test_a_long_question_repeats_a_word_in_other_forms_of_it(tmp_path: Path) -> None:
    others = [f"word{number}" for number in range(2 * MOST_TERMS)]
    shelf = shelf_of(tmp_path, [" ".join(others), "a refund"])
    hits = shelf.word_hits(" ".join([*others, "refunds, refunded, refunding"]), 5)
    assert "c1" in [key for key, _ in hits]


def test_the_words_of_what_was_found_otherwise_are_known_too(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, ["tents", "tents and much more than tents", "stoves", "boats", "kites", "maps"])
    hits = shelf.word_hits("tents", 1, also=lambda: ["c1", "c2", "gone"])
    assert [key for key, _ in hits] == ["c0", "c1"]
    assert hits == shelf.word_hits("tents", 2)


def shelf_of(folder: Path, texts: Sequence[str]) -> Shelf:
    """A shelf of one document whose chunks c0, c1 … have these texts."""
    shelf = Shelf(open_engine(folder / "ratchet.db"))
    chunks = [Chunk(f"c{place}", "a", "", place, text) for place, text in enumerate(texts)]
    vectors = HashEncoder().encode(texts)
    shelf.put(
        [(StoredDocument("a", "", "0", "2", len(chunks), "then", "now"), chunks)],
        {chunk.id: Vector(to_bytes(row), "hash-256") for chunk, row in zip(chunks, vectors, strict=True)},
    )
    return shelf
