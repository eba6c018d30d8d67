"""The truth about the documents: their text, their chunks, their vectors and the words of them, in the SQLite database.

A shelf shows one tenant's part of it, and every statement below asks for that tenant. Every change is one transaction
that also counts the tenant's generation up, so that an index of vectors can tell whether it agrees; the full-text
index is a table of its own for each tenant and changes in the same transaction. Vectors are little-endian float32.
Holds no lock: who writes holds the index's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa

from agent.encoders.encoder import Vectors
from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk
from agent.knowledge.fulltext import WordIndex
from agent.knowledge.schema import (
    ShelfState,
    chunks_table,
    documents_table,
    encoders_table,
    prepare_tables,
    tenant_key,
    tenants_table,
    vectors_table,
)
from agent.storage.database import erasing, parts_of, reading, writing

Trust = Literal["own", "outside"]

Filter = Mapping[str, Any]
"""Metadata that a document must have, value for value."""


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
    trust: str = "own"
    """Whose text it is: "own", or "outside" for what others wrote."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """From the document's front matter."""


@dataclass(frozen=True)
class Vector:
    """The vector of a chunk and the encoder it came from."""

    data: bytes
    encoder: str


class Shelf:
    """One tenant's documents, chunks and vectors behind a SQLAlchemy engine, which the shelf does not own."""

    def __init__(self, engine: sa.Engine, *, tenant: str = "") -> None:
        self._engine = engine
        prepare_tables(engine)
        with writing(engine) as connection:
            self.tenant = tenant_key(connection, tenant)
            """A number, unique in this database."""
            self._words = WordIndex(self.tenant)
            self._words.prepare(connection)

    def state(self) -> ShelfState:
        with reading(self._engine) as connection:
            return self._state(connection)

    def documents(self, names: Sequence[str] | None = None) -> tuple[StoredDocument, ...]:
        """All documents by name, or those of these names."""
        columns = documents_table.c
        statement = sa.select(documents_table).where(columns.tenant == self.tenant).order_by(columns.name)
        parts = [None] if names is None else parts_of(names)
        with reading(self._engine) as connection:
            return tuple(
                _stored(row)
                for part in parts
                for row in connection.execute(statement if part is None else statement.where(columns.name.in_(part)))
            )

    def texts(self, names: Sequence[str]) -> dict[str, str]:
        """The texts of documents, their chunks behind each other."""
        found: dict[str, list[str]] = {}
        with reading(self._engine) as connection:
            for part in parts_of(names):
                rows = connection.execute(
                    self._select_chunks().where(documents_table.c.name.in_(part)).order_by(chunks_table.c.ordinal)
                )
                for row in rows:
                    found.setdefault(row.name, []).append(row.text)
        return {name: "\n\n".join(texts) for name, texts in found.items()}

    def chunks(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks that are there, by id."""
        with reading(self._engine) as connection:
            return {
                row.id: _chunk(row)
                for part in parts_of(ids)
                for row in connection.execute(self._select_chunks().where(chunks_table.c.id.in_(part)))
            }

    def chunks_of(self, names: Sequence[str]) -> tuple[Chunk, ...]:
        """All chunks of these documents."""
        with reading(self._engine) as connection:
            return tuple(
                _chunk(row)
                for part in parts_of(names)
                for row in connection.execute(self._select_chunks().where(documents_table.c.name.in_(part)))
            )

    def neighbours(self, chunk: Chunk, reach: int) -> tuple[Chunk, ...]:
        """The chunk and those at most `reach` places from it in its document, in their order."""
        columns = chunks_table.c
        near = columns.ordinal.between(chunk.ordinal - reach, chunk.ordinal + reach)
        with reading(self._engine) as connection:
            rows = connection.execute(
                self._select_chunks().where(documents_table.c.name == chunk.document, near).order_by(columns.ordinal)
            ).all()
        return tuple(map(_chunk, rows))

    def chunks_not_by(self, encoder: str) -> tuple[Chunk, ...]:
        """Chunks with a vector of another encoder, by document."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                self._select_chunks()
                .where(chunks_table.c.key.in_(self._not_by(encoder)))
                .order_by(documents_table.c.name, chunks_table.c.ordinal)
            ).all()
        return tuple(map(_chunk, rows))

    def stored_vectors(self, document: str) -> dict[str, Vector]:
        """Vectors of a document's chunks, by chunk id."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                self._select_vectors()
                .join(documents_table, documents_table.c.key == chunks_table.c.document)
                .where(documents_table.c.name == document)
            )
            return {row.id: Vector(row.data, row.encoder) for row in rows}

    def vectors_of(self, ids: Sequence[str]) -> dict[str, Vector]:
        """Vectors of the chunks that are there, by chunk id."""
        with reading(self._engine) as connection:
            return {
                row.id: Vector(row.data, row.encoder)
                for part in parts_of(ids)
                for row in connection.execute(self._select_vectors().where(chunks_table.c.id.in_(part)))
            }

    def vectors(self, *, size: int = 20_000, where: Filter | None = None) -> Iterator[tuple[tuple[str, ...], Vectors]]:
        """All ids and vectors [n, d], at most `size` of them at once. All must be of one encoder and one instant:
        who changes them meanwhile counts the generation up."""
        columns = vectors_table.c
        last = 0
        statement = (
            sa.select(columns.chunk, chunks_table.c.id, columns.data)
            .join(chunks_table, chunks_table.c.key == columns.chunk)
            .where(chunks_table.c.tenant == self.tenant)
        )
        if where:
            statement = statement.where(chunks_table.c.document.in_(self._matching(where)))
        while True:
            with reading(self._engine) as connection:
                rows = connection.execute(
                    statement.where(columns.chunk > last).order_by(columns.chunk).limit(size)
                ).all()
            if not rows:
                return
            last = rows[-1].chunk
            yield tuple(row.id for row in rows), to_matrix([row.data for row in rows])

    def word_hits(
        self,
        query: str,
        k: int,
        *,
        where: Filter | None = None,
        also: Callable[[], Collection[str]] | None = None,
    ) -> list[tuple[str, float]]:
        """Ids of the k chunks that the query's words fit best, and how well (BM25, higher is better).

        With them those chunks of `also` that the words fit, unless far too many fit better. It is called when the words
        are looked up, so that it may wait for what is found meanwhile.
        """
        documents = self._matching(where) if where else None
        with reading(self._engine) as connection:
            return self._words.search(connection, query, k, self._state(connection), documents, also)

    def holds(self, ids: Sequence[str], where: Filter) -> set[str]:
        """Which of these chunks belong to a document with this metadata."""
        columns = chunks_table.c
        found: set[str] = set()
        with reading(self._engine) as connection:
            for part in parts_of(ids):
                rows = connection.execute(
                    sa.select(columns.id).where(
                        columns.tenant == self.tenant,
                        columns.id.in_(part),
                        columns.document.in_(self._matching(where)),
                    )
                )
                found.update(rows.scalars())
        return found

    def count(self, where: Filter) -> int:
        """How many chunks belong to a document with this metadata."""
        columns = documents_table.c
        with reading(self._engine) as connection:
            counted = connection.scalar(
                sa.select(sa.func.sum(columns.chunks)).where(columns.key.in_(self._matching(where)))
            )
        return int(counted or 0)

    def documents_not_by(self, encoder: str) -> set[str]:
        """Names of documents with a vector of another encoder."""
        with reading(self._engine) as connection:
            names = (
                sa.select(documents_table.c.name)
                .join(chunks_table, chunks_table.c.document == documents_table.c.key)
                .where(chunks_table.c.key.in_(self._not_by(encoder)))
                .distinct()
            )
            return set(connection.execute(names).scalars())

    def put(
        self, entries: Sequence[tuple[StoredDocument, Sequence[Chunk]]], vectors: Mapping[str, Vector]
    ) -> tuple[ShelfState, tuple[str, ...]]:
        """Store documents in place of what has their names. Returns the new state and the chunk ids that went."""
        gone: set[str] = set()
        with writing(self._engine) as connection:
            for document, chunks in entries:
                key = self._put_document(connection, document)
                gone |= self._put_chunks(connection, key, document, chunks, vectors)
            return self._next(connection), tuple(sorted(gone))

    def remove(self, names: Sequence[str], *, for_good: bool = False) -> tuple[ShelfState, tuple[str, ...]]:
        """Forget documents. Returns the new state and the chunk ids that went.

        With `for_good` none of their words is left in the full-text index either, which takes time.
        """
        columns = documents_table.c
        gone: set[str] = set()
        with (erasing if for_good else writing)(self._engine) as connection:
            for part in parts_of(names):
                those = sa.select(columns.key).where(columns.tenant == self.tenant, columns.name.in_(part))
                for key in connection.execute(those).scalars().all():
                    rows = self._rows(connection, key)
                    self._drop_chunks(connection, rows)
                    gone |= {row.id for row in rows}
                    connection.execute(sa.delete(documents_table).where(columns.key == key))
            if for_good:
                self._words.purge(connection)
            return self._next(connection), tuple(sorted(gone))

    def replace_vectors(self, vectors: Mapping[str, Vector], at: str) -> ShelfState:
        """Give chunks new vectors, as after a change of encoder."""
        chunk = (
            sa.select(chunks_table.c.key)
            .where(chunks_table.c.tenant == self.tenant, chunks_table.c.id == sa.bindparam("id_of"))
            .scalar_subquery()
        )
        statement = (
            sa.update(vectors_table)
            .where(vectors_table.c.chunk == chunk)
            .values(data=sa.bindparam("new"), encoder=sa.bindparam("by"), embedded_at=sa.bindparam("at"))
        )
        rows = [{"id_of": key, "new": vector.data, "by": vector.encoder, "at": at} for key, vector in vectors.items()]
        with writing(self._engine) as connection:
            if rows:
                connection.execute(statement, rows)
            return self._next(connection)

    def move(self, names: Sequence[str], folder: str) -> None:
        """Note that documents are now found in another folder."""
        columns = documents_table.c
        with writing(self._engine) as connection:
            for part in parts_of(names):
                connection.execute(
                    sa.update(documents_table)
                    .where(columns.tenant == self.tenant, columns.name.in_(part))
                    .values(folder=folder)
                )

    def index_words(self) -> None:
        """Make the full-text index anew."""
        with writing(self._engine) as connection:
            self._words.fill(connection)

    # -- within a transaction ---------------------------------------------------------------------------------

    def _state(self, connection: sa.Connection) -> ShelfState:
        # One statement, so that what it finds is of the same instant.
        rows = connection.execute(
            sa.select(tenants_table.c.generation, encoders_table.c.encoder, encoders_table.c.chunks)
            .select_from(
                tenants_table.outerjoin(
                    encoders_table,
                    sa.and_(encoders_table.c.tenant == tenants_table.c.key, encoders_table.c.chunks > 0),
                )
            )
            .where(tenants_table.c.key == self.tenant)
            .order_by(encoders_table.c.encoder)
        ).all()
        known = [row for row in rows if row.encoder is not None]
        return ShelfState(rows[0].generation, sum(row.chunks for row in known), tuple(row.encoder for row in known))

    def _next(self, connection: sa.Connection) -> ShelfState:
        connection.execute(
            sa.update(tenants_table)
            .where(tenants_table.c.key == self.tenant)
            .values(generation=tenants_table.c.generation + 1)
        )
        return self._state(connection)

    def _matching(self, where: Filter) -> sa.Select[tuple[int]]:
        """Keys of the documents with this metadata; `trust` and `document` are known of each."""
        columns = documents_table.c
        statement = sa.select(columns.key).where(columns.tenant == self.tenant)
        for name, value in where.items():
            known = {"trust": columns.trust, "document": columns.name}.get(name)
            held = sa.cast(columns.metadata[name].as_string(), sa.String) if known is None else known
            statement = statement.where(held == str(value))
        return statement

    def _not_by(self, encoder: str) -> sa.Select[tuple[int]]:
        """Keys of the chunks with a vector of another encoder."""
        columns = vectors_table.c
        return sa.select(columns.chunk).where(columns.tenant == self.tenant, columns.encoder != encoder)

    def _select_chunks(self) -> sa.Select[Any]:
        columns = chunks_table.c
        return (
            sa.select(columns.id, documents_table.c.name, columns.heading, columns.ordinal, columns.text)
            .join(documents_table, documents_table.c.key == columns.document)
            .where(columns.tenant == self.tenant)
        )

    def _select_vectors(self) -> sa.Select[Any]:
        return (
            sa.select(chunks_table.c.id, vectors_table.c.data, vectors_table.c.encoder)
            .join(chunks_table, chunks_table.c.key == vectors_table.c.chunk)
            .where(chunks_table.c.tenant == self.tenant)
        )

    def _rows(self, connection: sa.Connection, document: int) -> Sequence[Any]:
        columns = chunks_table.c
        return connection.execute(
            sa.select(columns.key, columns.id, columns.ordinal, columns.heading, columns.text, vectors_table.c.encoder)
            .outerjoin(vectors_table, vectors_table.c.chunk == columns.key)
            .where(columns.document == document)
        ).all()

    def _put_document(self, connection: sa.Connection, document: StoredDocument) -> int:
        columns = documents_table.c
        fields = {name: getattr(document, name) for name in _FIELDS} | {"metadata": dict(document.metadata)}
        key = connection.scalar(
            sa.select(columns.key).where(columns.tenant == self.tenant, columns.name == document.name)
        )
        if key is not None:
            connection.execute(sa.update(documents_table).where(columns.key == key).values(**fields))
            return int(key)
        made = connection.execute(sa.insert(documents_table).values(tenant=self.tenant, **fields))
        assert made.inserted_primary_key is not None
        return int(made.inserted_primary_key[0])

    def _put_chunks(
        self,
        connection: sa.Connection,
        document: int,
        stored: StoredDocument,
        chunks: Sequence[Chunk],
        vectors: Mapping[str, Vector],
    ) -> set[str]:
        """Store what is new, keep what is the same, drop what went; returns the ids of these."""
        rows = self._rows(connection, document)
        wanted = {chunk.id for chunk in chunks}
        before = {row.id: row for row in rows if row.id in wanted}
        lost = [row for row in rows if row.id not in wanted]
        self._drop_chunks(connection, lost)
        free = (connection.scalar(sa.select(sa.func.max(chunks_table.c.key))) or 0) + 1
        new = [chunk for chunk in chunks if chunk.id not in before]
        keys = {chunk.id: key for key, chunk in enumerate(new, free)}
        at = stored.changed_at
        if new:
            connection.execute(
                sa.insert(chunks_table),
                [
                    {
                        "key": keys[chunk.id],
                        "tenant": self.tenant,
                        "id": chunk.id,
                        "document": document,
                        "ordinal": chunk.ordinal,
                        "heading": chunk.heading,
                        "text": chunk.text,
                    }
                    for chunk in new
                ],
            )
            made = [self._vector(keys[chunk.id], vectors[chunk.id], at) for chunk in new]
            connection.execute(sa.insert(vectors_table), made)
            self._words.add(connection, [(keys[chunk.id], chunk.heading, chunk.text) for chunk in new])
        for chunk, row in ((chunk, before[chunk.id]) for chunk in chunks if chunk.id in before):
            if row.ordinal != chunk.ordinal:
                moved = sa.update(chunks_table).where(chunks_table.c.key == row.key)
                connection.execute(moved.values(ordinal=chunk.ordinal))
            if row.encoder != vectors[chunk.id].encoder:
                fields = self._vector(row.key, vectors[chunk.id], at)
                connection.execute(sa.update(vectors_table).where(vectors_table.c.chunk == row.key).values(**fields))
        return {row.id for row in lost}

    def _vector(self, chunk: int, vector: Vector, at: str) -> dict[str, Any]:
        fields = {"encoder": vector.encoder, "data": vector.data, "embedded_at": at}
        return {"chunk": chunk, "tenant": self.tenant, **fields}

    def _drop_chunks(self, connection: sa.Connection, rows: Sequence[Any]) -> None:
        self._words.take_out(connection, [(row.key, row.heading, row.text) for row in rows])
        for part in parts_of([row.key for row in rows]):
            connection.execute(sa.delete(vectors_table).where(vectors_table.c.chunk.in_(part)))
            connection.execute(sa.delete(chunks_table).where(chunks_table.c.key.in_(part)))


def to_bytes(vector: Vectors) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def to_matrix(rows: Sequence[bytes]) -> Vectors:
    """Vectors [n, d] from as many rows of bytes."""
    if len({len(row) for row in rows}) > 1:
        raise MemoryIndexError("the documents' vectors differ in length; run `ratchet docs rebuild`")
    matrix: Vectors = np.frombuffer(b"".join(rows), dtype="<f4")
    return matrix.reshape(len(rows), -1 if rows else 0)


_FIELDS = ("name", "folder", "sha256", "splitting", "chunks", "trust", "added_at", "changed_at")


def _stored(row: sa.Row[Any]) -> StoredDocument:
    return StoredDocument(**{name: getattr(row, name) for name in _FIELDS}, metadata=dict(row.metadata))


def _chunk(row: sa.Row[Any]) -> Chunk:
    return Chunk(row.id, row.name, row.heading, row.ordinal, row.text)
