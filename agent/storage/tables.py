"""TODO: agent/storage/tables.py"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from agent.errors import StoreError

SCHEMA_VERSION = 3


LAST = "last"
"""The name that stands for the newest run."""


_tables = sa.MetaData()


# Texts people and models wrote are kept as ASCII JSON: SQLite cannot hold a lone surrogate, JSON can.
_runs = sa.Table(
    "runs",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("provenance", sa.Text, nullable=False),
    sa.Column("started_at", sa.Text, nullable=False),
    sa.Column("branch", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Text),
    sqlite_autoincrement=True,
)


_steps = sa.Table(
    "steps",
    _tables,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)


_intents = sa.Table(
    "intents",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Index("intents_by_run", "run", "position"),
    sqlite_autoincrement=True,
)


_feedback = sa.Table(
    "feedback",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("position", sa.Integer),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("feedback_by_run", "run", "kind"),
    sqlite_autoincrement=True,
)


_forgettings = sa.Table(
    "forgettings",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("mark", sa.Integer, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""`mark` is a number of the feedback's own sequence, so that who looks for what is new sees it."""


@dataclass(frozen=True)
class Forgetting:
    """That a person's text was removed: neither what it said nor whose it was."""

    at: str
    runs: tuple[str, ...]
    documents: int
    """How many were to go."""
    datasets: Mapping[str, tuple[str, ...]]
    """The folders of datasets that were to go, and the runs each had examples of: so it can still be told what an
    adapter was trained on."""


def _resolve(connection: sa.Connection, run_id: str) -> str:
    if run_id == LAST:
        newest = connection.scalar(sa.select(_runs.c.id).order_by(_runs.c.number.desc()).limit(1))
        if newest is None:
            raise StoreError("there are no runs yet; start one with `ratchet run`")
        return str(newest)
    if connection.scalar(sa.select(_runs.c.id).where(_runs.c.id == run_id)) is not None:
        return run_id
    beginning = sa.func.substr(_runs.c.id, 1, len(run_id)) == run_id
    query = sa.select(_runs.c.id).where(beginning).order_by(_runs.c.number.desc()).limit(6)
    found = list(connection.scalars(query)) if run_id else []
    if len(found) == 1:
        return str(found[0])
    if found:
        raise StoreError(f"{run_id!r} begins several runs ({', '.join(found[:5])}); give more of the id")
    raise StoreError(f"there is no run {run_id!r}; `ratchet log` lists the runs there are")


def _next_index(connection: sa.Connection, run: str) -> int:
    query = sa.select(sa.func.coalesce(sa.func.max(_steps.c.position) + 1, 0)).where(_steps.c.run == run)
    return int(connection.scalar(query) or 0)


def _dump(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))
