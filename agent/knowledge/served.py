"""The documents of a project, opened with its encoder: those of its own tenant, and of any other.

Nothing is opened, and no encoder loaded, before there are documents or some are added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.project import Project
from agent.encoders.served import ServedEncoder
from agent.registry.registry import Adapter

if TYPE_CHECKING:
    from agent.encoders.reranker import Reranker
    from agent.knowledge.knowledge import Knowledge


class ServedDocuments:
    """Opens the documents of a project's tenants. Safe to share between threads."""

    def __init__(self, project: Project, encoder: ServedEncoder, *, progress: Callable[[str], None]) -> None:
        self._project = project
        self._encoder = encoder
        self._progress = progress
        self._own: Knowledge | None = None
        self._reranker: Reranker | None = None
        self._lock = threading.RLock()

    @property
    def own(self) -> Knowledge:
        """The documents of the project's own tenant."""
        with self._lock:
            if self._own is None:
                self._own = self.open(self._project.settings.memory.tenant)
            return self._own

    def close(self) -> None:
        """Close the own documents."""
        with self._lock:
            if self._own is not None:
                self._own.close()
            self._own = None

    def existing(self) -> Knowledge | None:
        """Return the own documents if any were ever added; otherwise the encoder need not be loaded."""
        with self._lock:
            if self._own is None and not self._project.home.index.exists():
                return None
            return self.own

    def version(self) -> str:
        """Return a text that changes whenever the own documents do."""
        documents = self.existing()
        return "none" if documents is None else documents.version

    def open(self, tenant: str) -> Knowledge:
        """Open a tenant's documents with the project's encoder. The caller closes them."""
        from agent.knowledge.knowledge import Knowledge

        home, settings = self._project.home, self._project.settings.memory
        home.root.mkdir(parents=True, exist_ok=True)
        return Knowledge.open(
            home.database,
            home.index,
            self._encoder.current,
            tenant=tenant,
            server=settings.server,
            chunk_tokens=settings.chunk_tokens,
            neighbours=settings.neighbours,
            reranker=self._load_reranker if settings.reranker else None,
            load_encoder=self._encoder.find,
        )

    def embed(self, adapter: Adapter | None) -> int:
        """Embed all tenants' documents with the encoder under this adapter, which is the current one from then on.

        Searches are answered meanwhile; see `Knowledge.rebuild`.

        Returns:
            The number of passages that were embedded.
        """
        from agent.knowledge.schema import tenant_names
        from agent.storage.database import open_engine

        encoder = self._encoder.open(adapter)
        embedded = 0
        if self.existing() is not None:
            engine = open_engine(self._project.home.database)
            try:
                names = tenant_names(engine)
            finally:
                engine.dispose()
            for name in names:
                if name == self._project.settings.memory.tenant:
                    embedded += self.own.rebuild(encoder)
                    continue
                documents = self.open(name)
                try:
                    embedded += documents.rebuild(encoder)
                finally:
                    documents.close()
        self._encoder.use(encoder)
        return embedded

    def _load_reranker(self) -> Reranker:
        """The project's cross-encoder, loaded once."""
        from agent.encoders.reranker import CrossEncoderReranker
        from agent.llm.weights.load import resolve_reranker

        with self._lock:
            if self._reranker is None:
                name = self._project.named(self._project.settings.memory.reranker)
                self._reranker = CrossEncoderReranker(resolve_reranker(name, progress=self._progress))
            return self._reranker
