"""The truth about the documents: their text, their chunks and their vectors, in the SQLite database.

Every change is one transaction that also counts the generation up, so that an index can tell whether it
agrees. Vectors are little-endian float32. Holds no lock: who writes holds the index's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from agent.database import prepare_schema, reading, writing
from agent.errors import MemoryIndexError
from agent.memory.documents import Chunk
from agent.memory.encoder import Vectors

metadata = sa.MetaData()

documents_table = sa.Table(
    "documents",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("folder", sa.String, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("splitting", sa.String, nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("added_at", sa.String, nullable=False),
    sa.Column("changed_at", sa.String, nullable=False),
)
chunks_table = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("document", sa.String, sa.ForeignKey("documents.name"), nullable=False, index=True),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("heading", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("encoder", sa.String, nullable=False),
    sa.Column("embedded_at", sa.String, nullable=False),
)
state_table = sa.Table(
    "memory_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
)


@dataclass(frozen=True)
class StoredDocument:
    """What the shelf knows of a document."""

    name: str
    folder: str
    """The folder it was added from, absolute."""
    sha256: str
    splitting: str
    """The settings it was split with; other settings make it count as changed."""
    chunks: int
    added_at: str
    changed_at: str


@dataclass(frozen=True)
class ShelfState:
    """What an index must agree with."""

    generation: int
    chunks: int
    encoders: tuple[str, ...]
    """Names of the encoders the vectors came from: none, one, or more after a change of encoder."""


@dataclass(frozen=True)
class Vector:
    """The vector of a chunk and the encoder it came from."""

    data: bytes
    encoder: str


class Shelf:
    """Documents, chunks and vectors behind one SQLAlchemy engine, which the shelf does not own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        prepare_schema(engine, metadata, part="memory", version=1)

    def state(self) -> ShelfState:
        with reading(self._engine) as connection:
            return _state(connection)

    def documents(self) -> tuple[StoredDocument, ...]:
        """All documents by name."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(documents_table).order_by(documents_table.c.name))
            return tuple(StoredDocument(**row) for row in rows.mappings())

    def chunks(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks that are there, by id."""
        with reading(self._engine) as connection:
            rows = [
                row
                for part in _parts(ids)
                for row in connection.execute(sa.select(chunks_table).where(chunks_table.c.id.in_(part)))
            ]
        return {row.id: Chunk(row.id, row.document, row.heading, row.ordinal, row.text) for row in rows}

    def all_chunks(self) -> tuple[Chunk, ...]:
        columns = chunks_table.c
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(columns.id, columns.document, columns.heading, columns.ordinal, columns.text).order_by(
                    columns.document, columns.ordinal
                )
            ).all()
        return tuple(Chunk(row.id, row.document, row.heading, row.ordinal, row.text) for row in rows)

    def stored_vectors(self, document: str) -> dict[str, Vector]:
        """Vectors of a document's chunks, by chunk id."""
        columns = chunks_table.c
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(columns.id, columns.vector, columns.encoder).where(columns.document == document)
            )
            return {row.id: Vector(row.vector, row.encoder) for row in rows}

    def vectors(self) -> tuple[ShelfState, tuple[str, ...], Vectors]:
        """The state and, of the same instant, all ids and vectors [n, d]. All must be of one encoder."""
        columns = chunks_table.c
        with reading(self._engine) as connection:
            state = _state(connection)
            rows = connection.execute(sa.select(columns.id, columns.vector).order_by(columns.id)).all()
        if len({len(row.vector) for row in rows}) > 1:
            raise MemoryIndexError("the documents' vectors differ in length; run `ratchet docs rebuild`")
        matrix = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
        return state, tuple(row.id for row in rows), matrix.reshape(len(rows), -1 if rows else 0)

    def documents_not_by(self, encoder: str) -> set[str]:
        """Names of documents with a vector of another encoder."""
        columns = chunks_table.c
        with reading(self._engine) as connection:
            found = connection.execute(sa.select(columns.document).where(columns.encoder != encoder).distinct())
            return set(found.scalars())

    def put(
        self, entries: Sequence[tuple[StoredDocument, Sequence[Chunk]]], vectors: Mapping[str, Vector]
    ) -> tuple[ShelfState, tuple[str, ...]]:
        """Store documents in place of what has their names. Returns the new state and the ids that went."""
        before: set[str] = set()
        wanted: set[str] = set()
        with writing(self._engine) as connection:
            for document, chunks in entries:
                before |= _ids(connection, document.name)
                wanted |= {chunk.id for chunk in chunks}
                connection.execute(sa.delete(chunks_table).where(chunks_table.c.document == document.name))
                connection.execute(sa.delete(documents_table).where(documents_table.c.name == document.name))
                connection.execute(sa.insert(documents_table).values(**_fields(document)))
                if chunks:
                    rows = [_row(chunk, vectors[chunk.id], document.changed_at) for chunk in chunks]
                    connection.execute(sa.insert(chunks_table), rows)
            return _next(connection), tuple(sorted(before - wanted))

    def remove(self, names: Sequence[str]) -> tuple[ShelfState, tuple[str, ...]]:
        """Forget documents. Returns the new state and the chunk ids that went."""
        with writing(self._engine) as connection:
            gone = {key for name in names for key in _ids(connection, name)}
            for part in _parts(names):
                connection.execute(sa.delete(chunks_table).where(chunks_table.c.document.in_(part)))
                connection.execute(sa.delete(documents_table).where(documents_table.c.name.in_(part)))
            return _next(connection), tuple(sorted(gone))

    def replace_vectors(self, vectors: Mapping[str, Vector], at: str) -> ShelfState:
        """Give chunks new vectors, as after a change of encoder."""
        statement = (
            sa.update(chunks_table)
            .where(chunks_table.c.id == sa.bindparam("chunk"))
            .values(vector=sa.bindparam("data"), encoder=sa.bindparam("by"), embedded_at=sa.bindparam("at"))
        )
        rows = [{"chunk": key, "data": vector.data, "by": vector.encoder, "at": at} for key, vector in vectors.items()]
        with writing(self._engine) as connection:
            if rows:
                connection.execute(statement, rows)
            return _next(connection)

    def move(self, names: Sequence[str], folder: str) -> None:
        """Note that documents are now found in another folder."""
        with writing(self._engine) as connection:
            for part in _parts(names):
                connection.execute(
                    sa.update(documents_table).where(documents_table.c.name.in_(part)).values(folder=folder)
                )


