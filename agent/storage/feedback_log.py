"""The feedback part of the store: ratings, corrections of steps and of outputs, and kinds of corrections.

Feedback is appended and never overwritten; of several records the newest counts. Which corrections are effective is
decided in `agent.feedback.approved`, not here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from agent.errors import FeedbackError
from agent.records.feedback import Arbitration, Correction, OutputCorrection, Rating
from agent.records.run import ToolCall
from agent.storage import tables
from agent.storage.database import reading, writing


class FeedbackLog:
    """The feedback on the runs of one store; see `Store.feedback`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add_rating(self, rating: Rating) -> None:
        """Append a verdict. Raises FeedbackError when the run does not exist."""
        self._append(rating, "rating")

    def add_correction(self, correction: Correction) -> None:
        """Append a correction of a step. Raises FeedbackError when the run or the step does not exist."""
        self._append(correction, "correction", correction.step)

    def add_output_correction(self, correction: OutputCorrection) -> None:
        """Append a correction of a task's output. Raises FeedbackError when the run or the step does not exist."""
        self._append(correction, "output", correction.step)

    def add_arbitration(self, arbitration: Arbitration) -> None:
        """Append the kind of a correction. Raises FeedbackError when the run does not exist."""
        self._append(arbitration, "arbitration")

    def ratings(self, run_id: str | None = None) -> tuple[Rating, ...]:
        """Return the ratings of a run, or of all, oldest first."""
        return tuple(Rating(**record) for record in self._records("rating", run_id))

    def corrections(self, run_id: str | None = None) -> tuple[Correction, ...]:
        """Return the corrections of a run, or of all, oldest first, superseded ones included."""
        return tuple(
            Correction(**{**record, "call": ToolCall(**record["call"]), "plan": tuple(record["plan"])})
            for record in self._records("correction", run_id)
        )

    def newest_corrections(self, run_id: str) -> dict[int, Correction]:
        """Return the newest correction of each step of a run, by the step's index."""
        return {correction.step: correction for correction in self.corrections(run_id)}

    def output_corrections(self, run_id: str | None = None) -> tuple[OutputCorrection, ...]:
        """Return the output corrections of a run, or of all, oldest first, superseded ones included."""
        return tuple(OutputCorrection(**record) for record in self._records("output", run_id))

    def arbitrations(self) -> tuple[Arbitration, ...]:
        """Return all kinds that were given to corrections, oldest first."""
        return tuple(Arbitration(**record) for record in self._records("arbitration"))

    def correction(self, name: str) -> Correction:
        """Return the correction with this id, or the only one whose id begins so. Raises FeedbackError for others."""
        corrections = self.corrections()
        matching = [one for one in corrections if one.id == name]
        if not matching and name:
            matching = [one for one in corrections if one.id.startswith(name)]
        if len(matching) > 1:
            some = ", ".join(one.id for one in matching[:5])
            raise FeedbackError(f"{name!r} begins several corrections ({some}); give more of the id")
        if not matching:
            raise FeedbackError(f"there is no correction {name!r}; `ratchet corrections` lists those there are")
        return matching[0]

    def version(self) -> int:
        """Return the number of the newest record, which grows with each feedback and each forgotten person."""
        with reading(self._engine) as connection:
            return newest_number(connection)

    def runs_since(self, version: int) -> tuple[int, tuple[str, ...]]:
        """Return the current version, and the runs rated or corrected after the given one, oldest first."""
        columns = tables.feedback.c
        query = sa.select(columns.number, columns.run, columns.kind).where(columns.number > version)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(columns.number)).all()
            newest = newest_number(connection)
        runs = dict.fromkeys(row.run for row in rows if row.kind in ("rating", "correction"))
        return max(version, newest), tuple(runs)

    def _append(
        self, record: Rating | Correction | OutputCorrection | Arbitration, kind: str, step: int | None = None
    ) -> None:
        with writing(self._engine) as connection:
            if connection.scalar(sa.select(tables.runs.c.id).where(tables.runs.c.id == record.run)) is None:
                raise FeedbackError(f"there is no run {record.run!r} to give feedback on; `ratchet log` lists runs")
            count = tables.next_index(connection, record.run)
            if step is not None and not 0 <= step < count:
                has = f"has steps 0 to {count - 1}" if count else "has no steps"
                raise FeedbackError(f"run {record.run} has no step {step}; it {has}")
            row = {
                "id": record.id,
                "run": record.run,
                "kind": kind,
                "position": step,
                "record": tables.dump_json(asdict(record)),
            }
            query = sa.select(tables.feedback.c.id).where(tables.feedback.c.id == record.id)
            if connection.scalar(query) is not None:
                raise FeedbackError(f"there is feedback {record.id!r} already; feedback is appended under a new id")
            connection.execute(tables.feedback.insert().values(row))

    def _records(self, kind: str, run_id: str | None = None) -> list[dict[str, Any]]:
        columns = tables.feedback.c
        query = sa.select(columns.record).where(columns.kind == kind).order_by(columns.number)
        with reading(self._engine) as connection:
            if run_id is not None:
                query = query.where(columns.run == tables.resolve_run(connection, run_id))
            return [json.loads(text) for text in connection.scalars(query)]


def newest_number(connection: sa.Connection) -> int:
    """Return the number of the newest feedback or forgetting; see `FeedbackLog.version`."""
    numbers = (sa.func.max(tables.feedback.c.number), sa.func.max(tables.forgettings.c.mark))
    return max(int(connection.scalar(sa.select(number)) or 0) for number in numbers)


def forgetting_mark(connection: sa.Connection, runs: Sequence[str]) -> int:
    """Return the number that the next feedback would have had; if none of the runs exists, that of the newest."""
    query = sa.select(tables.runs.c.id)
    run = next((id for id in runs if connection.scalar(query.where(tables.runs.c.id == id))), None)
    if run is None:
        return newest_number(connection)
    # The row is deleted together with the run's feedback; its number is never assigned again.
    row = {"id": f"forgotten {run}", "run": run, "kind": "forgotten", "position": None, "record": "null"}
    inserted = connection.execute(tables.feedback.insert().values(row)).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])
