"""Where a training's examples came from, kept in `task.json` so that they can be read again. Paths, and no examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from agent.settings import Project
from tuner.tasks.columns import Columns
from tuner.tasks.splits import Leakage


@dataclass(frozen=True)
class Origin:
    """The files, and how they were read and parted. Paths inside the project's folder are relative to it."""

    data: str
    test: str | None
    validation: str | None
    columns: Mapping[str, Any]
    leakage: Leakage
    seed: int

    @staticmethod
    def of(
        project: Project,
        data: str | Path,
        test: str | Path | None,
        validation: str | Path | None,
        columns: Columns | None,
        leakage: Leakage,
        settings: Mapping[str, Any],
    ) -> Origin:
        """As a training is told. What says nothing of columns is left out."""
        named = {name: value for name, value in asdict(columns or Columns()).items() if value}
        paths = [None if one is None else _kept(project, Path(one)) for one in (data, test, validation)]
        return Origin(cast(str, paths[0]), paths[1], paths[2], named, leakage, int(settings.get("seed") or 0))

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
