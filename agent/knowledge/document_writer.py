"""Writes documents, their chunks and vectors, and the full-text index within a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent.knowledge.chunking import Chunk
from agent.knowledge.fulltext import WordIndex
from agent.knowledge.schema import StoredDocument, Vector, chunks_table, documents_table, vectors_table
from agent.storage.database import parts_of

FIELDS = ("name", "folder", "sha256", "splitting", "chunks", "trust", "added_at", "changed_at")
"""Columns of a document that are fields of `StoredDocument` as they are."""


class DocumentWriter:
    """Writes one tenant's documents. Does not touch the generation, nor the vector index."""

    def __init__(self, tenant: int, words: WordIndex) -> None:
        self._tenant = tenant
        self._words = words

    def put(
        self,
        connection: sa.Connection,
        document: StoredDocument,
        chunks: Sequence[Chunk],
        vectors: Mapping[str, Vector],
    ) -> set[str]:
        """Store a document in place of the one with its name. Chunks that stay keep their key.

        Args:
            vectors: By chunk id; one for each of `chunks`.

        Returns:
            Ids of the chunks that were removed.
        """
        key = self._put_document(connection, document)
        rows = self._rows(connection, key)
        new_ids = {chunk.id for chunk in chunks}
        removed = [row for row in rows if row.id not in new_ids]
        self._delete_chunks(connection, removed)
        stored = {row.id: row for row in rows if row.id in new_ids}
        self._insert_chunks(connection, key, document, [chunk for chunk in chunks if chunk.id not in stored], vectors)
        for chunk in chunks:
            if chunk.id in stored:
                self._update_chunk(connection, stored[chunk.id], chunk, vectors[chunk.id], document.changed_at)
        return {row.id for row in removed}

    def remove(self, connection: sa.Connection, names: Sequence[str]) -> set[str]:
        """Delete documents. Returns the ids of their chunks."""
        columns = documents_table.c
        removed: set[str] = set()
        for part in parts_of(names):
            keys = sa.select(columns.key).where(columns.tenant == self._tenant, columns.name.in_(part))
            for key in connection.execute(keys).scalars().all():
                rows = self._rows(connection, key)
                self._delete_chunks(connection, rows)
                removed |= {row.id for row in rows}
                connection.execute(sa.delete(documents_table).where(columns.key == key))
        return removed

    def _put_document(self, connection: sa.Connection, document: StoredDocument) -> int:
        columns = documents_table.c
        fields = {name: getattr(document, name) for name in FIELDS} | {"metadata": dict(document.metadata)}
        key = connection.scalar(
            sa.select(columns.key).where(columns.tenant == self._tenant, columns.name == document.name)
        )
        if key is not None:
            connection.execute(sa.update(documents_table).where(columns.key == key).values(**fields))
            return int(key)
        inserted = connection.execute(sa.insert(documents_table).values(tenant=self._tenant, **fields))
        assert inserted.inserted_primary_key is not None
        return int(inserted.inserted_primary_key[0])

    def _rows(self, connection: sa.Connection, document: int) -> Sequence[Any]:
        columns = chunks_table.c
        return connection.execute(
            sa.select(columns.key, columns.id, columns.ordinal, columns.heading, columns.text, vectors_table.c.encoder)
            .outerjoin(vectors_table, vectors_table.c.chunk == columns.key)
            .where(columns.document == document)
        ).all()

    def _insert_chunks(
        self,
        connection: sa.Connection,
        document: int,
        stored: StoredDocument,
        chunks: Sequence[Chunk],
        vectors: Mapping[str, Vector],
    ) -> None:
        if not chunks:
            return
        first = (connection.scalar(sa.select(sa.func.max(chunks_table.c.key))) or 0) + 1
        keyed = list(enumerate(chunks, first))
        connection.execute(
            sa.insert(chunks_table),
            [
                {
                    "key": key,
                    "tenant": self._tenant,
                    "id": chunk.id,
                    "document": document,
                    "ordinal": chunk.ordinal,
                    "heading": chunk.heading,
                    "text": chunk.text,
                }
                for key, chunk in keyed
            ],
        )
        rows = [self._vector_row(key, vectors[chunk.id], stored.changed_at) for key, chunk in keyed]
        connection.execute(sa.insert(vectors_table), rows)
        self._words.add(connection, [(key, chunk.heading, chunk.text) for key, chunk in keyed])

    def _update_chunk(self, connection: sa.Connection, row: Any, chunk: Chunk, vector: Vector, at: str) -> None:
        if row.ordinal != chunk.ordinal:
            connection.execute(
                sa.update(chunks_table).where(chunks_table.c.key == row.key).values(ordinal=chunk.ordinal)
            )
        if row.encoder != vector.encoder:
            fields = self._vector_row(row.key, vector, at)
            connection.execute(sa.update(vectors_table).where(vectors_table.c.chunk == row.key).values(**fields))

    def _vector_row(self, chunk: int, vector: Vector, at: str) -> dict[str, Any]:
        fields = {"encoder": vector.encoder, "data": vector.data, "embedded_at": at}
        return {"chunk": chunk, "tenant": self._tenant, **fields}

    def _delete_chunks(self, connection: sa.Connection, rows: Sequence[Any]) -> None:
        self._words.remove(connection, [(row.key, row.heading, row.text) for row in rows])
        for part in parts_of([row.key for row in rows]):
            connection.execute(sa.delete(vectors_table).where(vectors_table.c.chunk.in_(part)))
            connection.execute(sa.delete(chunks_table).where(chunks_table.c.key.in_(part)))
