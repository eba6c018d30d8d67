"""The registry of adapters: the state of each, and which one is served.

`Registry.active` returns a sealed folder that verifies, or the base. Imports no torch. Does not protect from someone
who may write to the registry, and does not lock between machines: `fcntl` locks work on one.
"""

from __future__ import annotations

import fcntl
import json
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from agent.errors import AdapterError
from agent.registry.artifact import CONFIG, verify
from agent.util.atomic_files import write_whole

REGISTRY_VERSION = 1
_SETTLED_NANOSECONDS = 100_000_000


class State(StrEnum):
    """The state of an adapter."""

    TRAINED = "trained"
    GATED = "gated"
    CANARY = "canary"
    ACTIVE = "active"
    RETIRED = "retired"
    REJECTED = "rejected"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.TRAINED: frozenset({State.GATED, State.REJECTED}),
    State.GATED: frozenset({State.CANARY, State.ACTIVE, State.REJECTED}),
    State.CANARY: frozenset({State.ACTIVE, State.REJECTED}),
    State.ACTIVE: frozenset({State.RETIRED}),
    # Active again by a rollback only; a new promotion needs a new gate.
    State.RETIRED: frozenset({State.ACTIVE, State.GATED}),
    State.REJECTED: frozenset(),
}
"""Allowed transitions. At most one adapter is active and at most one is the canary."""


@dataclass(frozen=True)
class Adapter:
    """An entry of the registry."""

    id: str
    state: State
    folder: Path
    base: str
    base_revision: str
    parent: str | None
    tensors_sha256: str
    config_sha256: str
    added_at: str
    merged: tuple[str, ...] = ()
    """Ids of the adapters that it is the weighted sum of."""


@dataclass(frozen=True)
class Change:
    """One transition in the registry's history."""

    adapter: str
    before: State | None
    """None when the adapter was added."""
    after: State
    reason: str
    at: str


@dataclass(frozen=True)
class Serving:
    """The adapter to serve now."""

    adapter: Adapter | None
    """None is the base."""
    warning: str | None = None
    """Set when it is not the active adapter: the reason."""


