"""Adapters on disk: sealed folders, and the registry that says which one is served.

A folder is whole when its manifest is there, for that is written last; it is safe when it holds nothing but
plain PEFT weights, JSON and a report. `Registry.active` gives a folder whose hashes hold, or the base.
No torch here. Not promised: protection from someone who may write to the registry itself, and locks
between machines; `fcntl` locks hold on one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import stat
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import AdapterError

MANIFEST_VERSION = 1
REGISTRY_VERSION = 1
CONFIG, WEIGHTS, MANIFEST, CARD, REPORT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "README.md",
    "report",
)
REPORT_SUFFIXES = (".json", ".md", ".html", ".png", ".svg")
"""What a file in `report/` may be; it is shown to people and never loaded."""


_SETTLED_NANOSECONDS = 100_000_000


class State(StrEnum):
    """Where an adapter stands."""

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
    # Active again by a rollback alone; to be promoted once more it passes the gate once more.
    State.RETIRED: frozenset({State.ACTIVE, State.GATED}),
    State.REJECTED: frozenset(),
}
"""What may follow each state. At most one adapter is active and at most one is the canary."""


@dataclass(frozen=True)
class Manifest:
    """What a sealed folder holds and where it came from."""

    id: str
    base: str
    base_revision: str
    dataset_hash: str
    parent: str | None
    """The adapter that training started from; None for the bare base."""
    tuning: str
    """Id of the tuning that made it."""
    created_at: str
    code_version: str
    tensors_sha256: str
    """`tensors_hash` of the weights; what the runtime serves must give the same."""
    files: Mapping[str, str]
    """Path inside the folder to SHA-256, the manifest itself left out."""
    version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class Adapter:
    """An adapter as the registry knows it."""

    id: str
    state: State
    folder: Path
    base: str
    base_revision: str
    parent: str | None
    tensors_sha256: str
    config_sha256: str
    added_at: str


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
    """What is to be served now."""

    adapter: Adapter | None
    """None is the base."""
    warning: str | None = None
    """Why it is not the adapter the registry calls active, when it is not."""


def seal(
    folder: Path,
    *,
    id: str,
    base: str,
    base_revision: str,
    dataset_hash: str,
    parent: str | None,
    tuning: str,
    created_at: str,
    code_version: str,
) -> Manifest:
    """Check an adapter folder and write its manifest, last of all. Raises AdapterError when unsafe."""
    files = _list_files(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise AdapterError(f"{folder} has no {name}; an adapter folder needs {CONFIG} and {WEIGHTS}")
    _check_config(folder / CONFIG)
    manifest = Manifest(
        id=id,
        base=base,
        base_revision=base_revision,
        dataset_hash=dataset_hash,
        parent=parent,
        tuning=tuning,
        created_at=created_at,
        code_version=code_version,
        tensors_sha256=tensors_hash(folder / WEIGHTS),
        files={name: _sha256(folder / name, sync=True) for name in files if name != MANIFEST},
    )
    _write_manifest(folder, manifest)
    return manifest


def add_documents(folder: Path, documents: Mapping[str, bytes]) -> Manifest:
    """Put report files or a new model card into a sealed folder, which verifies at every moment between.

    For one writer at a time."""
    for name in documents:
        _check_name(folder, name)
        if not _is_document(name):
            raise AdapterError(f"{name} cannot be added to sealed adapter {folder}; only {CARD} and {REPORT}/ can")
    manifest = verify(folder)
    kept = {name: digest for name, digest in manifest.files.items() if name not in documents}
    _write_manifest(folder, replace(manifest, files=kept))
    for name, content in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write_whole(folder / name, content, _scratch(folder))
    new = {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}
    manifest = replace(manifest, files={**kept, **new})
    _write_manifest(folder, manifest)
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a folder that is whole and safe. Raises AdapterError, naming the file, for any other.

    Weights, configuration and every file the manifest names must have the hashes it gives. A document (model
    card, report) may be there without being named: it is shown to people, never loaded.
    """
    files = _list_files(folder)
    manifest = _read_manifest(folder, files)
    for name in (CONFIG, WEIGHTS):
        if name not in manifest.files:
            raise AdapterError(f"the manifest of {folder} does not name {name}; train the adapter again")
    for name, digest in manifest.files.items():
        if name not in files:
            raise AdapterError(f"{folder} lacks {name}, which its manifest names; copy the folder again")
        if _sha256(folder / name) != digest:
            raise AdapterError(f"{folder / name} is not what was sealed (its SHA-256 differs); copy it again")
    _check_config(folder / CONFIG)
    if tensors_hash(folder / WEIGHTS) != manifest.tensors_sha256:
        raise AdapterError(f"the tensors of {folder} are not those its manifest names; copy the folder again")
    return manifest


