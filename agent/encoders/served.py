"""The sentence encoder of a project: bare, or under the adapter that its registry serves.

Each encoder is loaded once and kept. Embedding the documents anew after a change of adapter is not done here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.project import Project
from agent.errors import AdapterError, LivenessError
from agent.registry.artifact import verify
from agent.registry.registry import Adapter, Registry

if TYPE_CHECKING:
    from agent.encoders.encoder import Encoder


class ServedEncoder:
    """Opens the project's encoder, with and without adapters. Safe to share between threads."""

    def __init__(
        self,
        project: Project,
        *,
        replacement: Encoder | None = None,
        on_warning: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> None:
        """`replacement` is used in place of the project's encoder, and takes no adapter."""
        self.registry = Registry(project.home.encoders, listed_by="ratchet encoder list")
        self._project = project
        self._replacement = replacement
        self._on_warning = on_warning
        self._progress = progress
        self._current: Encoder | None = replacement
        self._opened: dict[str, Encoder] = {}
        self._lock = threading.RLock()

    @property
    def current(self) -> Encoder:
        """The encoder under the adapter that was active when it was first needed, or that `use` set."""
        with self._lock:
            if self._current is None:
                self._current = self.open(self.active_adapter())
            return self._current

    def use(self, encoder: Encoder) -> None:
        """Make this the current encoder."""
        with self._lock:
            self._current = encoder

    def active_adapter(self) -> Adapter | None:
        """Return the adapter that the registry serves now; None is the bare encoder."""
        serving = self.registry.serving()
        if serving.warning is not None:
            self._on_warning(serving.warning)
        return serving.adapter

    def open(self, adapter: Adapter | None) -> Encoder:
        """Load the encoder under an adapter, or bare, after verifying the files.

        Raises:
            AdapterError: the adapter's folder does not verify, or it was trained on another encoder.
        """
        from agent.encoders.encoder import EncoderAdapter, SentenceEncoder, name_with_adapter
        from agent.llm.weights.load import encoder_weights, resolve_encoder

        if self._replacement is not None:
            if adapter is not None:
                raise AdapterError(
                    f"adapter {adapter.id} needs the project's encoder; this runtime has {self._replacement.name}"
                )
            return self._replacement
        base = self._project.settings.model.encoder
        name = base if adapter is None else name_with_adapter(base, adapter.id)
        with self._lock:
            if name in self._opened:
                return self._opened[name]
            if adapter is None:
                folder = resolve_encoder(self._project.named(base), self._project.home.models, progress=self._progress)
                self._opened[name] = SentenceEncoder(folder, name=base)
                return self._opened[name]
            weights = encoder_weights(self._project.named(base), self._project.home.models, progress=self._progress)
            if adapter.base_revision != weights.revision:
                raise AdapterError(
                    f"encoder adapter {adapter.id} was trained on {adapter.base} ({adapter.base_revision[:12]}), this "
                    f"is {base} ({weights.revision[:12]}); run `ratchet encoder rollback`, or switch the encoder"
                )
            verify(adapter.folder)
            added = EncoderAdapter(adapter.id, adapter.folder, adapter.tensors_sha256)
            self._opened[name] = SentenceEncoder(weights.folder, name=base, adapter=added)
            return self._opened[name]

    def find(self, name: str) -> Encoder | None:
        """Return the encoder that wrote vectors of this name.

        None where it is not an encoder of this project, or its adapter does not load.
        """
        base = self._project.settings.model.encoder
        if self._replacement is not None or not (name == base or name.startswith(f"{base}+")):
            return None
        id = name.removeprefix(base).removeprefix("+")
        adapters = {adapter.id: adapter for adapter in self.registry.list()}
        if id and id not in adapters:
            return None
        try:
            return self.open(adapters.get(id))
        except (AdapterError, LivenessError) as fault:
            self._progress(str(fault))
            return None
