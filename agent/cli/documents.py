"""The commands `docs add`, `sync`, `list`, `search`, `remove` and `rebuild`."""

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
    from agent.knowledge.knowledge import Knowledge


def docs(arguments: Namespace, session: Session) -> int:
    """Run one of the actions of `docs`."""
    return {
        "add": _add,
        "sync": _sync,
        "list": _list,
        "remove": _remove,
        "search": _search,
        "rebuild": _rebuild,
    }[arguments.action](arguments, session)


@contextmanager
def _memory(arguments: Namespace, session: Session) -> Iterator[Knowledge]:
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
        raise UsageError("no folder of documents is named; name one, or set [memory] folders in ratchet.toml")
    with _memory(arguments, session) as memory:
        return _read(folders, memory, arguments, session)


def _sync(arguments: Namespace, session: Session) -> int:
    """Read the folders in ratchet.toml, and those that documents were added from, again."""
    project = session.project
    configured = [project.resolve(name).resolve() for name in project.settings.memory.folders]
    with _memory(arguments, session) as memory:
        known = sorted({Path(document.folder) for document in memory.documents() if document.folder})
        missing = [folder for folder in known if not folder.is_dir()]
        for folder in missing:
            note(f"{folder} no longer exists; its documents stay (remove one with `ratchet docs remove NAME`)")
        folders = list(dict.fromkeys([*configured, *(folder for folder in known if folder not in missing)]))
        if not folders:
            raise UsageError("no documents were added from a folder yet; add one with `ratchet docs add FOLDER`")
        return _read(folders, memory, arguments, session)


def _read(folders: Sequence[Path], memory: Knowledge, arguments: Namespace, session: Session) -> int:
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
    from agent.knowledge.document_store import DocumentStore
    from agent.knowledge.schema import StoredDocument
    from agent.storage.database import open_engine

    path = session.project.home.database
    tenant = session.project.settings.memory.tenant if arguments.tenant is None else arguments.tenant
    documents: tuple[StoredDocument, ...] = ()
    if path.is_file():
        engine = open_engine(path)
        try:
            documents = DocumentStore(engine, tenant=tenant).documents()
        finally:
            engine.dispose()
    if arguments.json:
        result_json([asdict(document) for document in documents])
    elif not documents:
        note("There are no documents yet; add a folder with `ratchet docs add FOLDER`.")
    else:
        rows = [[item.name, str(item.chunks), item.trust, item.changed_at, item.folder] for item in documents]
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
    limit = arguments.limit or session.project.settings.memory.passages
    with _memory(arguments, session) as memory:
        passages = memory.search(arguments.query, limit, where=dict(map(_pair, arguments.where)))
    if arguments.json:
        result_json([asdict(passage) for passage in passages])
        return 0
    if not passages:
        note("No passages were found.")
    for passage in passages:
        place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
        result(f"{passage.score:.2f}  {place}\n{passage.text}\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not name or not mark:
        raise UsageError(f"--where {text!r} has no value; expected NAME=VALUE, such as trust=own")
    return name, value


def _rebuild(arguments: Namespace, session: Session) -> int:
    with _memory(arguments, session) as memory:
        embedded = memory.rebuild()
        documents = len(memory.documents())
    if arguments.json:
        result_json({"documents": documents, "embedded": embedded})
    else:
        result(f"indexes of {documents} documents rebuilt, {embedded} passages embedded")
    return 0
