"""The log of runs and of the feedback on them, in SQLite.

When a method returns, what it wrote is on the disk: a step is durable before the next begins, an intent before its side
effect. `forget` alone deletes. Threads and processes of one machine may share a store; a folder shared by two machines
is not supported, because SQLite's locks do not work there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from agent.errors import RecordError, StoreError
from agent.records.run import (
    RECORD_VERSION,
    Outcome,
    Recalled,
    Step,
    Task,
    Trajectory,
    step_from_dict,
    step_to_dict,
    trajectory_from_dict,
)
from agent.storage import tables
from agent.storage.database import erasing, open_engine, parts_of, prepare_schema, reading, scour, writing
from agent.storage.feedback_log import FeedbackLog, forgetting_mark
from agent.storage.tables import SCHEMA_VERSION, Forgetting, dump_json, next_index, resolve_run

_PAGE = 100


@dataclass(frozen=True)
class RunSummary:
    """One line of `ratchet log`."""

    id: str
    task: str
    outcome: Outcome | None
    """None while the run is in progress, or when it was interrupted and can be resumed."""
    steps: int
    tokens: int
    adapter: str | None
    started_at: str
    seconds: float
    """Of the model and the tools, over all steps."""
    ratings: int
    corrections: int


class Store:
    """Runs, steps, intents and feedback. Safe to share between threads; open one per process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = open_engine(path)
        self.feedback = FeedbackLog(self.engine)
        try:
            prepare_schema(self.engine, tables.METADATA, part="store", version=SCHEMA_VERSION)
        except BaseException:
            self.engine.dispose()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.engine.dispose()

    # Writing a run

    def begin(self, trajectory: Trajectory) -> None:
        """Add a run, with the steps that it has already, such as those that a branch shares."""
        row = {
            "id": trajectory.id,
            "version": RECORD_VERSION,
            "task": dump_json(asdict(trajectory.task)),
            "provenance": dump_json(asdict(trajectory.provenance)),
            "started_at": trajectory.started_at,
            "branch": dump_json(None if trajectory.branch is None else asdict(trajectory.branch)),
            "outcome": None if trajectory.outcome is None else trajectory.outcome.value,
            "error": dump_json(trajectory.error),
            "ended_at": trajectory.ended_at,
        }
        if not trajectory.id or trajectory.id == tables.LAST:
            raise StoreError(f"a run cannot have the id {trajectory.id!r}; give it another")
        with writing(self.engine) as connection:
            if connection.scalar(sa.select(tables.runs.c.id).where(tables.runs.c.id == trajectory.id)):
                raise StoreError(f"run {trajectory.id} is in the store already; a new run needs a new id")
            connection.execute(tables.runs.insert().values(row))
            for position, step in enumerate(trajectory.steps):
                connection.execute(tables.steps.insert().values(_step_row(trajectory.id, position, step)))

    def intend(self, run_id: str, index: int, step: Step) -> None:
        """Record the intent to perform a step. The newest of several for a step counts."""
        with writing(self.engine) as connection:
            self._check_next(connection, run_id, index)
            row = {"run": run_id, "position": index, "step": dump_json(step_to_dict(step))}
            connection.execute(_ADD_INTENT, row)

    def add_step(self, run_id: str, index: int, step: Step) -> None:
        """Append a finished step. Raises StoreError for any index but the next."""
        with writing(self.engine) as connection:
            self._check_next(connection, run_id, index)
            connection.execute(_ADD_STEP, _step_row(run_id, index, step))

    def end(self, run_id: str, outcome: Outcome, ended_at: str, error: str | None = None) -> None:
        """Record the outcome of a run. Raises StoreError for a run that has ended."""
        values = {"outcome": outcome.value, "ended_at": ended_at, "error": dump_json(error)}
        with writing(self.engine) as connection:
            self._check_open(connection, run_id)
            connection.execute(tables.runs.update().where(tables.runs.c.id == run_id).values(values))

    # Reading runs

    def resolve(self, run_id: str) -> str:
        """Return the whole id of a run named by its id, by a unique beginning of it, or by `last`."""
        with reading(self.engine) as connection:
            return resolve_run(connection, run_id)

    def get(self, run_id: str) -> Trajectory:
        """Return the recorded run with a name as in `resolve`. Raises StoreError when there is none."""
        with reading(self.engine) as connection:
            return _load(connection, [resolve_run(connection, run_id)])[0]

    def open_intent(self, run_id: str) -> Step | None:
        """Return the step that an unfinished run was performing: the newest intent without a recorded step."""
        with reading(self.engine) as connection:
            run = resolve_run(connection, run_id)
            query = (
                sa.select(tables.intents.c.step)
                .where(tables.intents.c.run == run, tables.intents.c.position == next_index(connection, run))
                .order_by(tables.intents.c.number.desc())
                .limit(1)
            )
            text = connection.scalar(query)
        return None if text is None else _read_step(run, text)

    def reopen(self, run_id: str) -> Trajectory:
        """A run that was cut off, to go on with. Raises StoreError for a run that has ended."""
        trajectory = self.get(run_id)
        if trajectory.outcome is not None:
            raise StoreError(
                f"run {trajectory.id} has ended ({trajectory.outcome.value}: {trajectory.outcome.meaning}); "
                "only a run that was cut off can be resumed"
            )
        return trajectory

    def runs(self, limit: int | None = 20, unfinished: bool = False) -> tuple[RunSummary, ...]:
        """Return the newest runs, the newest first; all with `limit` None."""
        of_run = tables.steps.c.run == tables.runs.c.id
        given = sa.select(sa.func.count()).select_from(tables.feedback).where(tables.feedback.c.run == tables.runs.c.id)
        query = sa.select(
            tables.runs.c.id,
            tables.runs.c.task,
            tables.runs.c.provenance,
            tables.runs.c.outcome,
            tables.runs.c.started_at,
            sa.select(sa.func.count()).select_from(tables.steps).where(of_run).scalar_subquery().label("steps"),
            sa.select(sa.func.coalesce(sa.func.sum(tables.steps.c.tokens), 0))
            .where(of_run)
            .scalar_subquery()
            .label("tokens"),
            sa.select(sa.func.coalesce(sa.func.sum(tables.steps.c.seconds), 0.0))
            .where(of_run)
            .scalar_subquery()
            .label("time"),
            given.where(tables.feedback.c.kind == "rating").scalar_subquery().label("ratings"),
            given.where(tables.feedback.c.kind == "correction").scalar_subquery().label("corrections"),
        ).order_by(tables.runs.c.number.desc())
        if unfinished:
            query = query.where(tables.runs.c.outcome.is_(None))
        with reading(self.engine) as connection:
            return tuple(_summary(row) for row in connection.execute(query.limit(limit)).mappings())

    def trajectories(self, ids: Iterable[str] | None = None) -> Iterator[Trajectory]:
        """Yield all runs, oldest first, or the named ones in their order. Reads a page at a time."""
        with reading(self.engine) as connection:
            if ids is None:
                wanted = list(connection.scalars(sa.select(tables.runs.c.id).order_by(tables.runs.c.number)))
            else:
                wanted = [resolve_run(connection, run_id) for run_id in ids]
        for start in range(0, len(wanted), _PAGE):
            with reading(self.engine) as connection:
                page = _load(connection, wanted[start : start + _PAGE])
            yield from page

    def tasks(self, ids: Collection[str]) -> dict[str, Task]:
        """Return the tasks of the runs with these whole ids, without reading their steps."""
        tasks: dict[str, Task] = {}
        with reading(self.engine) as connection:
            for part in parts_of(list(ids)):
                query = sa.select(tables.runs.c.id, tables.runs.c.task).where(tables.runs.c.id.in_(part))
                tasks |= {row.id: Task(**json.loads(row.task)) for row in connection.execute(query)}
        return tasks

    # Forgetting

    def forget(self, forgetting: Forgetting, recalled: Mapping[str, Sequence[Recalled]] | None = None) -> None:
        """Delete runs with all feedback on them and record the deletion, in one transaction.

        A deleted run that is in progress in another process ends there with an error. Call `scour` afterwards to remove
        what is left in the file.

        Args:
            forgetting: the runs, and the record of the deletion.
            recalled: the recalled tasks that other runs keep, by run.
        """
        with erasing(self.engine) as connection:
            mark = forgetting_mark(connection, forgetting.runs)
            for part in parts_of(forgetting.runs):
                for table in (tables.feedback, tables.intents, tables.steps):
                    connection.execute(table.delete().where(table.c.run.in_(part)))
                connection.execute(tables.runs.delete().where(tables.runs.c.id.in_(part)))
            for run, left in (recalled or {}).items():
                text = connection.scalar(sa.select(tables.runs.c.provenance).where(tables.runs.c.id == run))
                if text is not None:
                    provenance = {**json.loads(text), "recalled": [asdict(one) for one in left]}
                    connection.execute(
                        tables.runs.update().where(tables.runs.c.id == run).values(provenance=dump_json(provenance))
                    )
            connection.execute(tables.forgettings.insert().values(mark=mark, record=dump_json(asdict(forgetting))))

    def scour(self) -> bool:
        """Remove deleted data from the file; see `agent.storage.database.scour`."""
        return scour(self.engine)

    def forgettings(self) -> tuple[Forgetting, ...]:
        """Return the records of all deletions, oldest first."""
        return self._forgettings_since(-1)

    def forgotten_since(self, number: int) -> tuple[str, ...]:
        """Return the runs that were deleted after this version of the feedback."""
        return tuple(run for one in self._forgettings_since(number) for run in one.runs)

    def intents(self) -> Iterator[tuple[str, Step]]:
        """Yield every intent with the id of its run."""
        with reading(self.engine) as connection:
            for row in connection.execute(
                sa.select(tables.intents.c.run, tables.intents.c.step).order_by(tables.intents.c.number)
            ):
                yield row.run, _read_step(row.run, row.step)

    def _forgettings_since(self, number: int) -> tuple[Forgetting, ...]:
        query = (
            sa.select(tables.forgettings.c.record)
            .where(tables.forgettings.c.mark > number)
            .order_by(tables.forgettings.c.number)
        )
        with reading(self.engine) as connection:
            return tuple(_forgetting(json.loads(text)) for text in connection.scalars(query))

    def _check_open(self, connection: sa.Connection, run_id: str) -> None:
        self._check_row(
            connection.execute(sa.select(tables.runs.c.outcome).where(tables.runs.c.id == run_id)).first(), run_id
        )

    def _check_row(self, row: sa.Row[Any, Any] | None, run_id: str) -> None:
        if row is None:
            raise StoreError(f"there is no run {run_id!r} in {self.path}; begin it first")
        if row.outcome is not None:
            raise StoreError(f"run {run_id} has ended ({row.outcome}); nothing can be added to it")

    def _check_next(self, connection: sa.Connection, run_id: str, index: int) -> None:
        row = connection.execute(_NEXT, {"run": run_id}).first()
        self._check_row(row, run_id)
        assert row is not None
        expected = row.next
        if index != expected:
            what = "is recorded already" if 0 <= index < expected else "would leave a gap"
            raise StoreError(f"step {index} of run {run_id} {what}; the next step is {expected}")


