"""The language model of a project, under the adapter that its registry serves or under a named one.

The model is loaded when it is first needed, and each adapter when it is first used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.language_models import BaseChatModel

from agent.config.project import Project
from agent.errors import AdapterError
from agent.llm.prompt.render import Renderer
from agent.llm.step_model import Stepper, as_stepper
from agent.records.run import Step
from agent.registry.registry import Adapter, Registry

ACTIVE = "active"
"""Stands for whatever adapter the registry serves when a run begins."""


class ServedModel:
    """Opens the project's model, with and without adapters. Safe to share between threads."""

    def __init__(
        self,
        project: Project,
        *,
        replacement: BaseChatModel | Stepper | None = None,
        on_warning: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> None:
        """`replacement` is used in place of the project's model; only a `LocalModel` takes adapters."""
        self.registry = Registry(project.home.adapters)
        self._project = project
        self._model = replacement
        self._on_warning = on_warning
        self._progress = progress
        self._renderer: Renderer | None = None
        self._lock = threading.RLock()

    @property
    def base(self) -> BaseChatModel | Stepper:
        """The model without an adapter."""
        with self._lock:
            if self._model is None:
                from agent.llm.chat_model import LocalModel

                settings = self._project.settings.model
                self._model = LocalModel.load(
                    self._project.named(settings.base),
                    self._project.home.models,
                    device=settings.device,
                    dtype=settings.dtype,
                    threads=settings.threads,
                    max_sessions=settings.max_sessions,
                    cache_tokens=settings.cache_tokens,
                    progress=self._progress,
                )
            return self._model

    def close(self) -> None:
        """End the engine."""
        with self._lock:
            close = getattr(self._model, "close", None)
            if close is not None:
                close()
            self._model = None

    def active_adapter(self) -> Adapter | None:
        """Return the adapter that the registry serves now; None is the base."""
        serving = self.registry.serving()
        if serving.warning is not None:
            self._on_warning(serving.warning)
        return serving.adapter

    def stepper(self, adapter: str | None, *, drafts: Callable[[], Iterable[Step]]) -> Stepper:
        """Return the model under an adapter, after verifying the adapter's files.

        Args:
            adapter: its id, `ACTIVE`, or None for the base.
            drafts: called when the adapter is loaded; returns steps that speculative decoding drafts from.

        Raises:
            AdapterError: the adapter was trained on another base, or the model takes none.
        """
        from agent.llm.chat_model import LocalModel

        model = self.base
        if not isinstance(model, LocalModel):
            if adapter not in (None, ACTIVE):
                raise AdapterError(
                    f"adapter {adapter!r} needs the local model; this runtime has {type(model).__name__}"
                )
            return as_stepper(model)
        entry = self.active_adapter() if adapter == ACTIVE else None if adapter is None else self.registry.get(adapter)
        if entry is None:
            return model.on_adapter(None)
        if entry.base_revision != model.revision:
            raise AdapterError(
                f"adapter {entry.id} was trained on base {entry.base} ({entry.base_revision[:12]}), this is "
                f"{model.base} ({model.revision[:12]}); retrain, or switch the base"
            )
        is_new = entry.id not in model.engine.adapters
        stepper = model.on_adapter(entry.id, folder=entry.folder, tensors_sha256=entry.tensors_sha256)
        if is_new:
            stepper.add_draft_steps(drafts())
        return stepper

    def loaded(self) -> dict[str, Any] | None:
        """Return the base in memory, and the registry's adapters on it by the hashes of their tensors there.

        None before the model is loaded; this call loads nothing.
        """
        from agent.llm.chat_model import LocalModel

        model = self._model
        if model is None:
            return None
        if not isinstance(model, LocalModel):
            return {"base": as_stepper(model).provenance().base, "revision": "", "adapters": {}}
        adapters = model.engine.adapters
        return {
            "base": model.base,
            "revision": model.revision,
            "adapters": {entry.id: adapters.hash(entry.id) for entry in self.registry.list() if entry.id in adapters},
        }

    def token_counter(self) -> Callable[[str], int] | None:
        """Return what counts the model's tokens, without loading its weights; None for a model that is not ours."""
        with self._lock:
            if self._renderer is None and self._model is None:
                from agent.llm.weights import load as weights

                base = weights.resolve_model(
                    self._project.named(self._project.settings.model.base),
                    self._project.home.models,
                    progress=self._progress,
                )
                self._renderer = Renderer(weights.load_tokenizer(base))
            renderer = self._renderer or getattr(self._model, "renderer", None)
        return None if renderer is None else lambda text: len(renderer.encode(text))
