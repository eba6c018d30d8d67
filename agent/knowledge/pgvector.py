"""The vector index in a PostgreSQL database with the extension pgvector, for more than one machine.

There is a table per project and tenant. Table and stamp change in one transaction, so a crash changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from agent.encoders.encoder import Vectors
from agent.errors import MemoryIndexError
from agent.knowledge.vector_index import Part, ScoredChunk, Stamp

_BATCH = 500
_STAMPS = "ratchet_index_stamps"


class PgVectorIndex:
    """A `VectorIndex` in a PostgreSQL table."""

    def __init__(self, address: str, name: str) -> None:
        """Connect on first use.

        Args:
            address: A URL such as `postgresql://user:password@host/database`; it may name a driver.
            name: Of the table; letters, digits and underscores.
        """
        scheme, mark, rest = address.partition("://")
        self._url = address if "+" in scheme else f"{scheme}+psycopg{mark}{rest}"
        self._name = name
        self._engine: sa.Engine | None = None

    def open(self) -> Stamp | None:
        with self._begin("opened") as connection:
            self._prepare(connection)
            row = connection.execute(
                sa.text(f"SELECT generation, chunks, encoder FROM {_STAMPS} WHERE name = :name"), {"name": self._name}
            ).one_or_none()
            if row is None or not self._exists(connection):
                return None
            counted = connection.scalar(sa.text(f"SELECT count(*) FROM {self._name}"))
            return Stamp(row.generation, row.chunks, row.encoder) if counted == row.chunks else None

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        with self._begin("rebuilt") as connection:
            self._prepare(connection)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {self._name}"))
            exists = False
            for ids, vectors in parts:
                if not exists:
                    self._create_table(connection, vectors.shape[1])
                    exists = True
                self._add(connection, (ids, vectors))
            if exists:
                self._create_index(connection)
            self._stamp(connection, stamp)

    def apply(self, part: Part, removed: Sequence[str], stamp: Stamp) -> None:
        ids, vectors = part
        with self._begin("changed") as connection:
            exists = self._exists(connection)
            if not exists and len(ids):
                self._create_table(connection, vectors.shape[1])
                self._create_index(connection)
            if exists and removed:
                connection.execute(sa.text(f"DELETE FROM {self._name} WHERE id = ANY(:ids)"), {"ids": list(removed)})
            self._add(connection, part)
            self._stamp(connection, stamp)

    def search(self, vector: Vectors, k: int) -> list[ScoredChunk]:
        with self._begin("searched") as connection:
            # The number of neighbours that the index examines, which limits the number of results.
            connection.execute(sa.text(f"SET LOCAL hnsw.ef_search = {max(100, min(1000, 2 * k))}"))
            rows = connection.execute(
                sa.text(
                    f"SELECT id, embedding <=> CAST(:vector AS vector) AS distance FROM {self._name} "
                    "ORDER BY distance LIMIT :k"
                ),
                {"vector": _to_text(vector), "k": k},
            )
            return [ScoredChunk(row.id, max(-1.0, min(1.0, 1.0 - float(row.distance)))) for row in rows]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def _begin(self, done: str) -> Iterator[sa.Connection]:
        try:
            if self._engine is None:
                self._engine = sa.create_engine(self._url)
            with self._engine.begin() as connection:
                yield connection
        except ModuleNotFoundError as fault:
            raise MemoryIndexError(f"{fault.name} is not installed; pip install ratchet-loop[postgres]") from None
        except SQLAlchemyError as fault:
            message = str(getattr(fault, "orig", None) or fault)
            raise MemoryIndexError(
                f"the documents' index cannot be {done} ({message}); check [memory] server, and that the database has "
                "the extension pgvector"
            ) from fault

    def _prepare(self, connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        connection.execute(
            sa.text(
                f"CREATE TABLE IF NOT EXISTS {_STAMPS} (name text PRIMARY KEY, generation bigint NOT NULL, "
                "chunks bigint NOT NULL, encoder text NOT NULL)"
            )
        )

    def _create_table(self, connection: sa.Connection, dimensions: int) -> None:
        connection.execute(
            sa.text(f"CREATE TABLE {self._name} (id text PRIMARY KEY, embedding vector({int(dimensions)}) NOT NULL)")
        )

    def _create_index(self, connection: sa.Connection) -> None:
        connection.execute(sa.text(f"CREATE INDEX ON {self._name} USING hnsw (embedding vector_cosine_ops)"))

    def _exists(self, connection: sa.Connection) -> bool:
        return connection.scalar(sa.text("SELECT to_regclass(:name)"), {"name": self._name}) is not None

    def _add(self, connection: sa.Connection, part: Part) -> None:
        ids, vectors = part
        statement = sa.text(
            f"INSERT INTO {self._name} (id, embedding) VALUES (:id, CAST(:vector AS vector)) "
            "ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding"
        )
        for start in range(0, len(ids), _BATCH):
            rows: list[dict[str, Any]] = [
                {"id": ids[place], "vector": _to_text(vectors[place])}
                for place in range(start, min(start + _BATCH, len(ids)))
            ]
            connection.execute(statement, rows)

    def _stamp(self, connection: sa.Connection, stamp: Stamp) -> None:
        connection.execute(
            sa.text(
                f"INSERT INTO {_STAMPS} (name, generation, chunks, encoder) "
                "VALUES (:name, :generation, :chunks, :encoder) ON CONFLICT (name) DO UPDATE SET "
                "generation = excluded.generation, chunks = excluded.chunks, encoder = excluded.encoder"
            ),
            {"name": self._name, "generation": stamp.generation, "chunks": stamp.chunks, "encoder": stamp.encoder},
        )


def _to_text(vector: Vectors) -> str:
    return "[" + ",".join(f"{value:.9g}" for value in vector.tolist()) + "]"
