"""A folder of weights becomes a candidate: it is seen to act, sealed, and taken into the registry.

Whether it is any better than what is served is not asked here; that is the gate's.
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
from agent.llm.engine.loaded_adapters import AdapterBank
from agent.llm.weights import load as weights
from agent.registry.artifact import CARD, WEIGHTS, seal, tensors_hash, verify
from agent.registry.registry import Adapter, Registry
from tuner.tree.loss import loss_of
from tuner.tree.packing import Example, build_pack


@dataclass(frozen=True)
class Origin:
    """Where a candidate comes from, as its manifest says."""

    base: weights.ModelFolder
    dataset_hash: str
    tuning: str
    created_at: str
    parent: str | None = None
    merged: Mapping[str, float] = field(default_factory=dict)


def fresh_model(project: Project, base: weights.ModelFolder, dtype: str = "") -> Any:
    """The base with weights of its own, on the device and threads of the settings, which give its dtype too."""
    chosen = project.settings.model
    return weights.load_model(base, device=chosen.device, dtype=dtype or chosen.dtype, threads=chosen.threads)


def check_lives(
    model: Any, folder: Path, example: Example, *, advice: str = "check tuning.targets and the learning rate"
) -> None:
    """Load what was saved onto fresh weights: it must be what was made, and change what the model says."""
    import torch

    from agent.llm.engine.attention import use_ragged_attention

    use_ragged_attention(model)
    pack = build_pack([example])
    with torch.inference_mode():
        before = float(loss_of(model, pack))
        bank = AdapterBank(model)
        bank.load("candidate", folder, tensors_sha256=tensors_hash(folder / WEIGHTS))
        bank.activate("candidate")
        after = float(loss_of(model, pack, before=bank.virtual("candidate")))
    if before == after:
        raise LivenessError(
            f"the adapter changes no output: the loss of an example is {before:.4f} with and without it; {advice}"
        )


def take_in(registry: Registry, made: Path, origin: Origin, card: Callable[[str], str], *, reason: str) -> Adapter:
    """Move a folder into the registry, with model card and manifest; `card` is given the adapter's id.

    The same tensors made on the same day are the adapter that is there already.
    """
    digest = tensors_hash(made / WEIGHTS)
    name = f"{origin.created_at[:10].replace('-', '')}-{digest[:8]}"
    served = registry.serving().adapter
    (made / CARD).write_text(card(name), encoding="utf-8")
    target = registry.folder / name
    if name in {one.id for one in registry.list()}:
        return registry.get(name)
    # What lies here without an entry was left by a crash between the move and the entry.
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    seal(
        made,
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
    made.rename(target)
    verify(target)
    return registry.add(target, reason=reason if served is None else f"{reason}, beside active {served.id}")


def code_version() -> str:
    """The version of this project that is installed."""
    try:
        return version("ratchet-loop")
    except PackageNotFoundError:
        return "unknown"
