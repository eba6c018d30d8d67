"""The commands that keep trained tasks: `task list`, `task tune` and `task rollback`. Used by `tuner.commands.task`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.registry.task_models import find_task, project_tasks, serving, versions
from tuner.commands.console import ProgressLines, exit_code, format_verdict, print_note, print_result

if TYPE_CHECKING:
    from agent.config.project import Project


def add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="of a trained task, or the name of its tool")
    parser.add_argument("--data", type=Path, metavar="PATH", help="in place of the file it was trained on")


def add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="of a trained task, or the name of its tool")
    parser.add_argument(
        "--reason", default="rolled back by hand", metavar="TEXT", help="kept in the registry's history"
    )


def tune(args: argparse.Namespace, project: Project) -> int:
    """Train a task anew with the corrections of its output, and serve it if it is better."""
    from tuner.tasks.feedback.retrain import tune_task

    tuning = tune_task(
        project, find_task(project, args.folder), data=args.data, say=print_note, on_progress=ProgressLines()
    )
    decision, version = tuning.decision, tuning.version
    if args.json:
        figures = {name: getattr(decision, name) for name in ("test", "corrected")}
        data = {name: asdict(one) for name, one in figures.items()} | {"reasons": list(decision.reasons)}
        print_result({"version": version.id, "served": decision.ship, "learnt": tuning.learnt, **data})
    else:
        verdict = f"version {version.id} {'is served' if decision.ship else 'is not served'}"
        places = [f"folder: {_short(version.folder)}"]
        places += [f"to go back: ratchet task rollback {args.folder}"] if decision.ship else []
        print_result(format_verdict(verdict, decision.reasons, *places))
    return exit_code(decision.ship)


def rollback(args: argparse.Namespace, project: Project) -> int:
    """Serve the version before."""
    from agent.util.ids import timestamp

    folder = find_task(project, args.folder)
    earlier = versions(folder).rollback(args.reason, timestamp())
    served = folder if earlier is None else earlier.folder
    print_result({"served": str(served)} if args.json else f"{_short(served)} is served from the next run on")
    return 0


def list_tasks(args: argparse.Namespace, project: Project) -> int:
    """The tasks of the home and of the settings, their tools, and the version that is served."""
    from agent.registry.artifact import verify
    from tuner.reports.gate_report import markdown_table
    from tuner.tasks.artifact import read_task

    rows = []
    for folder, tools in project_tasks(project).items():
        version = serving(folder)
        metadata = read_task(folder if version.adapter is None else version.adapter.folder)
        served = verify(folder).id if version.adapter is None else version.adapter.id
        rows.append((_short(folder), metadata["task"], ", ".join(tools) or "-", served, len(versions(folder).list())))
        if version.warning:
            print_note(version.warning)
    names = ("folder", "task", "tools", "served", "tuned on")
    if args.json:
        print_result([dict(zip(names, row, strict=True)) for row in rows])
        return 0
    print_result(markdown_table(names, rows) if rows else "no task was trained yet; see `ratchet task train --help`")
    return 0


def _short(folder: Path) -> str:
    """As seen from here, where that is shorter."""
    return min((str(folder), os.path.relpath(folder)), key=len)


ACTIONS: Mapping[str, Callable[[argparse.Namespace, Project], int]] = {
    "list": list_tasks,
    "tune": tune,
    "rollback": rollback,
}
