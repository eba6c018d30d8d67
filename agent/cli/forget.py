"""`forget`: what would go, a question, and what went."""

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
    from agent.privacy.erasure import Found, FoundDocument, LearntAdapter, LearntTask, Tuned


def forget(arguments: Namespace, session: Session, tuned: Tuned) -> int:
    """Remove what is a subject's, after asking; `--dry-run` only tells."""
    from agent.privacy.erasure import find
    from agent.privacy.redaction import Scrubber
    from agent.privacy.subject import Subject

    asks = not (arguments.yes or arguments.dry_run)
    if asks and (arguments.json or not sys.stdin.isatty()):
        raise UsageError("nobody can be asked here; look with --dry-run, then give --yes")
    project = session.project
    subject = Subject(arguments.subject)
    if project.settings.privacy.scrub and Scrubber().mask(subject.id) != subject.id:
        note(f"The log masks what looks like {subject.id}, so that runs are not found by it; give their id as well.")
    there = project.home.root.is_dir()
    # Else a tuning could write a dataset out of what is about to go.
    with nullcontext() if arguments.dry_run or not there else tuned.alone():
        found = find(
            project.home,
            subject,
            tuned,
            documents=arguments.documents,
            own_tenant=project.settings.memory.tenant,
        )
        goes = found.goes(pages=arguments.pages)
        if not arguments.json:
            result("\n".join(_told(found, arguments)))
        if asks and goes and input("Remove this for good? [y/N] ").strip().lower() not in ("y", "yes"):
            note("Nothing was removed.")
            return 0
        done = goes and not arguments.dry_run
        emptied = _remove(found, session, tuned, pages=arguments.pages) if done else True
    if arguments.json:
        result_json({**_view(found), "removed": done, "log_emptied": emptied})
    elif done:
        result("Removed. A service that is running keeps what it has in memory until it is started anew.")
    if not emptied:
        note(
            "Another process was reading the store, and its write-ahead log could not be emptied; "
            "end that process, and the log goes with it."
        )
    return 0


def _remove(found: Found, session: Session, tuned: Tuned, *, pages: bool) -> bool:
    from agent.privacy.erasure import forget
    from agent.util.ids import timestamp

    with session.runtime() as runtime:
        return forget(session.project.home, found, tuned, open_memory=runtime.open_memory, at=timestamp(), pages=pages)


def _view(found: Found) -> dict[str, Any]:
    return {
        "runs": dict(found.runs.runs),
        "shown_to": list(found.runs.recalled),
        "workspaces": [str(path) for path in found.workspaces],
        "documents": [asdict(one) for one in found.documents],
        "mentions": [asdict(one) for one in found.mentions],
        "datasets": [{"name": one.name, "examples": list(one.examples)} for one in found.learnt.datasets],
        "files": [str(path) for path in found.learnt.files],
        "adapters": [asdict(one) for one in found.learnt.adapters],
        "tasks": [_task_view(one) for one in found.learnt.tasks],
        "commands": list(found.learnt.commands),
        "suite": None if found.learnt.suite is None else str(found.learnt.suite),
    }


def _task_view(one: LearntTask) -> dict[str, Any]:
    return {**asdict(one), "folder": str(one.folder), "data": [str(path) for path in one.data]}


def _told(found: Found, arguments: Namespace) -> Iterator[str]:
    learnt = found.learnt
    if found.goes(pages=arguments.pages):
        yield "Would go:" if arguments.dry_run else "To go:"
        places = Counter(found.runs.runs.values())
        of_runs = ", ".join(f"{count} by {reason}" for reason, count in places.items())
        yield f"  {len(found.runs.runs)} runs{f' ({of_runs})' if of_runs else ''}, {len(found.workspaces)} workspaces"
        if found.runs.recalled:
            yield f"  what {len(found.runs.recalled)} other runs were shown of them"
        for dataset in learnt.datasets:
            yield f"  dataset {dataset.name}, with examples of {len(dataset.examples)} of the runs"
        yield from (f"  {path}" for path in learnt.files)
        yield from (f"  document {line}" for line in map(_document, found.documents))
    else:
        yield "There is nothing to remove."
    if found.mentions:
        yield "Documents that name the ID and stay, unless --documents is given:"
        yield from (f"  {line}" for line in map(_document, found.mentions))
    if learnt.suite is not None:
        yield f"The suite {learnt.suite} names the ID; it is your own file and stays."
    if learnt.adapters:
        yield "Adapters, which stay:"
        yield from (f"  {line}" for one in learnt.adapters for line in _adapter(one))
    if learnt.tasks:
        yield "Trained tasks, which stay:"
        yield from (f"  {line}" for one in learnt.tasks for line in _task(one))
    if learnt.pages and not arguments.pages:
        yield f"To take these pages out: ratchet forget --subject {shlex.quote(arguments.subject)} --pages"
    if learnt.commands:
        yield "To train and serve without the runs, once they are removed:"
        yield from (f"  {command}" for command in learnt.commands)


def _document(one: FoundDocument) -> str:
    tenant = f" of tenant {one.tenant}" if one.tenant else ""
    file = Path(one.folder, one.name)
    again = f"; {file} is still there, and `ratchet docs sync` adds it again" if one.folder and file.exists() else ""
    return f"{one.name}{tenant} ({one.place}){again}"


def _adapter(one: LearntAdapter) -> Iterator[str]:
    parts = [f"{one.id} ({one.state}{', served' if one.served else ''})"]
    if one.runs:
        parts.append(f"learnt of {one.runs} of the runs")
    if one.earlier:
        parts.append(f"learnt of {one.earlier} runs that were forgotten before")
    others = [id for id in one.through if id != one.id]
    if others:
        parts.append(f"through {', '.join(others)}")
    if one.unknown:
        parts.append("goes back to a dataset or adapter that is gone, so that it cannot be told whether it did")
    yield "; ".join(parts)
    yield from (f"  holds text in {page}" for page in one.pages)


def _task(one: LearntTask) -> Iterator[str]:
    asked = f", asked by {', '.join(one.tools)}" if one.tools else ""
    parts = [f"{one.folder} ({'served' if one.served else 'not served'}{asked})"]
    if one.runs:
        parts.append(f"learnt of {one.runs} of the runs")
    if one.earlier:
        parts.append(f"learnt of {one.earlier} runs that were forgotten before")
    if one.unknown:
        parts.append("does not say what it was trained on, or that is gone, so that it cannot be told whether it did")
    yield "; ".join(parts)
    for path in one.data:
        yield f"  trained on {path}, which names the ID; it is your own file: mend it, then `ratchet task train` anew"
    yield from (f"  holds text in {page}" for page in one.pages)
