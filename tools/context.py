"""What a tool receives of its run: a folder, the task and its context, a retriever, a clock.

A tool file defines `load_tools(context)`, which is called once for each run, so that what its tools keep between calls
belongs to that run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Passage:
    """A piece of a document, as `search_knowledge` shows it."""

    label: int
    """The number that an answer cites, from 1, unique within a run; 0 before it is shown."""
    id: str
    document: str
    heading: str
    """Headings from the top down, joined by ` > `."""
    text: str
    score: float = 0.0
    """Cosine similarity to the query, -1 to 1."""


class Retriever(Protocol):
    """Searches the user's documents."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """Return the k passages that fit the query best, best first."""
        ...


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ToolContext:
    """What a tool may know of its run."""

    workspace: Path
    """A folder of this run alone. Tools write nowhere else."""
    project: Path
    """The folder that holds `ratchet.toml`; tools only read there."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The task context: what the caller vouches for, such as the customer's id. Never set by the model."""
    retriever: Retriever | None = None
    now: Callable[[], datetime] = _now
    seen: list[Passage] = field(default_factory=list)
    """The passages of the observations so far, in the order of their labels. `search_knowledge` adds to it."""
    task: str = ""
    """The text of the task."""
