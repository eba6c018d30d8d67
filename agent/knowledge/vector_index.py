"""An index of vectors as a thing that can be thrown away: it is handed ids and vectors, and says whether it agrees.

Chroma, embedded or a server. One process at a time touches it, behind a lock that is held for an operation and not
for a lifetime. A stamp in the collection says what it was made from; it is spoiled before a change and set after it,
so a crash in between is seen. What is missing, broken or of another stamp is for the caller to rebuild. Not for a
folder shared by two machines.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from agent.encoders.encoder import Vectors
from agent.errors import MemoryIndexError

COLLECTION = "chunks"

Part = tuple[Sequence[str], Vectors]
"""Ids of chunks and as many vectors [n, d]."""
_SPOILED = -1


@dataclass(frozen=True)
class Stamp:
    """What an index was made from."""

    generation: int
    chunks: int
    encoder: str


@dataclass(frozen=True)
class Hit:
    """A chunk near the query."""

    id: str
    score: float
    """Cosine, -1 to 1."""


class IndexLock:
    """A lock on a file, held against other processes and against other threads alike."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self, *, seconds: float) -> Iterator[bool]:
        """Wait at most so long for the lock; gives whether it is held."""
        descriptor = self._acquire(seconds)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @contextmanager
    def required(self, *, seconds: float = 0.8) -> Iterator[None]:
        """The same, but raises MemoryIndexError when another holds it."""
        with self.held(seconds=seconds) as held:
            if not held:
                raise MemoryIndexError(
                    f"the documents' index is locked by PID {self._holder()}, which is changing it; "
                    "wait until it is done, or end it, and try again"
                )
            yield

    def _acquire(self, seconds: float) -> int | None:
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A description of its own for each holder: that is what makes flock hold between threads too.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(descriptor)
                    return None
                time.sleep(0.005)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
                return descriptor

    def _holder(self) -> str:
        try:
            return self._path.read_text(encoding="ascii").strip() or "unknown"
        except (OSError, ValueError):
            return "unknown"


class VectorIndex(Protocol):
    """Finds the nearest of the vectors it was handed. Every method needs the lock to be held.

    A failure of what lies behind it is raised as MemoryIndexError.
    """

    def open(self) -> Stamp | None:
        """Open what is there. None when it is missing, broken or half written."""
        ...

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        """Delete what is there and index these."""
        ...

    def apply(self, part: Part, removed: Sequence[str], stamp: Stamp) -> None:
        """Take chunks in and out of an open index."""
        ...

    def search(self, vector: Vectors, k: int) -> list[Hit]:
        """The k nearest of an open index, best first."""
        ...

    def close(self) -> None: ...


class _Collection:
    """What an embedded Chroma and a Chroma server have in common."""

    def __init__(self) -> None:
        self._client: Any = None
        self._collection: Any = None

    def apply(self, part: Part, removed: Sequence[str], stamp: Stamp) -> None:
        with _explained("changed"):
            self._collection.modify(metadata=_metadata(stamp, _SPOILED))
            size = self._batch()
            for start in range(0, len(removed), size):
                self._collection.delete(ids=list(removed[start : start + size]))
            self._add(part)
            self._collection.modify(metadata=_metadata(stamp, stamp.generation))

    def search(self, vector: Vectors, k: int) -> list[Hit]:
        with _explained("searched"):
            found = self._collection.query(query_embeddings=vector.reshape(1, -1), n_results=k, include=["distances"])
        pairs = zip(found["ids"][0], found["distances"][0], strict=True)
        return [Hit(key, max(-1.0, min(1.0, 1.0 - float(distance)))) for key, distance in pairs]

    def close(self) -> None:
        client, self._client, self._collection = self._client, None, None
        if client is not None:
            client.close()

    def _opened(self, name: str) -> Stamp | None:
        """The stamp of a collection, if it is whole."""
        self._collection = self._client.get_collection(name, embedding_function=None)
        notes = self._collection.metadata or {}
        generation, encoder = notes.get("generation"), notes.get("encoder")
        if not isinstance(generation, int) or generation == _SPOILED or not isinstance(encoder, str):
            return None
        stamp = Stamp(generation, int(notes.get("chunks", -1)), encoder)
        return stamp if self._answers(stamp) else None

    def _fill(self, name: str, parts: Iterable[Part], stamp: Stamp) -> None:
        """Make a collection. It is whole once its stamp says so."""
        self._collection = self._client.create_collection(
            name,
            embedding_function=None,
            metadata=_metadata(stamp, _SPOILED),
            configuration={"hnsw": {"space": "cosine"}},
        )
        for part in parts:
            self._add(part)
        self._collection.modify(metadata=_metadata(stamp, stamp.generation))

    def _answers(self, stamp: Stamp) -> bool:
        """Whether the vectors themselves can be read: a stored one must find itself."""
        if self._collection.count() != stamp.chunks:
            return False
        if not stamp.chunks:
            return True
        vector = self._collection.get(limit=1, include=["embeddings"])["embeddings"][0]
        hits = self.search(vector, min(5, stamp.chunks))
        return len(hits) == min(5, stamp.chunks) and hits[0].score > 0.999

    def _add(self, part: Part) -> None:
        ids, vectors = part
        size = self._batch()
        for start in range(0, len(ids), size):
            self._collection.upsert(ids=list(ids[start : start + size]), embeddings=vectors[start : start + size])

    def _batch(self) -> int:
        return int(self._client.get_max_batch_size())


