"""The commands that keep trained tasks: `task list`, `task tune` and `task rollback`. Used by `tuner.tasks.cli`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from agent.settings import Project
from agent.task_folders import project_tasks, serving, versions


def list_tasks(args: argparse.Namespace, project: Project) -> int:
    """The tasks of the home and of the settings, their tools, and the version that is served."""
    from agent.sealing import verify
    from tuner.report import markdown_table
    from tuner.tasks.folders import read_task

    rows = []
    for folder, tools in project_tasks(project).items():
        found = serving(folder)
        told = read_task(folder if found.adapter is None else found.adapter.folder)
        version = verify(folder).id if found.adapter is None else found.adapter.id
        rows.append((_short(folder), told["task"], ", ".join(tools) or "-", version, len(versions(folder).list())))
        if found.warning:
            _note(found.warning)
    names = ("folder", "task", "tools", "served", "tuned on")
    if args.json:
        _print([dict(zip(names, row, strict=True)) for row in rows])
        return 0
    _print(markdown_table(names, rows) if rows else "no task was trained yet; see `ratchet task train --help`")
    return 0


def _short(folder: Path) -> str:
    """As seen from here, where that is shorter."""
    return min((str(folder), os.path.relpath(folder)), key=len)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(data: Any) -> None:
    print(data if isinstance(data, str) else json.dumps(data, indent=1, ensure_ascii=False))