def hash_tensors(tensors: Iterable[tuple[str, str, Sequence[int], bytes | memoryview]]) -> str:
    """SHA-256, in hex, over tensors given as (name, dtype, shape, bytes); their order does not matter.

    Hashed is, with every number an unsigned 64-bit little-endian integer:

        b"ratchet-tensors-1\\n", then for each tensor, by name in the order of its UTF-8 bytes:
        length of the name, the name in UTF-8, length of the dtype, the dtype as safetensors spells it
        ("F32", "BF16", "F16", ...), number of dimensions, each dimension, number of bytes,
        the elements, little-endian, row-major, contiguous.

    From a live torch tensor `t` on a little-endian machine the bytes are
    `t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()`.
    """
    digest = hashlib.sha256(b"ratchet-tensors-1\n")
    for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0].encode()):
        for label in (name.encode(), dtype.encode()):
            digest.update(struct.pack("<Q", len(label)) + label)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        digest.update(struct.pack(f"<Q{len(shape)}QQ", len(shape), *shape, size))
        digest.update(data)
    return digest.hexdigest()


def tensors_hash(path: Path) -> str:
    """`hash_tensors` of a safetensors file. Metadata and the order in the file do not count.

    Raises AdapterError unless the header is sound and the tensors fill the rest of the file without a gap.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            entries, start = _read_header(file, size, path)
            return hash_tensors(_read_tensors(file, entries, start))
    except OSError as fault:
        raise AdapterError(f"{path} cannot be read ({fault.strerror})") from fault


class Registry:
    """The adapters of one home, the state of each, and every transition there was.

    Kept in `registry.json` beside the adapter folders. Threads and processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "registry.json"
        self._verified: dict[str, tuple[object, str | None]] = {}
        self._read: tuple[object, _Book] | None = None
        self._mutex = threading.Lock()

    def add(self, adapter_folder: Path, *, reason: str = "trained") -> Adapter:
        """Verify a sealed folder and take it in as trained. It must lie in the registry's own folder."""
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
        )
        with self._writing() as book:
            if adapter.id in book.adapters:
                raise AdapterError(f"adapter {adapter.id} is in the registry already; a new one needs a new id")
            book.adapters[adapter.id] = adapter
            book.history.append(Change(adapter.id, None, State.TRAINED, reason, manifest.created_at))
        return adapter

    def get(self, id: str) -> Adapter:
        """By its id, or by a beginning no other has."""
        return _find(self._book(), id)

    def list(self) -> tuple[Adapter, ...]:
        """In the order they were added."""
        return tuple(self._book().adapters.values())

    def history(self) -> tuple[Change, ...]:
        """Every transition, oldest first."""
        return tuple(self._book().history)

    def active(self) -> Adapter | None:
        """The adapter to serve, its hashes checked; None is the base. `serving` tells of a fall-back too."""
        return self.serving().adapter

    def canary(self) -> Adapter | None:
        """The adapter on trial, its hashes checked; None when there is none, or it is broken."""
        trial = next((one for one in self.list() if one.state is State.CANARY), None)
        return trial if trial and self._fault(trial) is None else None

    def serving(self) -> Serving:
        """The active adapter; when it does not verify, the one before it that does, or the base, and why.

        Cheap enough to ask before each task: files are hashed again only when their size or times changed.
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

    def transition(self, id: str, to: State, reason: str, at: str) -> Adapter:
        """Move an adapter on. To active is `promote`; from active is `rollback` or another's promotion."""
        if to is State.ACTIVE:
            return self.promote(id, reason, at)
        with self._writing() as book:
            adapter = _find(book, id)
            _check_transition(adapter, to)
            if to is State.RETIRED:
                raise AdapterError(f"adapter {adapter.id} is active; promote another, or roll back")
            trial = next((one for one in book.adapters.values() if one.state is State.CANARY), None)
            if to is State.CANARY and trial:
                raise AdapterError(f"adapter {trial.id} is the canary; promote or reject it first")
            return _move(book, adapter, to, reason, at)

    def promote(self, id: str, reason: str, at: str) -> Adapter:
        """Make a gated or canary adapter the one that is served; the one before it is retired."""
        with self._writing() as book:
            adapter = _find(book, id)
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
        """Retire the active adapter and serve what was served before it; None when that is the base.

        An earlier one that was rejected since, or no longer verifies, is passed over. Rolling back again goes
        further back, never forth to what was rolled back.
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
        """Never serve this one. For an adapter that is trained, gated or the canary."""
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
            _write_whole(self._path, _book_json(book), self.folder / ".registry.json.new")

    def _fault(self, adapter: Adapter) -> str | None:
        """What is wrong with an adapter's folder; hashes are computed only for files that changed."""
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
    """What `registry.json` holds. `line` is what was made active, oldest first, less what was rolled back."""

    adapters: dict[str, Adapter]
    line: list[str]
    history: list[Change]


