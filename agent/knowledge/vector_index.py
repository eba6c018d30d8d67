"""The vector index in Chroma, embedded or a server. It can be rebuilt from the document store at any time.

One process at a time uses it, under a lock held for a single operation. A stamp in the collection identifies the state
of the store that it agrees with; it is invalidated before a change and set after it, so that a crash in between is
detected. The caller rebuilds an index that is missing, broken or out of date. Does not support a folder shared by two
machines.
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
"""Ids of n chunks and their vectors [n, d]."""
_INVALID = -1


@dataclass(frozen=True)
class Stamp:
    """The state of the store that an index agrees with."""

    generation: int
    chunks: int
    encoder: str


@dataclass(frozen=True)
class ScoredChunk:
    """A result of a vector search."""

    id: str
    score: float
    """Cosine, -1 to 1."""


class IndexLock:
    """A file lock that excludes other processes and other threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def try_hold(self, *, seconds: float) -> Iterator[bool]:
        """Wait at most `seconds` for the lock. Yields whether it is held."""
        descriptor = self._acquire(seconds)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @contextmanager
    def hold(self, *, seconds: float = 0.8) -> Iterator[None]:
        """Wait at most `seconds` for the lock. Raises MemoryIndexError if another process or thread holds it."""
        with self.try_hold(seconds=seconds) as is_held:
            if not is_held:
                raise MemoryIndexError(
                    f"the documents' index is locked by PID {self._holder()}, which is changing it; "
                    "wait until it is done, or end it, and try again"
                )
            yield

    def _acquire(self, seconds: float) -> int | None:
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Each holder opens the file anew: only so does flock exclude threads of the same process.
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
    """Searches vectors. Every method requires the caller to hold the `IndexLock`.

    Failures of the library or server are raised as MemoryIndexError.
    """

    def open(self) -> Stamp | None:
        """Open the index and return its stamp. None if it is missing, broken or incomplete."""
        ...

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        """Replace the index by one of these vectors."""
        ...

    def apply(self, part: Part, removed: Sequence[str], stamp: Stamp) -> None:
        """Add and remove chunks of an open index."""
        ...

    def search(self, vector: Vectors, k: int) -> list[ScoredChunk]:
        """Return the k nearest chunks of an open index, best first."""
        ...

    def close(self) -> None: ...


class _Collection:
    """The part that embedded Chroma and a Chroma server share."""

    def __init__(self) -> None:
        self._client: Any = None
        self._collection: Any = None

    def apply(self, part: Part, removed: Sequence[str], stamp: Stamp) -> None:
        with _translate_faults("changed"):
            self._collection.modify(metadata=_metadata(stamp, _INVALID))
            size = self._batch()
            for start in range(0, len(removed), size):
                self._collection.delete(ids=list(removed[start : start + size]))
            self._add(part)
            self._collection.modify(metadata=_metadata(stamp, stamp.generation))

    def search(self, vector: Vectors, k: int) -> list[ScoredChunk]:
        with _translate_faults("searched"):
            results = self._collection.query(query_embeddings=vector.reshape(1, -1), n_results=k, include=["distances"])
        pairs = zip(results["ids"][0], results["distances"][0], strict=True)
        return [ScoredChunk(key, max(-1.0, min(1.0, 1.0 - float(distance)))) for key, distance in pairs]

    def close(self) -> None:
        client, self._client, self._collection = self._client, None, None
        if client is not None:
            client.close()

    def _open_collection(self, name: str) -> Stamp | None:
        """Open a collection and return its stamp; None if it is incomplete."""
        self._collection = self._client.get_collection(name, embedding_function=None)
        metadata = self._collection.metadata or {}
        generation, encoder = metadata.get("generation"), metadata.get("encoder")
        if not isinstance(generation, int) or generation == _INVALID or not isinstance(encoder, str):
            return None
        stamp = Stamp(generation, int(metadata.get("chunks", -1)), encoder)
        return stamp if self._is_readable(stamp) else None

    def _fill(self, name: str, parts: Iterable[Part], stamp: Stamp) -> None:
        """Create a collection. It is complete once its stamp is valid."""
        self._collection = self._client.create_collection(
            name,
            embedding_function=None,
            metadata=_metadata(stamp, _INVALID),
            configuration={"hnsw": {"space": "cosine"}},
        )
        for part in parts:
            self._add(part)
        self._collection.modify(metadata=_metadata(stamp, stamp.generation))

    def _is_readable(self, stamp: Stamp) -> bool:
        """Return whether the vectors can be searched: a stored one must be its own nearest neighbour."""
        if self._collection.count() != stamp.chunks:
            return False
        if not stamp.chunks:
            return True
        vector = self._collection.get(limit=1, include=["embeddings"])["embeddings"][0]
        nearest = self.search(vector, min(5, stamp.chunks))
        return len(nearest) == min(5, stamp.chunks) and nearest[0].score > 0.999

    def _add(self, part: Part) -> None:
        ids, vectors = part
        size = self._batch()
        for start in range(0, len(ids), size):
            self._collection.upsert(ids=list(ids[start : start + size]), embeddings=vectors[start : start + size])

    def _batch(self) -> int:
        return int(self._client.get_max_batch_size())


class ChromaIndex(_Collection):
    """An embedded Chroma collection. Owns `folder`: a rebuild deletes its contents."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def open(self) -> Stamp | None:
        self.close()
        folders = [path.parent for path in self._folder.glob("*/chroma.sqlite3")]
        if len(folders) != 1:
            return None
        try:
            with _translate_faults("opened"):
                self._connect(folders[0])
                return self._open_collection(COLLECTION)
        except MemoryIndexError:
            self.close()
            return None

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        self.close()
        with _translate_faults("rebuilt"):
            shutil.rmtree(self._folder, ignore_errors=True)
            # A new name each time: Chroma caches what it opened, or failed to open, by path.
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
    """A collection of a Chroma server. Owns the collection: a rebuild deletes it."""

    def __init__(self, address: str, collection: str) -> None:
        """Connect on first use. `address` is for example `http://127.0.0.1:8000`."""
        super().__init__()
        self._address = address
        self._name = collection

    def open(self) -> Stamp | None:
        """Open the collection; None also if the server has none of this name. Raises MemoryIndexError if it is down."""
        self.close()
        with _translate_faults("reached", self._address):
            self._connect()
            if not self._exists():
                return None
        try:
            with _translate_faults("opened"):
                return self._open_collection(self._name)
        except MemoryIndexError:
            return None

    def rebuild(self, parts: Iterable[Part], stamp: Stamp) -> None:
        self.close()
        with _translate_faults("rebuilt", self._address):
            self._connect()
            if self._exists():
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

    def _exists(self) -> bool:
        return self._name in {collection.name for collection in self._client.list_collections()}


def _metadata(stamp: Stamp, generation: int) -> dict[str, int | str]:
    return {"generation": generation, "chunks": stamp.chunks, "encoder": stamp.encoder}


@contextmanager
def _translate_faults(done: str, where: str = "") -> Iterator[None]:
    """Raise Chroma's faults as MemoryIndexError: any exception, and panics of its Rust part, which are no Exception."""
    try:
        yield
    except MemoryIndexError:
        raise
    except BaseException as fault:
        if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
            advice = f"check that a Chroma server answers at {where}" if where else "run `ratchet docs rebuild`"
            raise MemoryIndexError(f"the documents' index cannot be {done} ({fault}); {advice}") from fault
        raise
