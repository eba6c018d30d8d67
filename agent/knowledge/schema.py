"""The tables behind the documents, and how older ones become these."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from agent.storage.database import prepare_schema, reading

metadata = sa.MetaData()

tenants_table = sa.Table(
    "memory_tenants",
    metadata,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("words", sa.Integer, nullable=False),
)
"""`words` is the version of the full-text index, 0 before it is made."""
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
"""Apart from the text, so that neither is read for the other's sake."""
encoders_table = sa.Table(
    "memory_encoders",
    metadata,
    sa.Column("tenant", sa.Integer, primary_key=True),
    sa.Column("encoder", sa.String, primary_key=True),
    sa.Column("chunks", sa.Integer, nullable=False),
)
"""How many vectors are of which encoder, kept by triggers: counting a million takes longer than a search."""

_ADD_ONE = """INSERT INTO memory_encoders (tenant, encoder, chunks) VALUES (new.tenant, new.encoder, 1)
ON CONFLICT (tenant, encoder) DO UPDATE SET chunks = chunks + 1;"""
_TAKE_ONE = "UPDATE memory_encoders SET chunks = chunks - 1 WHERE tenant = old.tenant AND encoder = old.encoder;"
for _name, _event, _change in (
    ("in", "INSERT", _ADD_ONE),
    ("out", "DELETE", _TAKE_ONE),
    ("anew", "UPDATE OF encoder", f"{_TAKE_ONE} {_ADD_ONE}"),
):
    _trigger = f"CREATE TRIGGER memory_vectors_{_name} AFTER {_event} ON memory_vectors BEGIN {_change} END"
    sa.event.listen(vectors_table, "after_create", sa.DDL(_trigger))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ShelfState:
    """What an index must agree with."""

    generation: int
    chunks: int
    encoders: tuple[str, ...]
    """Names of the encoders the vectors came from: none, one, or more after a change of encoder."""


def prepare_tables(engine: sa.Engine) -> None:
    """Make what is missing."""
    prepare_schema(engine, metadata, part="memory", version=2, upgrade=_upgrade)


def tenant_names(engine: sa.Engine) -> tuple[str, ...]:
    """Every tenant there is; none where no document was ever added. Changes nothing."""
    with reading(engine) as connection:
        tables = sa.inspect(connection)
        if not tables.has_table(tenants_table.name):
            return ("",) if tables.has_table("memory_state") else ()
        return tuple(connection.scalars(sa.select(tenants_table.c.name).order_by(tenants_table.c.key)))


def tenant_key(connection: sa.Connection, name: str) -> int:
    """The tenant's number, unique in this database; a new one has no documents."""
    key = connection.scalar(sa.select(tenants_table.c.key).where(tenants_table.c.name == name))
    if key is None:
        made = connection.execute(sa.insert(tenants_table).values(name=name, generation=0, words=0))
        assert made.inserted_primary_key is not None
        key = made.inserted_primary_key[0]
    return int(key)


def _upgrade(connection: sa.Connection, version: int) -> None:
    """From the tables before tenants and words. The old ones are emptied into the new ones and go."""
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
