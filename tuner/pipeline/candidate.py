"""A trained folder becomes a candidate: a check that it acts, the manifest, and the entry in the registry.

Whether it is better than the served adapter is decided by the gate, in `tuner.pipeline.promote`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent.config.project import Project
from agent.errors import LivenessError
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.weights import load as weights
from agent.registry.artifact import CARD, WEIGHTS, seal, tensors_hash, verify
from agent.registry.registry import Adapter, Registry
from tuner.tree.loss import loss_of
from tuner.tree.packing import Example, build_pack


@dataclass(frozen=True)
class CandidateOrigin:
    """Where a candidate comes from, for its manifest."""

    base: weights.ModelFolder
    dataset_hash: str
    tuning: str
    created_at: str
    parent: str | None = None
    merged: Mapping[str, float] = field(default_factory=dict)


def fresh_model(project: Project, base: weights.ModelFolder, dtype: str = "") -> Any:
    """Load the base with weights of its own, by the settings of the project.

    Args:
        project: Its `model` settings give device, threads and dtype.
        base: The model folder.
        dtype: Instead of that of the settings.
    """
    settings = project.settings.model
    return weights.load_model(base, device=settings.device, dtype=dtype or settings.dtype, threads=settings.threads)


def check_lives(
    model: Any, folder: Path, example: Example, *, advice: str = "check tuning.targets and the learning rate"
) -> None:
    """Load a saved adapter onto a model and check that it changes the loss of an example.

    Raises:
        LivenessError: It changes no output.
    """
    import torch

    from agent.llm.engine.attention import use_ragged_attention

    use_ragged_attention(model)
    pack = build_pack([example])
    with torch.inference_mode():
        before = float(loss_of(model, pack))
        bank = LoadedAdapters(model)
        bank.load("candidate", folder, tensors_sha256=tensors_hash(folder / WEIGHTS))
        bank.activate("candidate")
        after = float(loss_of(model, pack, before=bank.soft_prompt("candidate")))
    if before == after:
        raise LivenessError(
            f"the adapter changes no output: the loss of an example is {before:.4f} with and without it; {advice}"
        )


def take_in(
    registry: Registry, folder: Path, origin: CandidateOrigin, card: Callable[[str], str], *, reason: str
) -> Adapter:
    """Move an adapter folder into the registry, with model card and manifest.

    The same tensors on the same day are the same adapter, which is returned if it is there already.

    Args:
        registry: Of the project.
        folder: On the file system of the registry.
        origin: For the manifest.
        card: Makes the model card from the adapter's id.
        reason: For the history of the registry.
    """
    digest = tensors_hash(folder / WEIGHTS)
    name = f"{origin.created_at[:10].replace('-', '')}-{digest[:8]}"
    served = registry.serving().adapter
    (folder / CARD).write_text(card(name), encoding="utf-8")
    target = registry.folder / name
    if name in {adapter.id for adapter in registry.list()}:
        return registry.get(name)
    # A folder without an entry was left by a crash between the move and the entry.
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    seal(
        folder,
        id=name,
        base=origin.base.name,
        base_revision=origin.base.revision,
        dataset_hash=origin.dataset_hash,
        parent=origin.parent,
        tuning=origin.tuning,
        created_at=origin.created_at,
        code_version=code_version(),
        merged=origin.merged,
    )
    folder.rename(target)
    verify(target)
    return registry.add(target, reason=reason if served is None else f"{reason}, beside active {served.id}")


def code_version() -> str:
    """Return the installed version of this project."""
    try:
        return version("ratchet-loop")
    except PackageNotFoundError:
        return "unknown"
