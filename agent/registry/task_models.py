"""Where the trained classic tasks of a project lie, and which version of each is served. No torch.

A task is the sealed folder that a training wrote. What is trained on from it lies beside, in `NAME.versions/`, with a
registry that says which one is served; the base of that registry is the folder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.config.project import Project
from agent.errors import AdapterError
from agent.registry.artifact import TASK
from agent.registry.registry import Registry, Serving

VERSIONS = ".versions"
LISTED_BY = "ratchet task list"


def find_task(project: Project, name: str) -> Path:
    """The folder of a task: that of a tool in `[tools] tasks`, a path, or a name in the project's home.

    Raises AdapterError that says where was looked, and what there is.
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
    """The tasks of a project's home, by name."""
    home = project.home.tasks
    return sorted(one.parent for one in home.glob(f"*/{TASK}")) if home.is_dir() else []


def project_tasks(project: Project) -> Mapping[Path, tuple[str, ...]]:
    """Every task of the home, and those that tools are named for; with the names of these tools."""
    found: dict[Path, tuple[str, ...]] = {one.resolve(): () for one in home_tasks(project)}
    for tool, name in project.settings.tools.tasks.items():
        if (folder := _first(*_places(project, name))) is not None:
            found[folder.resolve()] = (*found.get(folder.resolve(), ()), tool)
    return found


def versions(folder: Path) -> Registry:
    """What was trained on from a task."""
    folder = folder.resolve()
    return Registry(folder.with_name(folder.name + VERSIONS), listed_by=LISTED_BY)


def serving(folder: Path) -> Serving:
    """The version that is served of a task; None is the folder itself."""
    return versions(folder).serving()


def served_folder(folder: Path) -> Path:
    """The folder that a task's name stands for now."""
    found = serving(folder).adapter
    return folder if found is None else found.folder


def _places(project: Project, name: str) -> tuple[Path, Path]:
    """Where a task of this name may lie."""
    return project.resolve(name), project.home.tasks / name


def _first(*places: Path) -> Path | None:
    return next((folder for folder in places if (folder / TASK).is_file()), None)
