"""What a tool is handed from above: its run's folder, the task's facts, a retriever, a clock.

A user's tool file defines `load_tools(context) -> list[BaseTool]`; it is called once a run, so whatever
the tools keep between calls belongs to that run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Passage:
    """A piece of a document that the model was shown."""

    label: int
    """The number the model cites it by, from 1, unique within a run; 0 before it is shown."""
    id: str
    document: str
    heading: str
    """Headings from the top down, joined by ` > `."""
    text: str
    score: float = 0.0
    """Cosine similarity to the query, -1 to 1."""


class Retriever(Protocol):
    """Finds passages of the user's documents."""

    def search(self, query: str, k: int) -> Sequence[Passage]: ...


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ToolContext:
    """Everything a tool may know of the run it serves."""

    workspace: Path
    """A folder of this run alone; tools write nowhere else."""
    project: Path
    """The folder that holds `ratchet.toml`; tools only read there."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What is known of the task's sender, such as the customer id. Set by the caller, never by the model."""
    retriever: Retriever | None = None
    now: Callable[[], datetime] = _now
    seen: list[Passage] = field(default_factory=list)
    """The passages shown in this run so far, in the order of their labels. `search_knowledge` adds to it."""
    task: str = ""
    """What was asked, in its sender's own words."""