# Built once: at every step, building the statement would take longer than executing it.
_NEXT = sa.select(
    tables.runs.c.outcome,
    sa.select(sa.func.coalesce(sa.func.max(tables.steps.c.position) + 1, 0))
    .where(tables.steps.c.run == sa.bindparam("run"))
    .scalar_subquery()
    .label("next"),
).where(tables.runs.c.id == sa.bindparam("run"))
_ADD_STEP = tables.steps.insert()
_ADD_INTENT = tables.intents.insert()


def _forgetting(record: dict[str, Any]) -> Forgetting:
    datasets = {name: tuple(runs) for name, runs in record["datasets"].items()}
    return Forgetting(**{**record, "runs": tuple(record["runs"]), "datasets": datasets})


def _load(connection: sa.Connection, ids: Sequence[str]) -> list[Trajectory]:
    runs = {
        row["id"]: row for row in connection.execute(sa.select(tables.runs).where(tables.runs.c.id.in_(ids))).mappings()
    }
    texts: dict[str, list[str]] = {run: [] for run in ids}
    query = sa.select(tables.steps.c.run, tables.steps.c.step).where(tables.steps.c.run.in_(ids))
    for run, step in connection.execute(query.order_by(tables.steps.c.run, tables.steps.c.position)):
        texts[run].append(step)
    return [_trajectory(runs[run], texts[run]) for run in ids]


