"""The log of runs and of what people said about them, in SQLite.

What a method has returned from is on the disk: a step is durable before the next begins, an intent before
its side effect. Feedback is appended, never written over; `forget` alone deletes. Threads and processes of one
machine may share a store; a folder shared by two machines is not supported, for SQLite's locks do not reach that far.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import sqlalchemy as sa

from agent.errors import FeedbackError, RecordError, StoreError
from agent.records.feedback import Arbitration, Correction, OutputCorrection, Rating
from agent.records.run import (
    RECORD_VERSION,
    Outcome,
    Recalled,
    Step,
    ToolCall,
    Trajectory,
    step_from_dict,
    step_to_dict,
    trajectory_from_dict,
)
from agent.storage.database import erasing, open_engine, parts_of, prepare_schema, reading, scour, writing
from agent.storage.feedback_log import _forgetting_mark, _newest
from agent.storage.tables import (
    LAST,
    SCHEMA_VERSION,
    Forgetting,
    _dump,
    _feedback,
    _forgettings,
    _intents,
    _next_index,
    _resolve,
    _runs,
    _steps,
    _tables,
)

_PAGE = 100


@dataclass(frozen=True)
class RunSummary:
    """One line of `ratchet log`."""

    id: str
    task: str
    outcome: Outcome | None
    """None while the run goes on, or when it was cut off and can be resumed."""
    steps: int
    tokens: int
    adapter: str | None
    started_at: str
    seconds: float
    """Time the model and the tools took, over all steps."""
    ratings: int
    corrections: int


class Store:
    """Runs, steps, intents and feedback. Safe to share between threads; open one a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = open_engine(path)
        try:
            prepare_schema(self.engine, _tables, part="store", version=SCHEMA_VERSION)
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
        """A new run. Steps it has already, such as a branch's shared prefix, are written too."""
        row = {
            "id": trajectory.id,
            "version": RECORD_VERSION,
            "task": _dump(asdict(trajectory.task)),
            "provenance": _dump(asdict(trajectory.provenance)),
            "started_at": trajectory.started_at,
            "branch": _dump(None if trajectory.branch is None else asdict(trajectory.branch)),
            "outcome": None if trajectory.outcome is None else trajectory.outcome.value,
            "error": _dump(trajectory.error),
            "ended_at": trajectory.ended_at,
        }
        if not trajectory.id or trajectory.id == LAST:
            raise StoreError(f"a run cannot have the id {trajectory.id!r}; give it another")
        with writing(self.engine) as connection:
            if connection.scalar(sa.select(_runs.c.id).where(_runs.c.id == trajectory.id)):
                raise StoreError(f"run {trajectory.id} is in the store already; a new run needs a new id")
            connection.execute(_runs.insert().values(row))
            for position, step in enumerate(trajectory.steps):
                connection.execute(_steps.insert().values(_step_row(trajectory.id, position, step)))

    def intend(self, run_id: str, index: int, step: Step) -> None:
        """Keep what is about to be done, before it is done. Of several for one step the newest counts."""
        with writing(self.engine) as connection:
            self._check_next(connection, run_id, index)
            row = {"run": run_id, "position": index, "step": _dump(step_to_dict(step))}
            connection.execute(_ADD_INTENT, row)

    def add_step(self, run_id: str, index: int, step: Step) -> None:
        """Append a finished step; it is on the disk when this returns. Only the next index is taken."""
        with writing(self.engine) as connection:
            self._check_next(connection, run_id, index)
            connection.execute(_ADD_STEP, _step_row(run_id, index, step))

    def end(self, run_id: str, outcome: Outcome, ended_at: str, error: str | None = None) -> None:
        """Close a run. A run ends once."""
        values = {"outcome": outcome.value, "ended_at": ended_at, "error": _dump(error)}
        with writing(self.engine) as connection:
            self._check_open(connection, run_id)
            connection.execute(_runs.update().where(_runs.c.id == run_id).values(values))

    # Reading runs

    def resolve(self, run_id: str) -> str:
        """The whole id of a run named by its id, by a beginning no other run has, or by `last`."""
        with reading(self.engine) as connection:
            return _resolve(connection, run_id)

    def get(self, run_id: str) -> Trajectory:
        """The run as recorded. Named as `resolve` takes it; raises StoreError when it is not there."""
        with reading(self.engine) as connection:
            return _load(connection, [_resolve(connection, run_id)])[0]

    def open_intent(self, run_id: str) -> Step | None:
        """What an unfinished run was about to do and may have done: the newest intent without its step."""
        with reading(self.engine) as connection:
            run = _resolve(connection, run_id)
            query = (
                sa.select(_intents.c.step)
                .where(_intents.c.run == run, _intents.c.position == _next_index(connection, run))
                .order_by(_intents.c.number.desc())
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
        """The newest runs first; `limit` None gives all."""
        of_run = _steps.c.run == _runs.c.id
        given = sa.select(sa.func.count()).select_from(_feedback).where(_feedback.c.run == _runs.c.id)
        query = sa.select(
            _runs.c.id,
            _runs.c.task,
            _runs.c.provenance,
            _runs.c.outcome,
            _runs.c.started_at,
            sa.select(sa.func.count()).select_from(_steps).where(of_run).scalar_subquery().label("steps"),
            sa.select(sa.func.coalesce(sa.func.sum(_steps.c.tokens), 0))
            .where(of_run)
            .scalar_subquery()
            .label("tokens"),
            sa.select(sa.func.coalesce(sa.func.sum(_steps.c.seconds), 0.0))
            .where(of_run)
            .scalar_subquery()
            .label("time"),
            given.where(_feedback.c.kind == "rating").scalar_subquery().label("ratings"),
            given.where(_feedback.c.kind == "correction").scalar_subquery().label("corrections"),
        ).order_by(_runs.c.number.desc())
        if unfinished:
            query = query.where(_runs.c.outcome.is_(None))
        with reading(self.engine) as connection:
            return tuple(_summary(row) for row in connection.execute(query.limit(limit)).mappings())

    def trajectories(self, ids: Iterable[str] | None = None) -> Iterator[Trajectory]:
        """All runs, oldest first, or those named, in the order named. Reads a page at a time."""
        with reading(self.engine) as connection:
            if ids is None:
                wanted = list(connection.scalars(sa.select(_runs.c.id).order_by(_runs.c.number)))
            else:
                wanted = [_resolve(connection, run_id) for run_id in ids]
        for start in range(0, len(wanted), _PAGE):
            with reading(self.engine) as connection:
                page = _load(connection, wanted[start : start + _PAGE])
            yield from page

    # Feedback

    def rate(self, rating: Rating) -> None:
        """Append a verdict. Raises FeedbackError when the run is not there."""
        self._append(rating, "rating", None)

    def correct(self, correction: Correction) -> None:
        """Append a correction. Raises FeedbackError when the run or the step is not there."""
        self._append(correction, "correction", correction.step)

    def correct_output(self, correction: OutputCorrection) -> None:
        """Append what a task should have given. Raises FeedbackError when the run or the step is not there."""
        self._append(correction, "output", correction.step)

    def arbitrate(self, arbitration: Arbitration) -> None:
        """Append where a correction belongs. Raises FeedbackError when the run is not there."""
        self._append(arbitration, "arbitration", None)

    def ratings(self, run_id: str | None = None) -> tuple[Rating, ...]:
        """Oldest first."""
        return tuple(Rating(**record) for record in self._records("rating", run_id))

    def corrections(self, run_id: str | None = None) -> tuple[Correction, ...]:
        """Oldest first, superseded ones included."""
        return tuple(
            Correction(**{**record, "call": ToolCall(**record["call"]), "plan": tuple(record["plan"])})
            for record in self._records("correction", run_id)
        )

    def newest_corrections(self, run_id: str) -> dict[int, Correction]:
        """The correction that counts, by step."""
        return {correction.step: correction for correction in self.corrections(run_id)}

    def output_corrections(self, run_id: str | None = None) -> tuple[OutputCorrection, ...]:
        """Oldest first, superseded ones included."""
        return tuple(OutputCorrection(**record) for record in self._records("output", run_id))

    def arbitrations(self) -> tuple[Arbitration, ...]:
        """Oldest first."""
        return tuple(Arbitration(**record) for record in self._records("arbitration", None))

    def correction(self, name: str) -> Correction:
        """The correction of this id, or whose id alone begins so. Raises FeedbackError where there is no such one."""
        every = self.corrections()
        found = [one for one in every if one.id == name] or [one for one in every if name and one.id.startswith(name)]
        if len(found) > 1:
            some = ", ".join(one.id for one in found[:5])
            raise FeedbackError(f"{name!r} begins several corrections ({some}); give more of the id")
        if not found:
            raise FeedbackError(f"there is no correction {name!r}; `ratchet corrections` lists those there are")
        return found[0]

    def feedback_count(self) -> int:
        """How often feedback was given or runs were forgotten: the number of the newest."""
        with reading(self.engine) as connection:
            return _newest(connection)

    def judged_since(self, number: int) -> tuple[int, tuple[str, ...]]:
        """`feedback_count`, and the runs rated or corrected behind `number`, oldest first."""
        query = sa.select(_feedback.c.number, _feedback.c.run, _feedback.c.kind).where(_feedback.c.number > number)
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(_feedback.c.number)).all()
            newest = _newest(connection)
        return max(number, newest), tuple(
            dict.fromkeys(row.run for row in rows if row.kind in ("rating", "correction"))
        )

    # Forgetting

    def forget(self, forgetting: Forgetting, recalled: Mapping[str, Sequence[Recalled]] | None = None) -> None:
        """Delete these runs with all that was said of them, in one transaction, and keep that it was done.

        `recalled` are other runs, and what is left of the solved tasks that they were shown. A run that goes on in
        another process ends there with an error. `scour` then takes what is left in the file.
        """
        with erasing(self.engine) as connection:
            mark = _forgetting_mark(connection, forgetting.runs)
            for part in parts_of(forgetting.runs):
                for table in (_feedback, _intents, _steps):
                    connection.execute(table.delete().where(table.c.run.in_(part)))
                connection.execute(_runs.delete().where(_runs.c.id.in_(part)))
            for run, left in (recalled or {}).items():
                text = connection.scalar(sa.select(_runs.c.provenance).where(_runs.c.id == run))
                if text is not None:
                    provenance = {**json.loads(text), "recalled": [asdict(one) for one in left]}
                    connection.execute(_runs.update().where(_runs.c.id == run).values(provenance=_dump(provenance)))
            connection.execute(_forgettings.insert().values(mark=mark, record=_dump(asdict(forgetting))))

    def scour(self) -> bool:
        """Leave nothing of what was deleted in the file. See `agent.storage.database.scour`."""
        return scour(self.engine)

    def forgettings(self) -> tuple[Forgetting, ...]:
        """Oldest first."""
        return self._forgettings_since(-1)

    def forgotten_since(self, number: int) -> tuple[str, ...]:
        """Runs that were forgotten behind this `feedback_count`."""
        return tuple(run for one in self._forgettings_since(number) for run in one.runs)

    def intents(self) -> Iterator[tuple[str, Step]]:
        """Every intent there is, with its run's id."""
        with reading(self.engine) as connection:
            for row in connection.execute(sa.select(_intents.c.run, _intents.c.step).order_by(_intents.c.number)):
                yield row.run, _read_step(row.run, row.step)

    def _forgettings_since(self, number: int) -> tuple[Forgetting, ...]:
        query = sa.select(_forgettings.c.record).where(_forgettings.c.mark > number).order_by(_forgettings.c.number)
        with reading(self.engine) as connection:
            return tuple(_forgetting(json.loads(text)) for text in connection.scalars(query))

    def _append(
        self,
        record: Rating | Correction | OutputCorrection | Arbitration,
        kind: Literal["rating", "correction", "output", "arbitration"],
        step: int | None,
    ) -> None:
        with writing(self.engine) as connection:
            if connection.scalar(sa.select(_runs.c.id).where(_runs.c.id == record.run)) is None:
                raise FeedbackError(f"there is no run {record.run!r} to give feedback on; `ratchet log` lists runs")
            count = _next_index(connection, record.run)
            if step is not None and not 0 <= step < count:
                has = f"has steps 0 to {count - 1}" if count else "has no steps"
                raise FeedbackError(f"run {record.run} has no step {step}; it {has}")
            row = {
                "id": record.id,
                "run": record.run,
                "kind": kind,
                "position": step,
                "record": _dump(asdict(record)),
            }
            if connection.scalar(sa.select(_feedback.c.id).where(_feedback.c.id == record.id)) is not None:
                raise FeedbackError(f"there is feedback {record.id!r} already; feedback is appended under a new id")
            connection.execute(_feedback.insert().values(row))

    def _records(self, kind: str, run_id: str | None) -> list[dict[str, Any]]:
        query = sa.select(_feedback.c.record).where(_feedback.c.kind == kind).order_by(_feedback.c.number)
        with reading(self.engine) as connection:
            if run_id is not None:
                query = query.where(_feedback.c.run == _resolve(connection, run_id))
            return [json.loads(text) for text in connection.scalars(query)]

    def _check_open(self, connection: sa.Connection, run_id: str) -> None:
        self._check_row(connection.execute(sa.select(_runs.c.outcome).where(_runs.c.id == run_id)).first(), run_id)

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


