"""Where a training's examples came from, kept in `task.json` so that they can be read again. Paths, and no examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.config.project import Project
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.splits import Leakage
from tuner.tasks.fit.warm_start import REPLAY_SHARE


@dataclass(frozen=True)
class Origin:
    """The files, and how they were read and parted. Paths inside the project's folder are relative to it."""

    data: str
    test: str | None
    validation: str | None
    columns: Mapping[str, Any]
    leakage: Leakage
    seed: int
    start: str | None = None
    """The folder of the earlier training that this one goes on from."""
    replay: str | None = None
    """Older examples, of which a share is learnt again."""
    replay_share: float = REPLAY_SHARE

    @staticmethod
    def of(
        project: Project,
        data: str | Path,
        *,
        test: str | Path | None = None,
        validation: str | Path | None = None,
        columns: Columns | None = None,
        leakage: Leakage = "refuse",
        seed: int = 0,
        start: Path | None = None,
        replay: str | Path | None = None,
        replay_share: float = REPLAY_SHARE,
    ) -> Origin:
        """As a training is told. What says nothing of columns is left out."""
        named = {name: value for name, value in asdict(columns or Columns()).items() if value}
        others = [None if one is None else _kept(project, Path(one)) for one in (test, validation, start, replay)]
        first = _kept(project, Path(data))
        return Origin(first, others[0], others[1], named, leakage, seed, others[2], others[3], replay_share)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Origin:
        return Origin(**data)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def read_columns(self) -> Columns:
        return Columns(**self.columns)


def _kept(project: Project, path: Path) -> str:
    path = path.expanduser().resolve()
    folder = project.folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