class ChromaIndex(_Collection):
    """An embedded Chroma collection in `folder`, which belongs to it: a rebuild deletes what is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def open(self) -> Stamp | None:
        self.close()
        made = [path.parent for path in self._folder.glob("*/chroma.sqlite3")]
        if len(made) != 1:
            return None
        try:
            with _explained("opened"):
                self._connect(made[0])
                return self._opened(COLLECTION)
        except MemoryIndexError:
            self.close()
            return None

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        self.close()
        with _explained("rebuilt"):
            shutil.rmtree(self._folder, ignore_errors=True)
            # A new name each time: Chroma keeps what it has opened, or failed to open, by its path.
            folder = self._folder / uuid.uuid4().hex[:12]
            folder.mkdir(parents=True)
            self._connect(folder)
            self._fill(COLLECTION, parts, stamp)

    def _connect(self, folder: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        self._client = chromadb.PersistentClient(
            path=str(folder), settings=Settings(anonymized_telemetry=False, allow_reset=False)
        )


class ChromaServerIndex(_Collection):
    """A collection of a Chroma server, by the name that this project gave it; a rebuild deletes it."""

    def __init__(self, address: str, collection: str) -> None:
        """`address` is such as `http://127.0.0.1:8000`."""
        super().__init__()
        self._address = address
        self._name = collection

    def open(self) -> Stamp | None:
        """None, too, when the server does not know the collection; raises when it does not answer."""
        self.close()
        with _explained("reached", self._address):
            self._connect()
            if not self._is_known():
                return None
        try:
            with _explained("opened"):
                return self._opened(self._name)
        except MemoryIndexError:
            return None

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        self.close()
        with _explained("rebuilt", self._address):
            self._connect()
            if self._is_known():
                self._client.delete_collection(self._name)
            self._fill(self._name, parts, stamp)

    def _connect(self) -> None:
        import chromadb
        from chromadb.config import Settings

        address = urlsplit(self._address)
        secure = address.scheme == "https"
        self._client = chromadb.HttpClient(
            host=address.hostname or "localhost",
            port=address.port or (443 if secure else 8000),
            ssl=secure,
            settings=Settings(anonymized_telemetry=False),
        )

    def _is_known(self) -> bool:
        return self._name in {one.name for one in self._client.list_collections()}


def _metadata(stamp: Stamp, generation: int) -> dict[str, int | str]:
    return {"generation": generation, "chunks": stamp.chunks, "encoder": stamp.encoder}


@contextmanager
def _explained(done: str, where: str = "") -> Iterator[None]:
    """Chroma raises anything, a panic of its Rust part (no Exception) included."""
    try:
        yield
    except MemoryIndexError:
        raise
    except BaseException as fault:
        if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
            advice = f"check that a Chroma server answers at {where}" if where else "run `ratchet docs rebuild`"
            raise MemoryIndexError(f"the documents' index cannot be {done} ({fault}); {advice}") from fault
        raise
