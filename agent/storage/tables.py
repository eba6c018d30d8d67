"""The tables of runs and feedback, and the look-ups in them that the whole store needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from agent.errors import StoreError

SCHEMA_VERSION = 3


LAST = "last"
"""The name that stands for the newest run."""


METADATA = sa.MetaData()


runs = sa.Table(
    "runs",
    METADATA,
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


steps = sa.Table(
    "steps",
    METADATA,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)


intents = sa.Table(
    "intents",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Index("intents_by_run", "run", "position"),
    sqlite_autoincrement=True,
)


feedback = sa.Table(
    "feedback",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("position", sa.Integer),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("feedback_by_run", "run", "kind"),
    sqlite_autoincrement=True,
)


forgettings = sa.Table(
    "forgettings",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("mark", sa.Integer, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""`mark` is a number of the sequence of feedback, so that a reader that looks for new feedback sees it."""


@dataclass(frozen=True)
class Forgetting:
    """A record that a person's data was removed, without the data and without the person."""

    at: str
    runs: tuple[str, ...]
    documents: int
    """The number of documents that were removed."""
    datasets: Mapping[str, tuple[str, ...]]
    """Folders of the removed datasets, each with the runs of its examples, to trace what an adapter was trained on."""


def resolve_run(connection: sa.Connection, run_id: str) -> str:
    """Return the whole id of a run named by its id, by a unique beginning of it, or by `last`.

    Raises:
        StoreError: no run, or more than one, has that name.
    """
    if run_id == LAST:
        newest = connection.scalar(sa.select(runs.c.id).order_by(runs.c.number.desc()).limit(1))
        if newest is None:
            raise StoreError("there are no runs yet; start one with `ratchet run`")
        return str(newest)
    if connection.scalar(sa.select(runs.c.id).where(runs.c.id == run_id)) is not None:
        return run_id
    beginning = sa.func.substr(runs.c.id, 1, len(run_id)) == run_id
    query = sa.select(runs.c.id).where(beginning).order_by(runs.c.number.desc()).limit(6)
    matching = list(connection.scalars(query)) if run_id else []
    if len(matching) == 1:
        return str(matching[0])
    if matching:
        raise StoreError(f"{run_id!r} begins several runs ({', '.join(matching[:5])}); give more of the id")
    raise StoreError(f"there is no run {run_id!r}; `ratchet log` lists the runs there are")


def next_index(connection: sa.Connection, run: str) -> int:
    """Return the index of the step that a run's next step gets."""
    query = sa.select(sa.func.coalesce(sa.func.max(steps.c.position) + 1, 0)).where(steps.c.run == run)
    return int(connection.scalar(query) or 0)


def dump_json(data: object) -> str:
    """Write compact ASCII JSON: SQLite cannot hold a lone surrogate, JSON can."""
    return json.dumps(data, separators=(",", ":"))