def _find(book: _Book, id: str) -> Adapter:
    if id in book.adapters:
        return book.adapters[id]
    found = [known for known in book.adapters if id and known.startswith(id)]
    if len(found) == 1:
        return book.adapters[found[0]]
    if found:
        raise AdapterError(f"{id!r} begins several adapters ({', '.join(found[:5])}); give more of the id")
    raise AdapterError(f"there is no adapter {id!r}; `ratchet adapters` lists those there are")


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
            Adapter(**{**row, "state": State(row["state"]), "folder": folder / row["id"]}) for row in data["adapters"]
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


def _list_files(folder: Path) -> list[str]:
    """Paths of the files in the folder. Raises AdapterError, by name, for any that may not be there."""
    if folder.is_symlink() or not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; expected an adapter folder with {MANIFEST}")
    names = []
    for path in sorted(folder.iterdir()):
        if path.name == REPORT and stat.S_ISDIR(path.lstat().st_mode):
            names += [f"{REPORT}/{inner.name}" for inner in sorted(path.iterdir())]
        else:
            names.append(path.name)
    for name in names:
        _check_name(folder, name)
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise AdapterError(f"{folder / name} is not a plain file; links and folders are refused in an adapter")
    return names


def _check_name(folder: Path, name: str) -> None:
    if name in (CONFIG, WEIGHTS, MANIFEST) or _is_document(name):
        return
    raise AdapterError(
        f"{folder / name} may not be in an adapter; allowed are {CONFIG}, {WEIGHTS}, {MANIFEST}, {CARD} "
        f"and {REPORT}/ with {' '.join(REPORT_SUFFIXES)}; remove it if you trust the rest"
    )


def _is_document(name: str) -> bool:
    parts = name.split("/")
    return name == CARD or (
        len(parts) == 2 and parts[0] == REPORT and not parts[1].startswith(".") and Path(name).suffix in REPORT_SUFFIXES
    )


def _read_manifest(folder: Path, files: Sequence[str]) -> Manifest:
    if MANIFEST not in files:
        raise AdapterError(f"{folder} has no {MANIFEST}: it was never finished; train the adapter again")
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        if data["version"] != MANIFEST_VERSION:
            raise AdapterError(
                f"{folder / MANIFEST} has version {data['version']}, this code reads {MANIFEST_VERSION}; "
                "upgrade ratchet-loop"
            )
        manifest = Manifest(**data)
        texts = {
            **manifest.files,
            **{key: value for key, value in data.items() if key not in ("files", "version")},
        }
        wrong = [key for key, value in texts.items() if not isinstance(value, str) and (key, value) != ("parent", None)]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a text")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise AdapterError(f"{folder / MANIFEST} is not a manifest ({fault}); copy the folder again") from fault
    return manifest


def _check_config(path: Path) -> None:
    """Refuse what PEFT would import, or what is no LoRA."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as fault:
        raise AdapterError(f"{path} is not JSON ({fault}); expected the file PEFT writes") from fault
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        found = data.get("peft_type") if isinstance(data, dict) else type(data).__name__
        raise AdapterError(f"{path} has peft_type {found!r}; expected 'LORA', the only kind that is served")
    # PEFT imports the modules these name.
    for key in ("auto_mapping", "megatron_config"):
        if data.get(key) is not None:
            raise AdapterError(f"{path} names code in {key}; only plain LoRA is loaded, so it must be null")
    rank = data.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{path} has r = {rank!r}; expected a whole number above 0")


_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_HEADER_LIMIT = 100_000_000


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """Tensor entries by name, checked, and where the data begins."""
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _HEADER_LIMIT):
            raise ValueError(f"its header claims {length} bytes of {size}")
        entries = json.loads(file.read(length), object_pairs_hook=_no_doubles)
        entries.pop("__metadata__", None)
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, stop), shape = entry["data_offsets"], entry["shape"]
            if not all(type(number) is int and number >= 0 for number in (begin, stop, *shape)):
                raise ValueError(f"tensor {name} has numbers that are not whole or below 0")
            if begin != end or stop - begin != math.prod(shape) * _ITEM_BYTES[entry["dtype"]]:
                raise ValueError(f"tensor {name} does not lie where its shape and its neighbour say")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"its tensors fill {end} bytes, the file holds {size - 8 - length}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise AdapterError(f"{path} is not a sound safetensors file ({fault}); copy it again") from fault
    return entries, 8 + length


def _read_tensors(
    file: BinaryIO, entries: Mapping[str, Any], start: int
) -> Iterator[tuple[str, str, Sequence[int], bytes]]:
    for name, entry in entries.items():
        begin, stop = entry["data_offsets"]
        file.seek(start + begin)
        yield name, entry["dtype"], entry["shape"], file.read(stop - begin)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _sha256(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    # The manifest goes last: its presence tells a reader that the adapter is whole.
    _write_whole(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode(), _scratch(folder))


def _scratch(folder: Path) -> Path:
    """Where a file is written before it is renamed: beside the folder, as a leftover inside is refused."""
    return folder.parent / f".{folder.name}.new"


def _write_whole(path: Path, content: bytes, scratch: Path) -> None:
    """Readers see the old file or the new one, whole, also after a crash. `scratch` is on the same disk."""
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
