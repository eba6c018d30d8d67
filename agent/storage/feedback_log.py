"""TODO: agent/storage/feedback_log.py"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agent.storage.tables import _feedback, _forgettings, _runs


def _newest(connection: sa.Connection) -> int:
    """The number of the newest feedback or forgetting."""
    numbers = (sa.func.max(_feedback.c.number), sa.func.max(_forgettings.c.mark))
    return max(int(connection.scalar(sa.select(number)) or 0) for number in numbers)


def _forgetting_mark(connection: sa.Connection, runs: Sequence[str]) -> int:
    """The number that the next feedback would have had; without a run that is there, that of the newest."""
    run = next((one for one in runs if connection.scalar(sa.select(_runs.c.id).where(_runs.c.id == one))), None)
    if run is None:
        return _newest(connection)
    # Goes with the run's feedback; its number is never given again.
    row = {"id": f"forgotten {run}", "run": run, "kind": "forgotten", "position": None, "record": "null"}
    made = connection.execute(_feedback.insert().values(row)).inserted_primary_key
    assert made is not None
    return int(made[0])
