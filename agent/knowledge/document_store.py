"""The document store: text, chunks, vectors and the full-text index of one tenant, in the SQLite database.

The store is the source of truth; a vector index is derived from it. Every change is one transaction that also
increments the tenant's generation, by which a vector index detects that it is out of date. The full-text index is a
table per tenant and changes in the same transaction. The store takes no lock: a writer must hold the `IndexLock`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent.encoders.encoder import Vectors
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_writer import FIELDS, DocumentWriter
from agent.knowledge.fulltext import WordIndex
from agent.knowledge.schema import (
    Filter,
    StoredDocument,
    StoreState,
    Vector,
    chunks_table,
    documents_table,
    encoders_table,
    prepare_tables,
    tenant_key,
    tenants_table,
    to_matrix,
    vectors_table,
)
from agent.storage.database import erasing, parts_of, reading, writing


class DocumentStore:
    """Reads and writes one tenant's documents, chunks and vectors. Does not own the SQLAlchemy engine."""

    def __init__(self, engine: sa.Engine, *, tenant: str = "") -> None:
        self._engine = engine
        prepare_tables(engine)
        with writing(engine) as connection:
            self.tenant = tenant_key(connection, tenant)
            """A number, unique in this database."""
            self._words = WordIndex(self.tenant)
            self._words.prepare(connection)
        self._writer = DocumentWriter(self.tenant, self._words)

    # -- documents and chunks ---------------------------------------------------------------------------------

    def state(self) -> StoreState:
        with reading(self._engine) as connection:
            return self._state(connection)

    def documents(self, names: Sequence[str] | None = None) -> tuple[StoredDocument, ...]:
        """Return all documents ordered by name, or those with the given names."""
        columns = documents_table.c
        statement = sa.select(documents_table).where(columns.tenant == self.tenant).order_by(columns.name)
        parts = [None] if names is None else parts_of(names)
        with reading(self._engine) as connection:
            return tuple(
                _to_document(row)
                for part in parts
                for row in connection.execute(statement if part is None else statement.where(columns.name.in_(part)))
            )

    def texts(self, names: Sequence[str]) -> dict[str, str]:
        """Return the texts of documents by name: their chunks in order, joined by blank lines."""
        texts: dict[str, list[str]] = {}
        for chunk in self._read_chunks(map(documents_table.c.name.in_, parts_of(names)), is_ordered=True):
            texts.setdefault(chunk.document, []).append(chunk.text)
        return {name: "\n\n".join(parts) for name, parts in texts.items()}

    def chunks(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Return chunks by id; ids that are not stored are left out."""
        return {chunk.id: chunk for chunk in self._read_chunks(map(chunks_table.c.id.in_, parts_of(ids)))}

    def chunks_of(self, names: Sequence[str]) -> tuple[Chunk, ...]:
        """Return all chunks of the given documents."""
        return self._read_chunks(map(documents_table.c.name.in_, parts_of(names)))

    def neighbours(self, chunk: Chunk, reach: int) -> tuple[Chunk, ...]:
        """Return the chunk and those at most `reach` places from it in its document, in document order."""
        is_near = chunks_table.c.ordinal.between(chunk.ordinal - reach, chunk.ordinal + reach)
        return self._read_chunks([sa.and_(documents_table.c.name == chunk.document, is_near)], is_ordered=True)

    def chunks_not_by(self, encoder: str) -> tuple[Chunk, ...]:
        """Return the chunks whose vector is from another encoder, in document order."""
        return self._read_chunks([chunks_table.c.key.in_(self._keys_not_by(encoder))], is_ordered=True)

    def documents_not_by(self, encoder: str) -> set[str]:
        """Return the names of documents with a vector from another encoder."""
        with reading(self._engine) as connection:
            names = (
                sa.select(documents_table.c.name)
                .join(chunks_table, chunks_table.c.document == documents_table.c.key)
                .where(chunks_table.c.key.in_(self._keys_not_by(encoder)))
                .distinct()
            )
            return set(connection.execute(names).scalars())

    # -- vectors ----------------------------------------------------------------------------------------------

    def stored_vectors(self, document: str) -> dict[str, Vector]:
        """Return the vectors of a document by chunk id."""
        document_key = sa.select(documents_table.c.key).where(
            documents_table.c.tenant == self.tenant, documents_table.c.name == document
        )
        return self._read_vectors([chunks_table.c.document.in_(document_key)])

    def vectors_of(self, ids: Sequence[str]) -> dict[str, Vector]:
        """Return vectors by chunk id; ids that are not stored are left out."""
        return self._read_vectors(map(chunks_table.c.id.in_, parts_of(ids)))

    def vectors(self, *, size: int = 20_000, where: Filter | None = None) -> Iterator[tuple[tuple[str, ...], Vectors]]:
        """Iterate over all chunk ids and vectors [n, d] in batches of at most `size`.

        Batches are read in separate transactions: compare the generation before and after to detect a change.

        Raises:
            MemoryIndexError: The vectors differ in length, as those of several encoders may.
        """
        columns = vectors_table.c
        last = 0
        statement = (
            sa.select(columns.chunk, chunks_table.c.id, columns.data)
            .join(chunks_table, chunks_table.c.key == columns.chunk)
            .where(chunks_table.c.tenant == self.tenant)
        )
        if where:
            statement = statement.where(chunks_table.c.document.in_(self._keys_matching(where)))
        while True:
            with reading(self._engine) as connection:
                rows = connection.execute(
                    statement.where(columns.chunk > last).order_by(columns.chunk).limit(size)
                ).all()
            if not rows:
                return
            last = rows[-1].chunk
            yield tuple(row.id for row in rows), to_matrix([row.data for row in rows])

    # -- searching --------------------------------------------------------------------------------------------

    def search_words(
        self,
        query: str,
        k: int,
        *,
        where: Filter | None = None,
        also: Callable[[], Collection[str]] | None = None,
    ) -> list[tuple[str, float]]:
        """Search the full-text index.

        Args:
            also: Returns ids of chunks to score as well, unless far too many others fit better. It is called once
                the words are looked up, so it may wait for a search that runs in parallel.

        Returns:
            Ids of the k best chunks, and those of `also`, with their BM25 scores (higher is better).
        """
        documents = self._keys_matching(where) if where else None
        with reading(self._engine) as connection:
            return self._words.search(connection, query, k, self._state(connection), documents, also)

    def matching_ids(self, ids: Sequence[str], where: Filter) -> set[str]:
        """Return those of the chunks whose document has this metadata."""
        columns = chunks_table.c
        matching: set[str] = set()
        with reading(self._engine) as connection:
            for part in parts_of(ids):
                rows = connection.execute(
                    sa.select(columns.id).where(
                        columns.tenant == self.tenant,
                        columns.id.in_(part),
                        columns.document.in_(self._keys_matching(where)),
                    )
                )
                matching.update(rows.scalars())
        return matching

    def count(self, where: Filter) -> int:
        """Count the chunks of documents with this metadata."""
        columns = documents_table.c
        with reading(self._engine) as connection:
            total = connection.scalar(
                sa.select(sa.func.sum(columns.chunks)).where(columns.key.in_(self._keys_matching(where)))
            )
        return int(total or 0)

    # -- changes ----------------------------------------------------------------------------------------------

    def put(
        self, entries: Sequence[tuple[StoredDocument, Sequence[Chunk]]], vectors: Mapping[str, Vector]
    ) -> tuple[StoreState, tuple[str, ...]]:
        """Store documents, replacing those of the same name.

        Args:
            vectors: By chunk id; one for every chunk of `entries`.

        Returns:
            The new state, and the ids of the chunks that were removed.
        """
        removed: set[str] = set()
        with writing(self._engine) as connection:
            for document, chunks in entries:
                removed |= self._writer.put(connection, document, chunks, vectors)
            return self._advance(connection), tuple(sorted(removed))

    def remove(self, names: Sequence[str], *, for_good: bool = False) -> tuple[StoreState, tuple[str, ...]]:
        """Remove documents.

        Args:
            for_good: Erase their words from the full-text index too, which takes time.

        Returns:
            The new state, and the ids of the chunks that were removed.
        """
        with (erasing if for_good else writing)(self._engine) as connection:
            removed = self._writer.remove(connection, names)
            if for_good:
                self._words.purge(connection)
            return self._advance(connection), tuple(sorted(removed))

    def replace_vectors(self, vectors: Mapping[str, Vector], at: str) -> StoreState:
        """Replace the vectors of chunks, by id, as after a change of encoder."""
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
            return self._advance(connection)

    def move(self, names: Sequence[str], folder: str) -> None:
        """Record another folder for documents."""
        columns = documents_table.c
        with writing(self._engine) as connection:
            for part in parts_of(names):
                connection.execute(
                    sa.update(documents_table)
                    .where(columns.tenant == self.tenant, columns.name.in_(part))
                    .values(folder=folder)
                )

    def rebuild_words(self) -> None:
        """Rebuild the full-text index."""
        with writing(self._engine) as connection:
            self._words.rebuild(connection)

    # -- within a transaction ---------------------------------------------------------------------------------

    def _state(self, connection: sa.Connection) -> StoreState:
        # A single statement, so that generation and counts belong together.
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
        counts = [row for row in rows if row.encoder is not None]
        return StoreState(rows[0].generation, sum(row.chunks for row in counts), tuple(row.encoder for row in counts))

    def _advance(self, connection: sa.Connection) -> StoreState:
        """Increment the generation."""
        connection.execute(
            sa.update(tenants_table)
            .where(tenants_table.c.key == self.tenant)
            .values(generation=tenants_table.c.generation + 1)
        )
        return self._state(connection)

    def _read_chunks(
        self, conditions: Iterable[sa.ColumnElement[bool]], *, is_ordered: bool = False
    ) -> tuple[Chunk, ...]:
        """Return the chunks that meet any of the conditions, which must not overlap."""
        columns = chunks_table.c
        statement = (
            sa.select(columns.id, documents_table.c.name, columns.heading, columns.ordinal, columns.text)
            .join(documents_table, documents_table.c.key == columns.document)
            .where(columns.tenant == self.tenant)
        )
        if is_ordered:
            statement = statement.order_by(documents_table.c.name, columns.ordinal)
        with reading(self._engine) as connection:
            return tuple(
                Chunk(row.id, row.name, row.heading, row.ordinal, row.text)
                for condition in conditions
                for row in connection.execute(statement.where(condition))
            )

    def _read_vectors(self, conditions: Iterable[sa.ColumnElement[bool]]) -> dict[str, Vector]:
        statement = (
            sa.select(chunks_table.c.id, vectors_table.c.data, vectors_table.c.encoder)
            .join(chunks_table, chunks_table.c.key == vectors_table.c.chunk)
            .where(chunks_table.c.tenant == self.tenant)
        )
        with reading(self._engine) as connection:
            return {
                row.id: Vector(row.data, row.encoder)
                for condition in conditions
                for row in connection.execute(statement.where(condition))
            }

    def _keys_matching(self, where: Filter) -> sa.Select[tuple[int]]:
        """Select the keys of documents with this metadata; `trust` and `document` exist for all of them."""
        columns = documents_table.c
        statement = sa.select(columns.key).where(columns.tenant == self.tenant)
        for name, expected in where.items():
            column = {"trust": columns.trust, "document": columns.name}.get(name)
            value = sa.cast(columns.metadata[name].as_string(), sa.String) if column is None else column
            statement = statement.where(value == str(expected))
        return statement

    def _keys_not_by(self, encoder: str) -> sa.Select[tuple[int]]:
        """Select the keys of chunks whose vector is from another encoder."""
        columns = vectors_table.c
        return sa.select(columns.chunk).where(columns.tenant == self.tenant, columns.encoder != encoder)


def _to_document(row: sa.Row[Any]) -> StoredDocument:
    return StoredDocument(**{name: getattr(row, name) for name in FIELDS}, metadata=dict(row.metadata))
