"""The user's documents: `docs add`, `sync`, `list`, `search`, `remove` and `rebuild`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.console import note, result, result_json, table
from agent.cli.session import Session, UsageError

if TYPE_CHECKING:
    from agent.knowledge.knowledge import Memory


def docs(arguments: Namespace, session: Session) -> int:
    return {
        "add": _add,
        "sync": _sync,
        "list": _list,
        "remove": _remove,
        "search": _search,
        "rebuild": _rebuild,
    }[arguments.action](arguments, session)


@contextmanager
def _memory(arguments: Namespace, session: Session) -> Iterator[Memory]:
    with session.runtime() as runtime:
        if arguments.tenant is None:
            yield runtime.memory
            return
        memory = runtime.open_memory(arguments.tenant)
        try:
            yield memory
        finally:
            memory.close()


def _add(arguments: Namespace, session: Session) -> int:
    project = session.project
    folders = (
        [Path(arguments.folder)]
        if arguments.folder
        else [project.resolve(name) for name in project.settings.memory.folders]
    )
    if not folders:
        raise UsageError("no folder of documents is named; give one, or set [memory] folders in ratchet.toml")
    with _memory(arguments, session) as memory:
        return _read(folders, memory, arguments, session)


def _sync(arguments: Namespace, session: Session) -> int:
    """Read every folder again that documents came from, and those of ratchet.toml."""
    project = session.project
    named = [project.resolve(name).resolve() for name in project.settings.memory.folders]
    with _memory(arguments, session) as memory:
        known = sorted({Path(one.folder) for one in memory.list() if one.folder})
        gone = [folder for folder in known if not folder.is_dir()]
        for folder in gone:
            note(f"{folder} is not there any more; its documents stay (`ratchet docs remove NAME` forgets one)")
        folders = list(dict.fromkeys([*named, *(folder for folder in known if folder not in gone)]))
        if not folders:
            raise UsageError("no documents were added from a folder yet; add one with `ratchet docs add FOLDER`")
        return _read(folders, memory, arguments, session)


def _read(folders: Sequence[Path], memory: Memory, arguments: Namespace, session: Session) -> int:
    reports = [
        (
            folder,
            memory.add_folder(
                folder,
                trust=getattr(arguments, "trust", None),
                progress=lambda done, of, name: session.note(f"{done}/{of} {name}"),
            ),
        )
        for folder in folders
    ]
    if arguments.json:
        result_json([{"folder": str(folder), **asdict(report)} for folder, report in reports])
        return 0
    for folder, report in reports:
        for skipped in report.skipped:
            note(f"skipped {skipped.name}: {skipped.reason}")
        result(
            f"{folder}: {len(report.added)} added, {len(report.changed)} changed, {len(report.unchanged)} "
            f"unchanged, {len(report.removed)} removed, {len(report.skipped)} skipped; "
            f"{report.chunks_embedded} passages embedded in {report.seconds:.1f} s"
        )
    return 0


def _list(arguments: Namespace, session: Session) -> int:
    from agent.knowledge.document_store import Shelf, StoredDocument
    from agent.storage.database import open_engine

    path = session.project.home.database
    tenant = session.project.settings.memory.tenant if arguments.tenant is None else arguments.tenant
    documents: tuple[StoredDocument, ...] = ()
    if path.is_file():
        engine = open_engine(path)
        try:
            documents = Shelf(engine, tenant=tenant).documents()
        finally:
            engine.dispose()
    if arguments.json:
        result_json([asdict(one) for one in documents])
    elif not documents:
        note("There are no documents yet; add a folder with `ratchet docs add FOLDER`.")
    else:
        rows = [[one.name, str(one.chunks), one.trust, one.changed_at, one.folder] for one in documents]
        result(table(rows, ["document", "passages", "trust", "changed", "folder"]))
    return 0


def _remove(arguments: Namespace, session: Session) -> int:
    with _memory(arguments, session) as memory:
        memory.remove(arguments.name)
    if arguments.json:
        result_json({"removed": arguments.name})
    else:
        result(f"removed {arguments.name}")
    return 0


def _search(arguments: Namespace, session: Session) -> int:
    wanted = arguments.limit or session.project.settings.memory.passages
    with _memory(arguments, session) as memory:
        found = memory.search(arguments.query, wanted, where=dict(map(_pair, arguments.where)))
    if arguments.json:
        result_json([asdict(one) for one in found])
        return 0
    if not found:
        note("Nothing found.")
    for passage in found:
        place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
        result(f"{passage.score:.2f}  {place}\n{passage.text}\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not name or not mark:
        raise UsageError(f"--where {text!r} names no value; expected NAME=VALUE, such as trust=own")
    return name, value


def _rebuild(arguments: Namespace, session: Session) -> int:
    with _memory(arguments, session) as memory:
        embedded = memory.rebuild()
        documents = len(memory.list())
    if arguments.json:
        result_json({"documents": documents, "embedded": embedded})
    else:
        result(f"indexes of {documents} documents made anew, {embedded} passages embedded anew")
    return 0
