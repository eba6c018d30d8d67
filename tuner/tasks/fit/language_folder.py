"""Writes and opens the folder of a task that a language model was trained for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.project import Project
from agent.errors import AdapterError
from agent.llm.weights.load import ModelFolder, resolve_model
from agent.registry.artifact import TASK, Manifest, verify
from tuner.tasks.artifact import VERSION, Sealed, read_task
from tuner.tasks.fit.generation_settings import GenerationSettings
from tuner.tasks.language.generation import Generator, TokenBudget
from tuner.tasks.language.prompts import TaskPrompt, make_prompt
from tuner.tasks.predictor import Say, ignore

if TYPE_CHECKING:
    from agent.llm.chat_model import LocalModel

GENERATION = "generation"
"""The value of `way` in `task.json` for an adapter of a language model, in place of a head."""


def is_generation(folder: Path) -> bool:
    """Whether the folder of a task has an adapter of a language model. Raises AdapterError for another folder."""
    return bool(read_task(folder).get("way") == GENERATION)


def open_generation(folder: Path, project: Project, *, beside: Generator | None = None, say: Say = ignore) -> Generator:
    """Open the task of a folder, verified, on the base that it was trained on.

    Args:
        beside: An open task whose loaded base is used.

    Raises:
        AdapterError: The folder is not whole, or the base has changed or differs from that of `beside`.
    """
    manifest = verify(folder)
    metadata = read_task(folder)
    model = beside.model if beside is not None else load_served(_find_base(folder, manifest, project), project)
    if model.revision != manifest.base_revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base} of revision {manifest.base_revision[:12]}, and what is loaded is "
            f"{model.base} of {model.revision[:12]}; open it by itself"
        )
    adapted = model.on_adapter(manifest.id, folder=folder, tensors_sha256=manifest.tensors_sha256)
    task = make_prompt(metadata["task"], metadata["labels"], metadata["options"])
    return Generator(adapted, task, TokenBudget.from_dict(metadata["budget"]), say=say)


def load_served(base: ModelFolder, project: Project) -> LocalModel:
    """Load a base with the model settings of the project."""
    from agent.llm.chat_model import LocalModel

    settings = project.settings.model
    return LocalModel.load(
        str(base.folder) if base.source == "folder" else base.name,
        project.home.models,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        max_sessions=settings.max_sessions,
        cache_tokens=settings.cache_tokens,
    )


def folder_writer(
    adapter: Path, task: TaskPrompt, budget: TokenBudget, provenance: Sealed, settings: GenerationSettings
) -> Callable[[Path], None]:
    """Return the function that writes an adapter's files and `task.json` into a folder."""

    def write(folder: Path) -> None:
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        metadata = {
            "version": VERSION,
            "way": GENERATION,
            "task": task.name,
            "labels": list(task.labels),
            "options": task.options(),
            "base": provenance.base.name,
            "revision": provenance.base.revision,
            "budget": budget.to_dict(),
            "settings": asdict(settings),
            **provenance.told,
        }
        (folder / TASK).write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return write


def _find_base(folder: Path, manifest: Manifest, project: Project) -> ModelFolder:
    base = resolve_model(project.named(manifest.base), project.home.models)
    if base.revision != manifest.base_revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base} of revision {manifest.base_revision[:12]}, and what is there has "
            f"{base.revision[:12]}; train it again, or put the old base back"
        )
    return base