def to_bytes(vector: Vectors) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def _state(connection: sa.Connection) -> ShelfState:
    # One statement, so that the three are of the same instant.
    generation = sa.select(sa.func.max(state_table.c.generation)).scalar_subquery()
    encoder, number = chunks_table.c.encoder, sa.func.count()
    rows = connection.execute(
        sa.select(generation, encoder, number).select_from(chunks_table).group_by(encoder).order_by(encoder)
    ).all()
    if not rows:
        return ShelfState(connection.execute(sa.select(generation)).scalar() or 0, 0, ())
    return ShelfState(rows[0][0] or 0, sum(row[2] for row in rows), tuple(row[1] for row in rows))


def _next(connection: sa.Connection) -> ShelfState:
    counted = connection.execute(sa.update(state_table).values(generation=state_table.c.generation + 1))
    if counted.rowcount == 0:
        connection.execute(sa.insert(state_table).values(id=1, generation=1))
    return _state(connection)


def _ids(connection: sa.Connection, document: str) -> set[str]:
    return set(connection.execute(sa.select(chunks_table.c.id).where(chunks_table.c.document == document)).scalars())


def _fields(document: StoredDocument) -> dict[str, Any]:
    return {column.name: getattr(document, column.name) for column in documents_table.columns}


def _row(chunk: Chunk, vector: Vector, at: str) -> dict[str, Any]:
    return {
        "id": chunk.id,
        "document": chunk.document,
        "ordinal": chunk.ordinal,
        "heading": chunk.heading,
        "text": chunk.text,
        "vector": vector.data,
        "encoder": vector.encoder,
        "embedded_at": at,
    }


def _parts(items: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    """SQLite binds a limited number of values."""
    return [items[start : start + size] for start in range(0, len(items), size)]