def _trajectory(row: sa.RowMapping, steps: Sequence[str]) -> Trajectory:
    if row["version"] > RECORD_VERSION:
        raise RecordError(f"run {row['id']} has version {row['version']}, this code reads {RECORD_VERSION}; upgrade")
    try:
        data = {name: row[name] for name in ("id", "started_at", "outcome", "ended_at")}
        data |= {name: json.loads(row[name]) for name in ("task", "provenance", "branch", "error")}
        return trajectory_from_dict({**data, "steps": [json.loads(step) for step in steps]})
    except (ValueError, KeyError, TypeError) as fault:
        raise RecordError(f"run {row['id']} cannot be read back ({fault!r}); the store holds something else") from fault


def _read_step(run: str, text: str) -> Step:
    try:
        return step_from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError) as fault:
        raise RecordError(f"a step of run {run} cannot be read back ({fault!r})") from fault


def _summary(row: sa.RowMapping) -> RunSummary:
    return RunSummary(
        id=row["id"],
        task=json.loads(row["task"])["text"],
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        steps=row["steps"],
        tokens=row["tokens"],
        adapter=json.loads(row["provenance"])["adapter"],
        started_at=row["started_at"],
        seconds=row["time"],
        ratings=row["ratings"],
        corrections=row["corrections"],
    )


def _step_row(run: str, position: int, step: Step) -> dict[str, Any]:
    return {
        "run": run,
        "position": position,
        "step": dump_json(step_to_dict(step)),
        "tokens": step.usage.total,
        "seconds": step.model_seconds + step.tool_seconds,
    }
