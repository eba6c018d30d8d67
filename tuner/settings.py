"""What a training is told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuner.tree.packing import Weighting

RATES = {
    "lora": 1e-3,
    "rslora": 3e-4,
    "dora": 1e-3,
    "lora+": 2e-4,
    "qlora": 1e-3,
    "prompt": 3e-2,
    "prefix": 1e-2,
    "full": 5e-5,
}
"""The learning rate of each method, where the settings name none."""


@dataclass(frozen=True)
class TrainSettings:
    """How an adapter is trained; `ratchet.toml`'s [tuning] has the same keys."""

    method: str = "lora"
    """One of `agent.config.settings.TUNING_METHODS`; see `tuner.methods.methods`."""
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    top_layers: int = 0
    """Only this many layers, from the top, are tuned; 0 tunes all."""
    virtual_tokens: int = 20
    """With the methods "prompt" and "prefix": how many are put before every sequence."""
    cache_gigabytes: float = 4.0
    """With `top_layers`: disk for what the layers below make of the examples; 0 computes it in every epoch."""
    rate_ratio: float = 16.0
    """With the method "lora+": the rate of the second matrix (B) over that of the first."""
    learning_rate: float = 1e-3
    epochs: int = 4
    min_steps: int = 48
    """Optimizer steps that a training has at least; with little data they take more epochs than `epochs`."""
    batch_targets: int = 150
    """Target tokens that an optimizer step gathers at least, from as many tasks as that takes."""
    max_tokens_per_pack: int = 0
    """0: as many as fit into the memory that is free."""
    weighting: Weighting = "token"
    """What counts the same: every target token, every example, or every trajectory."""
    label_smoothing: float = 0.0
    neftune: float = 0.0
    adversarial: Literal["none", "fgm", "pgd", "freelb"] = "none"
    """See `tuner.tree.adversarial`."""
    adversarial_size: float = 0.05
    """The most an embedding is changed, as a share of its length."""
    anchor: float = 0.0
    """Half the squared distance from the adapter that is gone on from, times this, is added to the loss."""
    anchor_kl: float = 0.0
    """The divergence from what the adapter that is gone on from says at the targets, times this, is added too."""
    patience: int = 2
    """Epochs without a better held-out loss before training stops; 0 never stops early."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate goes on behind the warm-up; the first two end at a tenth of it."""
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "auto"
    """Of matrix products: "float32", "mixed" (see `agent.llm.weights.precision`), or "auto", whichever is faster here."""
    start: str = "base"
    """Either "base", or "active" to go on from the adapter that is served."""
    checkpoint_seconds: float = 60.0
    """Between two checkpoints, where there is a folder for them."""
    seed: int = 0