class Registry:
    """The adapters of a home, their states, and the history of all transitions.

    Stored in `registry.json` beside the adapter folders. Threads and processes may share it.
    """

    def __init__(self, folder: Path, *, listed_by: str = "ratchet adapters") -> None:
        """`listed_by` is the command that error messages name for listing the adapters."""
        self.folder = folder
        self._listed_by = listed_by
        self._path = folder / "registry.json"
        self._verified: dict[str, tuple[object, str | None]] = {}
        self._read: tuple[object, _Book] | None = None
        self._mutex = threading.Lock()

    def add(self, adapter_folder: Path, *, reason: str = "trained") -> Adapter:
        """Verify a sealed folder and add it as trained. It must be in the registry's folder."""
        manifest = verify(adapter_folder)
        if adapter_folder.resolve() != (self.folder / manifest.id).resolve():
            raise AdapterError(
                f"adapter {manifest.id} lies in {adapter_folder}; move it to {self.folder / manifest.id}"
            )
        adapter = Adapter(
            id=manifest.id,
            state=State.TRAINED,
            folder=self.folder / manifest.id,
            base=manifest.base,
            base_revision=manifest.base_revision,
            parent=manifest.parent,
            tensors_sha256=manifest.tensors_sha256,
            config_sha256=manifest.files[CONFIG],
            added_at=manifest.created_at,
            merged=tuple(manifest.merged),
        )
        with self._writing() as book:
            if adapter.id in book.adapters:
                raise AdapterError(f"adapter {adapter.id} is in the registry already; a new one needs a new id")
            book.adapters[adapter.id] = adapter
            book.history.append(Change(adapter.id, None, State.TRAINED, reason, manifest.created_at))
        return adapter

    def get(self, id: str) -> Adapter:
        """Return the adapter with this id, or with a unique beginning of it. Raises AdapterError for others."""
        return _find(self._book(), id, self._listed_by)

    def list(self) -> tuple[Adapter, ...]:
        """Return all adapters in the order they were added."""
        return tuple(self._book().adapters.values())

    def history(self) -> tuple[Change, ...]:
        """Return every transition, oldest first."""
        return tuple(self._book().history)

    def active(self) -> Adapter | None:
        """Return the adapter to serve, verified; None is the base. `serving` returns the warning too."""
        return self.serving().adapter

    def canary(self) -> Adapter | None:
        """Return the canary, verified; None when there is none or it does not verify."""
        trial = next((one for one in self.list() if one.state is State.CANARY), None)
        return trial if trial and self._fault(trial) is None else None

    def serving(self) -> Serving:
        """Return the active adapter; when it does not verify, the newest earlier one that does, or the base.

        Cheap enough for each task: files are hashed again only when their size or times changed.
        """
        book = self._book()
        faults: list[str] = []
        for id in reversed(book.line):
            adapter = book.adapters[id]
            if adapter.state not in (State.ACTIVE, State.RETIRED):
                continue
            fault = self._fault(adapter)
            if fault is None:
                return Serving(adapter, _warning(faults, f"adapter {id}"))
            faults.append(fault)
        return Serving(None, _warning(faults, "the base"))

    def line(self) -> tuple[Adapter, ...]:
        """Return what is served, then what each rollback would serve; after the last that is the base."""
        book = self._book()
        adapters = (book.adapters[id] for id in reversed(book.line))
        return tuple(one for one in adapters if one.state in (State.ACTIVE, State.RETIRED) and self._fault(one) is None)

    def transition(self, id: str, to: State, reason: str, at: str) -> Adapter:
        """Change the state of an adapter. `promote` and `rollback` change which one is active."""
        if to is State.ACTIVE:
            return self.promote(id, reason, at)
        with self._writing() as book:
            adapter = _find(book, id, self._listed_by)
            _check_transition(adapter, to)
            if to is State.RETIRED:
                raise AdapterError(f"adapter {adapter.id} is active; promote another, or roll back")
            trial = next((one for one in book.adapters.values() if one.state is State.CANARY), None)
            if to is State.CANARY and trial:
                raise AdapterError(f"adapter {trial.id} is the canary; promote or reject it first")
            return _move(book, adapter, to, reason, at)

    def promote(self, id: str, reason: str, at: str) -> Adapter:
        """Serve a gated or canary adapter, and retire the one that was active."""
        with self._writing() as book:
            adapter = _find(book, id, self._listed_by)
            _check_transition(adapter, State.ACTIVE)
            if adapter.state is State.RETIRED:
                raise AdapterError(f"adapter {adapter.id} is retired; gate it again to promote it, or roll back to it")
            fault = self._fault(adapter)
            if fault is not None:
                raise AdapterError(f"adapter {adapter.id} cannot be promoted: {fault}")
            before = _active(book)
            if before is not None:
                _move(book, before, State.RETIRED, f"{adapter.id} was promoted", at)
            book.line.append(adapter.id)
            return _move(book, adapter, State.ACTIVE, reason, at)

    def rollback(self, reason: str, at: str) -> Adapter | None:
        """Retire the active adapter and serve the one before it; None when that is the base.

        Earlier adapters that were rejected or do not verify are skipped. A second rollback goes further back.
        """
        with self._writing() as book:
            current = _active(book)
            if current is None:
                raise AdapterError("the base is served; there is nothing to roll back")
            book.line.pop()
            _move(book, current, State.RETIRED, reason, at)
            while book.line:
                earlier = book.adapters[book.line[-1]]
                if earlier.state is State.RETIRED and self._fault(earlier) is None:
                    return _move(book, earlier, State.ACTIVE, f"{current.id} was rolled back", at)
                book.line.pop()
            return None

    def reject(self, id: str, reason: str, at: str) -> Adapter:
        """Reject a trained, gated or canary adapter for good."""
        return self.transition(id, State.REJECTED, reason, at)

    def _book(self) -> _Book:
        try:
            mark = _mark(self._path)
        except FileNotFoundError:
            return _Book({}, [], [])
        known = self._read
        if known is None or known[0] != mark:
            # The mark was taken before reading: a change in between is read again next time, never missed.
            self._read = known = (mark, _read_book(self._path, self.folder))
        return known[1]

    @contextmanager
    def _writing(self) -> Iterator[_Book]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "registry.lock").open("ab")
        except OSError as fault:
            raise AdapterError(f"cannot write to {self.folder} ({fault.strerror}); check its permissions") from fault
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            book = _read_book(self._path, self.folder) if self._path.exists() else _Book({}, [], [])
            yield book
            write_whole(self._path, _book_json(book), self.folder / ".registry.json.new")

    def _fault(self, adapter: Adapter) -> str | None:
        """Return the fault of an adapter's folder. Hashes are computed only for changed files."""
        try:
            mark = _marks(adapter.folder)
        except OSError as fault:
            return f"{adapter.folder} cannot be read ({fault.strerror})"
        with self._mutex:
            known = self._verified.get(adapter.id)
            if known is None or known[0] != mark:
                known = (mark, _compare(adapter))
                # File times tick in milliseconds: a file this new could change again under the same time.
                if time.time_ns() - max(one[-1] for one in mark) > _SETTLED_NANOSECONDS:
                    self._verified[adapter.id] = known
            return known[1]


