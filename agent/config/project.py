"""Finds a user's project: its folder, its settings, and its home.

A settings file that another user of the machine could have written is not read (`tools.trust`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config.environment import read_environment
from agent.config.reader import read_settings
from agent.config.settings import Settings
from agent.errors import SettingsError
from tools.trust import find_fault

HOME_FOLDER = ".ratchet"
SETTINGS_FILE = "ratchet.toml"


@dataclass(frozen=True)
class Home:
    """The folder of everything that is kept, and the paths in it. No property creates a folder."""

    root: Path

    @staticmethod
    def find(start: Path, environ: Mapping[str, str] | None = None) -> Home:
        """Find the home that belongs to a folder.

        It is RATCHET_HOME; else `.ratchet` beside the nearest `ratchet.toml` in `start` or above; else `.ratchet` in
        `start`. A `ratchet.toml` inside a `.ratchet` counts as beside it.

        Args:
            start: Where the search begins.
            environ: Environment variables; by default those of the process.
        """
        start = start.resolve()
        chosen = read_environment(environ)[0].home
        if chosen:
            return Home(start / Path(chosen).expanduser())
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
    """Paths in the settings are relative to it. It is the folder of `ratchet.toml`, or the parent of a `.ratchet`
    that contains the file."""
    home: Home
    settings: Settings
    settings_file: Path | None = None
    """The file of the settings; None when all are defaults."""
    trusted: tuple[Path, ...] = ()
    """Folders of RATCHET_TRUST."""

    def named(self, weights: str) -> str:
        """Return the name of a model or encoder; a folder of the project becomes absolute."""
        folder = self.resolve(weights)
        return str(folder) if folder.is_dir() else weights

    def resolve(self, path: str) -> Path:
        """Return a path of the settings as an absolute path."""
        return self.folder / Path(path).expanduser()


def find_project(start: Path, environ: Mapping[str, str] | None = None) -> Project:
    """Find the project that a folder belongs to.

    A `ratchet.toml` beside the project goes before the one in the home; without either, all settings are defaults.

    Args:
        start: Where the search begins; parent folders are searched too.
        environ: Environment variables; by default those of the process.

    Raises:
        SettingsError: With every fault of the file and the environment. A file that another user could have written
            is a fault, unless it is in a folder of RATCHET_TRUST.
    """
    start = start.resolve()
    home = Home.find(start, environ)
    environment, environment_faults = read_environment(environ)
    nearest = _project_folder(start)
    candidates = [*([nearest / SETTINGS_FILE] if nearest else []), home.root / SETTINGS_FILE]
    file = next((candidate for candidate in candidates if _is_file(candidate)), None)
    in_home = file is not None and file.parent.name == HOME_FOLDER
    if file is not None:
        fault = find_fault(file, environment.trust)
        if fault is None and in_home:
            fault = find_fault(file.parent.parent, environment.trust)
        if fault is not None:
            raise SettingsError(str(file), [fault, *environment_faults])
    settings, faults = (Settings(), []) if file is None else read_settings(file)
    if faults or environment_faults:
        raise SettingsError(str(file) if faults else "the environment", [*faults, *environment_faults])
    if environment.threads is not None:
        settings = replace(settings, model=replace(settings.model, threads=environment.threads))
    if file is None:
        return Project(start, home, settings, None, environment.trust)
    return Project(file.parent.parent if in_home else file.parent, home, settings, file, environment.trust)


def _project_folder(start: Path) -> Path | None:
    """Return the nearest folder, from `start` upwards, with settings beside or inside its home."""
    for folder in (start, *start.parents):
        if _is_file(folder / SETTINGS_FILE) or _is_file(folder / HOME_FOLDER / SETTINGS_FILE):
            return folder.parent if folder.name == HOME_FOLDER else folder
    return None


def _is_file(path: Path) -> bool:
    """Tell whether a file exists; one in a folder that may not be read does not."""
    try:
        return path.is_file()
    except PermissionError:
        return False