# Of what is done at every step; to build a statement takes longer than to carry it out.
_NEXT = sa.select(
    _runs.c.outcome,
    sa.select(sa.func.coalesce(sa.func.max(_steps.c.position) + 1, 0))
    .where(_steps.c.run == sa.bindparam("run"))
    .scalar_subquery()
    .label("next"),
).where(_runs.c.id == sa.bindparam("run"))
_ADD_STEP = _steps.insert()
_ADD_INTENT = _intents.insert()


def _forgetting(record: dict[str, Any]) -> Forgetting:
    datasets = {name: tuple(runs) for name, runs in record["datasets"].items()}
    return Forgetting(**{**record, "runs": tuple(record["runs"]), "datasets": datasets})


def _load(connection: sa.Connection, ids: Sequence[str]) -> list[Trajectory]:
    runs = {row["id"]: row for row in connection.execute(sa.select(_runs).where(_runs.c.id.in_(ids))).mappings()}
    texts: dict[str, list[str]] = {run: [] for run in ids}
    query = sa.select(_steps.c.run, _steps.c.step).where(_steps.c.run.in_(ids))
    for run, step in connection.execute(query.order_by(_steps.c.run, _steps.c.position)):
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
        "step": _dump(step_to_dict(step)),
        "tokens": step.usage.total,
        "seconds": step.model_seconds + step.tool_seconds,
    }
