"""The command `forget`: lists what would be removed, asks, and removes it."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli.console import note, result, result_json
from agent.cli.session import Session, UsageError

if TYPE_CHECKING:
    from agent.privacy.erasure import AdapterTrace, DocumentMatch, ErasurePlan, TaskTrace, TrainingData


def forget(arguments: Namespace, session: Session, tuned: TrainingData) -> int:
    """Remove a person's data after a confirmation; with --dry-run, only list it."""
    from agent.privacy.erasure import find
    from agent.privacy.redaction import Scrubber
    from agent.privacy.subject import Subject

    needs_confirmation = not (arguments.yes or arguments.dry_run)
    if needs_confirmation and (arguments.json or not sys.stdin.isatty()):
        raise UsageError("the confirmation needs a terminal; check with --dry-run, then give --yes")
    project = session.project
    subject = Subject(arguments.subject)
    if project.settings.privacy.scrub and Scrubber().mask(subject.id) != subject.id:
        note(
            f"The log masks texts such as {subject.id}, so runs are not found by it; "
            "run the command with the id of the task context as well."
        )
    has_home = project.home.root.is_dir()
    # Otherwise a tuning could write a dataset from data that is about to be removed.
    with nullcontext() if arguments.dry_run or not has_home else tuned.alone():
        plan = find(
            project.home,
            subject,
            tuned,
            documents=arguments.documents,
            own_tenant=project.settings.memory.tenant,
        )
        has_data = plan.goes(pages=arguments.pages)
        if not arguments.json:
            result("\n".join(_lines(plan, arguments)))
        if (
            needs_confirmation
            and has_data
            and input("Remove this for good? [y/N] ").strip().lower() not in ("y", "yes")
        ):
            note("Nothing was removed.")
            return 0
        is_removed = has_data and not arguments.dry_run
        emptied = _remove(plan, session, tuned, pages=arguments.pages) if is_removed else True
    if arguments.json:
        result_json({**_view(plan), "removed": is_removed, "log_emptied": emptied})
    elif is_removed:
        result("Removed. A running service keeps copies in memory until it is restarted.")
    if not emptied:
        note(
            "Another process was reading the store, so its write-ahead log could not be emptied; "
            "it is emptied when that process ends."
        )
    return 0


def _remove(plan: ErasurePlan, session: Session, tuned: TrainingData, *, pages: bool) -> bool:
    from agent.privacy.erasure import forget
    from agent.util.ids import timestamp

    with session.runtime() as runtime:
        return forget(session.project.home, plan, tuned, open_memory=runtime.open_memory, at=timestamp(), pages=pages)


def _view(plan: ErasurePlan) -> dict[str, Any]:
    return {
        "runs": dict(plan.runs.runs),
        "shown_to": list(plan.runs.recalled),
        "workspaces": [str(path) for path in plan.workspaces],
        "documents": [asdict(document) for document in plan.documents],
        "mentions": [asdict(document) for document in plan.mentions],
        "datasets": [{"name": dataset.name, "examples": list(dataset.examples)} for dataset in plan.learnt.datasets],
        "files": [str(path) for path in plan.learnt.files],
        "adapters": [asdict(adapter) for adapter in plan.learnt.adapters],
        "tasks": [_task_view(task) for task in plan.learnt.tasks],
        "commands": list(plan.learnt.commands),
        "suite": None if plan.learnt.suite is None else str(plan.learnt.suite),
    }


def _task_view(task: TaskTrace) -> dict[str, Any]:
    return {**asdict(task), "folder": str(task.folder), "data": [str(path) for path in task.data]}


def _lines(plan: ErasurePlan, arguments: Namespace) -> Iterator[str]:
    learnt = plan.learnt
    if plan.goes(pages=arguments.pages):
        yield "Would be removed:" if arguments.dry_run else "To be removed:"
        reasons = Counter(plan.runs.runs.values())
        of_runs = ", ".join(f"{count} by {reason}" for reason, count in reasons.items())
        yield f"  {len(plan.runs.runs)} runs{f' ({of_runs})' if of_runs else ''}, {len(plan.workspaces)} workspaces"
        if plan.runs.recalled:
            yield f"  their parts in the prompts of {len(plan.runs.recalled)} other runs"
        for dataset in learnt.datasets:
            yield f"  dataset {dataset.name}, with examples of {len(dataset.examples)} of the runs"
        yield from (f"  {path}" for path in learnt.files)
        yield from (f"  document {line}" for line in map(_document, plan.documents))
    else:
        yield "There is nothing to remove."
    if plan.mentions:
        yield "Documents that mention the ID, which stay unless --documents is given:"
        yield from (f"  {line}" for line in map(_document, plan.mentions))
    if learnt.suite is not None:
        yield f"The suite {learnt.suite} mentions the ID; it is your own file and stays."
    if learnt.adapters:
        yield "Adapters, which stay:"
        yield from (f"  {line}" for adapter in learnt.adapters for line in _adapter(adapter))
    if learnt.tasks:
        yield "Trained tasks, which stay:"
        yield from (f"  {line}" for task in learnt.tasks for line in _task(task))
    if learnt.pages and not arguments.pages:
        yield f"To remove these pages: ratchet forget --subject {shlex.quote(arguments.subject)} --pages"
    if learnt.commands:
        yield "Commands to train and serve without the runs, once they are removed:"
        yield from (f"  {command}" for command in learnt.commands)


def _document(document: DocumentMatch) -> str:
    tenant = f" of tenant {document.tenant}" if document.tenant else ""
    file = Path(document.folder, document.name)
    again = (
        f"; {file} is still there, and `ratchet docs sync` adds it again" if document.folder and file.exists() else ""
    )
    return f"{document.name}{tenant} ({document.place}){again}"


def _adapter(adapter: AdapterTrace) -> Iterator[str]:
    parts = [f"{adapter.id} ({adapter.state}{', served' if adapter.served else ''})"]
    if adapter.runs:
        parts.append(f"trained on {adapter.runs} of the runs")
    if adapter.earlier:
        parts.append(f"trained on {adapter.earlier} runs that were removed earlier")
    others = [id for id in adapter.through if id != adapter.id]
    if others:
        parts.append(f"through {', '.join(others)}")
    if adapter.unknown:
        parts.append(
            "depends on a dataset or adapter that no longer exists, so it is unknown whether it was trained on them"
        )
    yield "; ".join(parts)
    yield from (f"  contains text in {page}" for page in adapter.pages)


def _task(task: TaskTrace) -> Iterator[str]:
    tools = f", used by {', '.join(task.tools)}" if task.tools else ""
    parts = [f"{task.folder} ({'served' if task.served else 'not served'}{tools})"]
    if task.runs:
        parts.append(f"trained on {task.runs} of the runs")
    if task.earlier:
        parts.append(f"trained on {task.earlier} runs that were removed earlier")
    if task.unknown:
        parts.append(
            "its training data is not recorded or no longer exists, so it is unknown whether it was trained on them"
        )
    yield "; ".join(parts)
    for path in task.data:
        yield f"  trained on {path}, which mentions the ID; it is your own file: correct it, then `ratchet task train`"
    yield from (f"  contains text in {page}" for page in task.pages)
