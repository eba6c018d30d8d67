"""The documents of an agent, `agent.documents`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import builtins

    from agent.api.runs import OpenRuntime
    from agent.knowledge.indexer import SyncReport
    from agent.knowledge.knowledge import Knowledge
    from agent.knowledge.schema import StoredDocument, Trust
    from tools.context import Passage


class Documents:
    """The documents that `search_knowledge` searches."""

    def __init__(self, open_runtime: OpenRuntime, tenant: str | None = None) -> None:
        self._open_runtime = open_runtime
        self._tenant = tenant

    def of_tenant(self, tenant: str) -> Documents:
        """Return the documents of another tenant."""
        return Documents(self._open_runtime, tenant)

    def add(self, folder: str | Path, *, trust: Trust | None = None) -> SyncReport:
        """Read a folder: add and embed what is new or changed, and remove what is gone from it.

        Args:
            folder: Relative to the current folder.
            trust: "own" or "outside", whose texts these are; left out, new documents are "own".

        Raises:
            MemoryIndexError: There is no such folder, or another process is changing the index.
        """
        with self._open() as knowledge:
            return knowledge.add_folder(Path(folder), trust=trust)

    def sync(self) -> tuple[SyncReport, ...]:
        """Read every folder again that documents came from, and those of `ratchet.toml`."""
        project = self._open_runtime().project
        named = [project.resolve(name).resolve() for name in project.settings.memory.folders]
        with self._open() as knowledge:
            earlier = sorted({Path(document.folder) for document in knowledge.documents() if document.folder})
            folders = dict.fromkeys([*named, *(folder for folder in earlier if folder.is_dir())])
            return tuple(knowledge.add_folder(folder) for folder in folders)

    def list(self) -> tuple[StoredDocument, ...]:
        """Return the documents by name."""
        with self._open() as knowledge:
            return knowledge.documents()

    def search(
        self, query: str, limit: int | None = None, *, where: Mapping[str, str] | None = None
    ) -> builtins.list[Passage]:
        """Return the passages that fit a query best, best first.

        Args:
            query: Words or a question.
            limit: How many at most; left out, as `ratchet.toml` says for runs.
            where: Metadata that their documents must have.
        """
        limit = self._open_runtime().project.settings.memory.passages if limit is None else limit
        with self._open() as knowledge:
            return knowledge.search(query, limit, where=dict(where or {}))

    def remove(self, names: str | Iterable[str]) -> None:
        """Remove documents by name; one returns when its folder is read again.

        Raises:
            MemoryIndexError: There is no such document.
        """
        with self._open() as knowledge:
            for name in [names] if isinstance(names, str) else names:
                knowledge.remove(name)

    def rebuild(self) -> int:
        """Build the indexes anew, and return how many passages were embedded anew."""
        with self._open() as knowledge:
            return knowledge.rebuild()

    @contextmanager
    def _open(self) -> Iterator[Knowledge]:
        runtime = self._open_runtime()
        if self._tenant is None:
            yield runtime.memory
            return
        knowledge = runtime.open_memory(self._tenant)
        try:
            yield knowledge
        finally:
            knowledge.close()
