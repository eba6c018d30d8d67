"""The trained classic tasks of a project, and the served version of each. Imports no torch.

A task is the sealed folder that a training wrote. Versions trained from it are beside it in `NAME.versions/`, with a
registry whose base is the folder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import AdapterError
from agent.registry.artifact import TASK
from agent.registry.registry import Registry, Serving

if TYPE_CHECKING:
    from agent.config.project import Project

VERSIONS = ".versions"
LISTED_BY = "ratchet task list"


def find_task(project: Project, name: str) -> Path:
    """Return the folder of a task: a tool in `[tools] tasks`, a path, or a name in the project's home.

    Raises AdapterError, naming the places and the existing tasks, when there is none.
    """
    named = project.settings.tools.tasks.get(name)
    # What the settings name is found whatever folder the command is called in.
    places = [Path(name).expanduser()] if named is None else []
    name = named or name
    folder = _first(*places, *_places(project, name))
    if folder is not None:
        return folder
    looked = " and ".join(dict.fromkeys(map(str, _places(project, name))))
    known = ", ".join(one.name for one in home_tasks(project)) or "none"
    raise AdapterError(
        f"there is no trained task {name!r}: looked for {looked}; in the home are {known}. Train one with "
        "`ratchet task train`, or correct the name"
    )


def home_tasks(project: Project) -> list[Path]:
    """Return the task folders of a project's home, sorted by name."""
    home = project.home.tasks
    return sorted(one.parent for one in home.glob(f"*/{TASK}")) if home.is_dir() else []


def project_tasks(project: Project) -> Mapping[Path, tuple[str, ...]]:
    """Return every task of the home and of the settings, each with the names of its tools."""
    found: dict[Path, tuple[str, ...]] = {one.resolve(): () for one in home_tasks(project)}
    for tool, name in project.settings.tools.tasks.items():
        if (folder := _first(*_places(project, name))) is not None:
            found[folder.resolve()] = (*found.get(folder.resolve(), ()), tool)
    return found


def versions(folder: Path) -> Registry:
    """Return the registry of the versions trained from a task."""
    folder = folder.resolve()
    return Registry(folder.with_name(folder.name + VERSIONS), listed_by=LISTED_BY)


def serving(folder: Path) -> Serving:
    """Return the served version of a task; None is the folder itself."""
    return versions(folder).serving()


def served_folder(folder: Path) -> Path:
    """Return the folder of the served version."""
    found = serving(folder).adapter
    return folder if found is None else found.folder


def _places(project: Project, name: str) -> tuple[Path, Path]:
    """Where a task of this name may lie."""
    return project.resolve(name), project.home.tasks / name


def _first(*places: Path) -> Path | None:
    return next((folder for folder in places if (folder / TASK).is_file()), None)
