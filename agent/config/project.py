"""TODO: agent/config/project.py"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.config.reader import _apply_environment, _read, _shown
from agent.config.settings import Settings
from agent.errors import SettingsError
from tools.trust import TRUST, find_fault

HOME_FOLDER = ".ratchet"


@dataclass(frozen=True)
class Home:
    """The folder that holds everything that lasts. Nothing here makes a folder."""

    root: Path

    @staticmethod
    def find(start: Path, environ: Mapping[str, str] | None = None) -> Home:
        """RATCHET_HOME; else `.ratchet` beside the nearest `ratchet.toml` upward; else `.ratchet` in `start`.

        A `ratchet.toml` inside a `.ratchet` counts as beside it. Left out, `environ` is the process's own.
        """
        environ = os.environ if environ is None else environ
        start = start.resolve()
        if environ.get("RATCHET_HOME"):
            return Home(start / Path(environ["RATCHET_HOME"]).expanduser())
        return Home((_project_folder(start) or start) / HOME_FOLDER)

    @property
    def database(self) -> Path:
        return self.root / "ratchet.db"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def encoders(self) -> Path:
        """The adapters of the sentence encoder."""
        return self.root / "encoders"

    @property
    def tasks(self) -> Path:
        """The folders of trained classic tasks."""
        return self.root / "tasks"

    @property
    def tunings(self) -> Path:
        return self.root / "tunings"

    @property
    def searches(self) -> Path:
        return self.root / "searches"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def workspaces(self) -> Path:
        return self.root / "workspaces"

    @property
    def lock(self) -> Path:
        return self.root / "lock"


@dataclass(frozen=True)
class Project:
    """A user's project: its folder, its home, and its settings."""

    folder: Path
    """Paths in the settings are relative to it: the folder of `ratchet.toml`, or, when that lies in a home
    called `.ratchet`, the folder beside it."""
    home: Home
    settings: Settings
    settings_file: Path | None = None
    """The file the settings came from; None when all are defaults."""
    trusted: tuple[Path, ...] = ()
    """Folders of RATCHET_TRUST."""

    def named(self, weights: str) -> str:
        """A model or encoder as the settings name it, a folder of the project made absolute."""
        folder = self.resolve(weights)
        return str(folder) if folder.is_dir() else weights

    def resolve(self, path: str) -> Path:
        """A path from the settings, made absolute."""
        return self.folder / Path(path).expanduser()


def find_project(start: Path, environ: Mapping[str, str] | None = None) -> Project:
    """The project `start` lies in. Raises SettingsError with every fault of its file and the environment.

    A `ratchet.toml` beside the project goes before the one in the home; with neither, all is default. One that
    another user could have written is a fault, unless it lies in a folder of RATCHET_TRUST.
    """
    environ = os.environ if environ is None else environ
    start = start.resolve()
    home = Home.find(start, environ)
    nearest = _project_folder(start)
    candidates = [*([nearest / SETTINGS_FILE] if nearest else []), home.root / SETTINGS_FILE]
    file = next((candidate for candidate in candidates if _is_file(candidate)), None)
    inside = file is not None and file.parent.name == HOME_FOLDER
    trusted, more = _read_trust(environ)
    if file is not None:
        fault = find_fault(file, trusted) or (find_fault(file.parent.parent, trusted) if inside else None)
        if fault is not None:
            raise SettingsError(str(file), [fault, *more])
    settings, faults = (Settings(), []) if file is None else _read(file)
    settings, others = _apply_environment(settings, environ)
    more += others
    if faults or more:
        raise SettingsError(str(file) if faults and file else "the environment", [*faults, *more])
    if file is None:
        return Project(start, home, settings, None, trusted)
    return Project(file.parent.parent if inside else file.parent, home, settings, file, trusted)


def _project_folder(start: Path) -> Path | None:
    """The nearest folder from `start` up that has settings, beside or inside its home."""
    for folder in (start, *start.parents):
        if _is_file(folder / SETTINGS_FILE) or _is_file(folder / HOME_FOLDER / SETTINGS_FILE):
            return folder.parent if folder.name == HOME_FOLDER else folder
    return None


SETTINGS_FILE = "ratchet.toml"


def _is_file(path: Path) -> bool:
    """Whether there is such a file; what lies in another user's closed folder is not there."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def _read_trust(environ: Mapping[str, str]) -> tuple[tuple[Path, ...], list[str]]:
    """The folders of RATCHET_TRUST, and what is wrong with it."""
    folders = [Path(one).expanduser() for one in environ.get(TRUST, "").split(os.pathsep) if one.strip()]
    faults = [f"{TRUST} = {_shown(str(one))}: expected an absolute folder" for one in folders if not one.is_absolute()]
    return tuple(one.resolve() for one in folders if one.is_absolute()), faults
