"""What a training of a classic task is given, and the parts of its report that heads and language models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config.project import Project
from agent.llm.weights.load import ModelFolder
from agent.util.ids import timestamp
from tuner.tasks.artifact import Sealed
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.records import TaskName
from tuner.tasks.data.splits import Splits, dataset_hash
from tuner.tasks.fit.warm_start import WarmStart
from tuner.tasks.head.training import TaskProgress
from tuner.tasks.predictor import Say, ignore
from tuner.tasks.report import TaskOutcome, write_figures, write_page


@dataclass(frozen=True)
class FitRequest:
    """What to train, from which examples, and where to save it."""

    task: TaskName
    splits: Splits
    folder: Path
    """New or empty; gets the trained task with its report."""
    project: Project
    name: str
    """Id of the training, for the manifest."""
    model: str | None = None
    """Name of an encoder or a language model; by default that of the project."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the user gave; the others are chosen by the data."""
    columns: Columns = field(default_factory=Columns)
    """The columns that the examples were read from."""
    into: str = ""
    """Language to translate into, where neither file nor texts show it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `task.json`, for a later training."""
    start: WarmStart | None = None
    """An earlier training to continue."""
    say: Say = ignore
    on_progress: Callable[[TaskProgress], None] = ignore

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of examples by split."""
        return {part: len(getattr(self.splits, part)) for part in ("train", "validation", "test")}

    def provenance(self, base: ModelFolder, metadata: Mapping[str, Any]) -> Sealed:
        """Return what the saved folder says of its origin."""
        parent = None if self.start is None else self.start.manifest.id
        return Sealed(base, dataset_hash(self.splits), self.name, timestamp(), parent, metadata)


def report_files(outcome: TaskOutcome) -> dict[str, bytes]:
    """Return the files of a training's report, by name."""
    return {"report.html": write_page(outcome).encode(), "metrics.json": write_figures(outcome).encode()}
