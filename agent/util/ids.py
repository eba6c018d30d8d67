"""TODO: agent/util/ids.py"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4


def new_id() -> str:
    """A run id: sortable by time, unique enough for one store."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:8]}"


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
