"""What the arguments of `Agent` come to: its project, settings, folders of documents, and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.config.project import Project
    from agent.config.settings import Settings
    from agent.records.run import Task
    from agent.runtime import TrainedTasks


def open_project(folder: str | Path | None, home: str | Path | None, changes: Mapping[str, Any]) -> Project:
    """Return the project of a folder, with another home and changed settings where they are given."""
    from agent.config.project import Home, find_project

    project = find_project(Path.cwd() if folder is None else Path(folder).expanduser())
    if home is not None:
        project = replace(project, home=Home(Path(home).expanduser().resolve()))
    return replace(project, settings=with_changes(project.settings, changes))


def with_changes(settings: Settings, changes: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return settings with some of their keys changed. Raises SettingsError with every fault."""
    from pydantic import ValidationError

    from agent.errors import SettingsError

    sections = {section.name: getattr(settings, section.name) for section in fields(settings)}
    faults = []
    for name, values in changes.items():
        keys = {key.name for key in fields(sections[name])} if name in sections else set()
        if name not in sections:
            faults.append(f"there is no section {name!r}; sections are {', '.join(sections)}")
        elif unknown := values.keys() - keys:
            faults.append(f"[{name}] has no key {min(unknown)!r}; keys are {', '.join(sorted(keys))}")
        else:
            try:
                sections[name] = replace(sections[name], **values)
            except ValidationError as fault:
                faults += [f"[{name}] {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors()]
    if faults:
        raise SettingsError("Agent(...)", faults)
    return replace(settings, **sections)


def existing_folders(documents: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """Return the folders of documents as absolute paths. Raises MemoryIndexError for one that does not exist."""
    from agent.errors import MemoryIndexError

    named = [documents] if isinstance(documents, str | Path) else list(documents or ())
    folders = [Path(folder).expanduser().resolve() for folder in named]
    for folder in folders:
        if not folder.is_dir():
            raise MemoryIndexError(f"{folder} is not a folder of documents; correct documents= of the agent")
    return folders


def open_trained_tasks(project: Project, say: Callable[[str], None]) -> TrainedTasks | None:
    """The trained tasks that the settings name; None where they name none."""
    if not project.settings.tools.tasks:
        return None
    from tuner.tasks.feedback.agent_tools import TaskTools

    return TaskTools(project, say=say)


def make_task(text: str, context: Mapping[str, str] | None) -> Task:
    """Return a task with a new id. Raises TaskError for an empty one, and for a context that is not made of texts."""
    from agent.errors import TaskError
    from agent.records.run import Task
    from agent.util.ids import new_id

    context = dict(context or {})
    if not text.strip():
        raise TaskError("the task is empty; say what is to be done")
    for name, value in context.items():
        if not isinstance(value, str):
            raise TaskError(f"context {name!r} is {value!r:.60}, expected a text")
    return Task(new_id(), text, context)
