"""Which trained tasks learnt of what is forgotten: from corrections of their output, or from files that name the ID.

A version keeps the runs of the corrections that it learnt, those it goes on from included, and the paths of its files.
Not promised: to find text of a person that does not have the ID.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.config.project import Project
from agent.errors import AdapterError
from agent.privacy.erasure import TaskTrace, Traces
from agent.privacy.subject import Subject
from agent.registry.artifact import TASK
from agent.registry.task_models import project_tasks, served_folder, versions
from tuner.privacy.tracing import names_subject, pages_of


def find_tasks(project: Project, traces: Traces) -> Iterator[TaskTrace]:
    """Of every task of the home and of the settings each version that there is anything to say of."""
    earlier = frozenset(run for one in traces.earlier for run in one.runs)
    for folder, tools in project_tasks(project).items():
        served = _served(folder)
        for version in _versions(folder):
            told = _told(version)
            runs, files = runs_of(told), [project.resolve(name) for name in files_of(told)]
            made = TaskTrace(
                folder=version,
                id=version.name,
                tools=tools,
                served=version == served,
                runs=len(runs & (traces.runs - earlier)),
                earlier=len(runs & earlier),
                data=tuple(path for path in files if _names(path, traces.subject)),
                unknown="origin" not in told or any(not path.exists() for path in files),
                pages=tuple(pages_of(version, traces.subject)),
            )
            if made.runs or made.earlier or made.data or made.unknown or made.pages:
                yield made


def runs_of(told: Mapping[str, Any]) -> frozenset[str]:
    """The runs whose corrections a version learnt, itself or where it goes on from; `told` is its `task.json`."""
    own = {one["run"] for one in told.get("corrections", ()) if one["learnt"]}
    return frozenset(own | set(told.get("before", {}).get("runs", ())))


def files_of(told: Mapping[str, Any]) -> tuple[str, ...]:
    """The files a version was trained on, itself or where it goes on from."""
    origin = told.get("origin", {})
    own = [origin.get(name) for name in ("data", "test", "validation", "replay")]
    return tuple(dict.fromkeys(name for name in (*own, *told.get("before", {}).get("data", ())) if name))


def before(told: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a training that goes on from this one keeps of it."""
    return {"runs": sorted(runs_of(told)), "data": list(files_of(told))}


def retraining_tasks(tasks: Sequence[TaskTrace]) -> tuple[str, ...]:
    """What serves and trains the tasks without the forgotten runs.

    A task that learnt of them before any correction, where it goes on from, is for the user to train again.
    """
    commands: list[str] = []
    learnt = {one.folder for one in tasks if one.runs or one.earlier}
    for one in tasks:
        if not one.served or one.folder not in learnt or not one.folder.parent.name.endswith(".versions"):
            continue
        folder = one.folder.parent.with_name(one.folder.parent.name.removesuffix(".versions"))
        name = one.tools[0] if one.tools else str(folder)
        line = [version.folder for version in versions(folder).line()]
        back = next((place for place, version in enumerate(line) if version not in learnt), len(line))
        commands += [*[f"ratchet task rollback {name}"] * back, f"ratchet task tune {name}"]
    return tuple(commands)


def _versions(folder: Path) -> Iterator[Path]:
    """The folder and all that was tuned on from it, what an interruption left as well."""
    yield folder
    yield from sorted(one.parent for one in versions(folder).folder.glob(f"*/{TASK}"))


def _served(folder: Path) -> Path | None:
    try:
        return served_folder(folder)
    except AdapterError:
        return None


def _told(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / TASK).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return told


def _names(path: Path, subject: Subject) -> bool:
    files = path.rglob("*") if path.is_dir() else (path,)
    return any(names_subject(one, subject) for one in files if one.is_file())