@dataclass
class _Book:
    """The content of `registry.json`. `line` has what was made active, oldest first, without what was rolled back."""

    adapters: dict[str, Adapter]
    line: list[str]
    history: list[Change]


def _find(book: _Book, id: str, listed_by: str) -> Adapter:
    if id in book.adapters:
        return book.adapters[id]
    found = [known for known in book.adapters if id and known.startswith(id)]
    if len(found) == 1:
        return book.adapters[found[0]]
    if found:
        raise AdapterError(f"{id!r} begins several adapters ({', '.join(found[:5])}); give more of the id")
    raise AdapterError(f"there is no adapter {id!r}; `{listed_by}` lists those there are")


def _active(book: _Book) -> Adapter | None:
    return next((one for one in book.adapters.values() if one.state is State.ACTIVE), None)


def _check_transition(adapter: Adapter, to: State) -> None:
    if to not in TRANSITIONS[adapter.state]:
        allowed = ", ".join(sorted(TRANSITIONS[adapter.state])) or "nothing"
        raise AdapterError(f"adapter {adapter.id} is {adapter.state}, which {to} cannot follow; allowed: {allowed}")


def _move(book: _Book, adapter: Adapter, to: State, reason: str, at: str) -> Adapter:
    moved = replace(adapter, state=to)
    book.adapters[adapter.id] = moved
    book.history.append(Change(adapter.id, adapter.state, to, reason, at))
    return moved


def _warning(faults: Sequence[str], served: str) -> str | None:
    return f"{'; '.join(faults)}; {served} is served instead" if faults else None


def _compare(adapter: Adapter) -> str | None:
    try:
        manifest = verify(adapter.folder)
    except AdapterError as fault:
        return str(fault)
    except OSError as fault:
        return f"{adapter.folder} cannot be read ({fault.strerror})"
    found = (manifest.id, manifest.tensors_sha256, manifest.files[CONFIG])
    if found != (adapter.id, adapter.tensors_sha256, adapter.config_sha256):
        return f"{adapter.folder} was sealed anew since it was added; add it under a new id"
    return None


def _read_book(path: Path, folder: Path) -> _Book:
    try:
        data = json.loads(path.read_bytes())
        if data["version"] != REGISTRY_VERSION:
            raise AdapterError(
                f"{path} has version {data['version']}, this code reads {REGISTRY_VERSION}; upgrade ratchet-loop"
            )
        adapters = [
            Adapter(
                **{
                    **row,
                    "state": State(row["state"]),
                    "folder": folder / row["id"],
                    "merged": tuple(row.get("merged", ())),
                }
            )
            for row in data["adapters"]
        ]
        history = [
            Change(
                **{
                    **row,
                    "before": State(row["before"]) if row["before"] else None,
                    "after": State(row["after"]),
                }
            )
            for row in data["history"]
        ]
        book = _Book({adapter.id: adapter for adapter in adapters}, list(data["line"]), history)
        current = [adapter.id for adapter in adapters if adapter.state is State.ACTIVE]
        if current != book.line[-1:] or not set(book.line) <= set(book.adapters):
            raise ValueError("its active adapter and its line disagree")
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise AdapterError(f"{path} cannot be read ({fault}); restore a copy of it") from fault
    return book


def _book_json(book: _Book) -> bytes:
    rows = [asdict(adapter) for adapter in book.adapters.values()]
    for row in rows:
        del row["folder"]
    data = {
        "version": REGISTRY_VERSION,
        "line": book.line,
        "adapters": rows,
        "history": [asdict(change) for change in book.history],
    }
    return json.dumps(data, indent=1).encode()


def _mark(path: Path) -> tuple[str, int, int, int, int, int]:
    """Changes whenever the file does; the change time cannot be set by hand."""
    found = path.lstat()
    return path.name, found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _marks(folder: Path) -> tuple[tuple[str, int, int, int, int, int], ...]:
    marks = [_mark(folder)]
    for path in sorted(folder.iterdir()):
        marks.append(_mark(path))
        if stat.S_ISDIR(path.lstat().st_mode):
            marks += [_mark(inner) for inner in sorted(path.iterdir())]
    return tuple(marks)
