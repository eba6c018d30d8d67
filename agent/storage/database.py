"""The SQLite file of the runs and the documents: transactions, schema versions, and removal of deleted data.

A committed transaction is on the disk. Threads and processes of one machine may share the file; a folder shared by two
machines is not supported, because SQLite's locks do not work there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from agent.errors import StoreError

T = TypeVar("T")

_BUSY_SECONDS = 30
_WRITE = "ratchet_write"
_NO_TRANSACTION = "ratchet_no_transaction"

_versions = sa.Table(
    "schema_versions",
    sa.MetaData(),
    sa.Column("part", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)


def open_engine(path: Path) -> sa.Engine:
    """Open a SQLAlchemy engine on a SQLite file, with WAL, synchronous=FULL, foreign keys and a busy timeout.

    A missing file is created with its folder. Write within `writing`, read within `reading`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StoreError(f"cannot make the folder of {path} ({fault.strerror}); check its permissions") from fault
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    try:
        with _explained(engine), engine.connect():
            pass
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that takes the write lock at once, so that what it reads does not change before it commits."""
    with _explained(engine), engine.connect() as connection:
        connection.execution_options(**{_WRITE: True})
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that sees one state of the database and does not block writers."""
    with _explained(engine), engine.connect() as connection:
        yield connection


@contextmanager
def erasing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """`writing`, in which deleted data is overwritten with zeros. Call `scour` afterwards."""
    with writing(engine) as connection:
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
        yield connection


def scour(engine: sa.Engine) -> bool:
    """Rewrite the file and empty the write-ahead log, so that neither has deleted data.

    Pages that were split may hold stale copies, which a deletion does not reach. Needs the size of the file again on
    the disk. Returns False where a reader in another process kept the log from being emptied.
    """
    with _explained(engine), engine.connect() as connection:
        connection.execution_options(**{_NO_TRANSACTION: True})
        connection.exec_driver_sql("VACUUM")
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar()
    return not busy


def parts_of(items: Sequence[T], size: int = 500) -> list[Sequence[T]]:
    """Split items into parts: SQLite binds a limited number of values per statement."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def prepare_schema(
    engine: sa.Engine,
    tables: sa.MetaData,
    *,
    part: str,
    version: int,
    upgrade: Callable[[sa.Connection, int], None] | None = None,
) -> None:
    """Create the tables of a part of the database.

    Args:
        engine: the database.
        tables: what to create.
        part: the name under which the version is recorded.
        version: the version of these tables.
        upgrade: called with the version of older tables, within the same transaction.

    Raises:
        StoreError: the tables have a newer version.
    """
    with writing(engine) as connection:
        _versions.create(connection, checkfirst=True)
        found = connection.scalar(sa.select(_versions.c.version).where(_versions.c.part == part))
        if found is not None and found > version:
            raise StoreError(
                f"{engine.url.database} was written by a newer ratchet-loop ({part} has version {found}, "
                f"this code reads up to {version}); upgrade ratchet-loop"
            )
        if found is not None and found < version and upgrade is not None:
            upgrade(connection, found)
        tables.create_all(connection)
        if found is None:
            connection.execute(_versions.insert().values(part=part, version=version))
        elif found < version:
            connection.execute(_versions.update().where(_versions.c.part == part).values(version=version))


def _configure(connection: Any, _record: object) -> None:
    # The driver's own BEGIN is deferred and comes late; `_begin` sends ours instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _use_wal(cursor: Any) -> None:
    # Two processes that both make the file meet here; SQLite does not wait when it changes the journal mode.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as fault:
            if "locked" not in str(fault) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if not options.get(_NO_TRANSACTION):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITE) else "BEGIN")


@contextmanager
def _explained(engine: sa.Engine) -> Iterator[None]:
    path = engine.url.database
    try:
        yield
    except DatabaseError as fault:
        advice = {
            "not a database": "move the file away, or name another home",
            "malformed": "the file is damaged; restore a copy, or move it away",
            "locked": f"another process kept it for over {_BUSY_SECONDS} s; end that one and try again",
            "full": "free some space and try again",
            "readonly": "check the permissions of the file and its folder",
            "unable to open": "check that its folder exists and can be written",
        }
        said = str(fault.orig)
        what = next((text for key, text in advice.items() if key in said), "see `ratchet doctor`")
        raise StoreError(f"the store {path} cannot be used ({said}); {what}") from fault
    except SQLAlchemyError as fault:
        raise StoreError(f"the store {path} cannot be used ({fault}); see `ratchet doctor`") from fault
