"""The tables of the document store, the types of their rows, and the upgrade from the tables of older versions.

Vectors are stored as little-endian float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa

from agent.encoders.encoder import Vectors
from agent.errors import MemoryIndexError
from agent.storage.database import prepare_schema, reading

Trust = Literal["own", "outside"]

Filter = Mapping[str, Any]
"""Metadata that a document must have, value for value."""

metadata = sa.MetaData()

tenants_table = sa.Table(
    "memory_tenants",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("words", sa.Integer, nullable=False),
)
"""`words` is the version of the full-text index, 0 before it is built."""
documents_table = sa.Table(
    "memory_documents",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("tenant", sa.Integer, sa.ForeignKey("memory_tenants.key"), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("folder", sa.String, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("splitting", sa.String, nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("trust", sa.String, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("added_at", sa.String, nullable=False),
    sa.Column("changed_at", sa.String, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
)
chunks_table = sa.Table(
    "memory_chunks",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("tenant", sa.Integer, nullable=False),
    sa.Column("id", sa.String, nullable=False),
    sa.Column("document", sa.Integer, sa.ForeignKey("memory_documents.key"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("heading", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.UniqueConstraint("tenant", "id"),
    sa.Index("memory_chunks_of_document", "document", "ordinal"),
)
vectors_table = sa.Table(
    "memory_vectors",
    metadata,
    sa.Column("chunk", sa.Integer, sa.ForeignKey("memory_chunks.key"), primary_key=True),
    sa.Column("tenant", sa.Integer, nullable=False),
    sa.Column("encoder", sa.String, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("embedded_at", sa.String, nullable=False),
)
"""Separate from the text, so that reading one does not read the other."""
encoders_table = sa.Table(
    "memory_encoders",
    metadata,
    sa.Column("tenant", sa.Integer, primary_key=True),
    sa.Column("encoder", sa.String, primary_key=True),
    sa.Column("chunks", sa.Integer, nullable=False),
)
"""Number of vectors per encoder, kept by triggers: counting a million rows takes longer than a search."""

_INCREMENT = """INSERT INTO memory_encoders (tenant, encoder, chunks) VALUES (new.tenant, new.encoder, 1)
ON CONFLICT (tenant, encoder) DO UPDATE SET chunks = chunks + 1;"""
_DECREMENT = "UPDATE memory_encoders SET chunks = chunks - 1 WHERE tenant = old.tenant AND encoder = old.encoder;"
for _name, _event, _change in (
    ("in", "INSERT", _INCREMENT),
    ("out", "DELETE", _DECREMENT),
    ("anew", "UPDATE OF encoder", f"{_DECREMENT} {_INCREMENT}"),
):
    _trigger = f"CREATE TRIGGER memory_vectors_{_name} AFTER {_event} ON memory_vectors BEGIN {_change} END"
    sa.event.listen(vectors_table, "after_create", sa.DDL(_trigger))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class StoreState:
    """The state of a tenant's documents that an index must agree with."""

    generation: int
    chunks: int
    encoders: tuple[str, ...]
    """Names of the encoders that produced the vectors: none, one, or several after a change of encoder."""


@dataclass(frozen=True)
class StoredDocument:
    """A document's row: where it came from and how it was split."""

    name: str
    folder: str
    """The folder it was added from, absolute."""
    sha256: str
    splitting: str
    """The settings it was split with; with other settings it counts as changed."""
    chunks: int
    added_at: str
    changed_at: str
    trust: str = "own"
    """Who wrote the text: "own", or "outside" for third parties."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """From the document's front matter."""


@dataclass(frozen=True)
class Vector:
    """The vector of a chunk and the name of the encoder that produced it."""

    data: bytes
    encoder: str


def to_bytes(vector: Vectors) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def to_matrix(rows: Sequence[bytes]) -> Vectors:
    """Stack vectors into an array [n, d].

    Raises:
        MemoryIndexError: The vectors differ in length.
    """
    if len({len(row) for row in rows}) > 1:
        raise MemoryIndexError("the documents' vectors differ in length; run `ratchet docs rebuild`")
    matrix: Vectors = np.frombuffer(b"".join(rows), dtype="<f4")
    return matrix.reshape(len(rows), -1 if rows else 0)


def prepare_tables(engine: sa.Engine) -> None:
    """Create the tables that are missing and upgrade older ones."""
    prepare_schema(engine, metadata, part="memory", version=2, upgrade=_upgrade)


def tenant_names(engine: sa.Engine) -> tuple[str, ...]:
    """Return the names of all tenants, none where no document was ever added. Writes nothing."""
    with reading(engine) as connection:
        tables = sa.inspect(connection)
        if not tables.has_table(tenants_table.name):
            return ("",) if tables.has_table("memory_state") else ()
        return tuple(connection.scalars(sa.select(tenants_table.c.name).order_by(tenants_table.c.key)))


def tenant_key(connection: sa.Connection, name: str) -> int:
    """Return the tenant's number, unique in this database. A tenant that is missing is created without documents."""
    key = connection.scalar(sa.select(tenants_table.c.key).where(tenants_table.c.name == name))
    if key is None:
        inserted = connection.execute(sa.insert(tenants_table).values(name=name, generation=0, words=0))
        assert inserted.inserted_primary_key is not None
        key = inserted.inserted_primary_key[0]
    return int(key)


def _upgrade(connection: sa.Connection, version: int) -> None:
    """Copy the tables of version 1, which had no tenants and no full-text index, and drop them."""
    metadata.create_all(connection)
    tenant = tenant_key(connection, "")
    generation = connection.exec_driver_sql("SELECT max(generation) FROM memory_state").scalar() or 0
    connection.execute(sa.update(tenants_table).where(tenants_table.c.key == tenant).values(generation=generation))
    for statement in (
        f"""INSERT INTO memory_documents
        (tenant, name, folder, sha256, splitting, chunks, trust, metadata, added_at, changed_at)
        SELECT {tenant}, name, folder, sha256, splitting, chunks, 'own', '{{}}', added_at, changed_at FROM documents""",
        f"""INSERT INTO memory_chunks (tenant, id, document, ordinal, heading, text)
        SELECT {tenant}, old.id, new.key, old.ordinal, old.heading, old.text
        FROM chunks AS old JOIN memory_documents AS new ON new.name = old.document
        ORDER BY old.document, old.ordinal""",
        f"""INSERT INTO memory_vectors (chunk, tenant, encoder, data, embedded_at)
        SELECT new.key, {tenant}, old.encoder, old.vector, old.embedded_at
        FROM chunks AS old JOIN memory_chunks AS new ON new.id = old.id""",
        "DROP TABLE chunks",
        "DROP TABLE documents",
        "DROP TABLE memory_state",
    ):
        connection.exec_driver_sql(statement)
