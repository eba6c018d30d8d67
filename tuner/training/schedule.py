"""The plan of a training: which examples each optimizer step reads, and its share of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.config.settings import TuningSettings
from tuner.tree.packing import Batch, Example, make_batches


def plan_epochs(examples: Sequence[Example], settings: TuningSettings) -> list[list[Batch]]:
    """Return the batches of each epoch: `epochs` of them, or as many as `min_steps` optimizer steps need."""
    plan: list[list[Batch]] = []
    while len(plan) < settings.epochs or sum(map(len, plan)) < settings.min_steps:
        plan.append(
            make_batches(
                examples,
                batch_targets=settings.batch_targets,
                weighting=settings.weighting,
                seed=settings.seed * 1000 + len(plan),
            )
        )
    return plan


def whole_batch(examples: Sequence[Example], settings: TuningSettings) -> Batch | None:
    """Return all examples as one batch, for evaluation; None without examples."""
    targets = sum(example.target_count for example in examples)
    batches = make_batches(examples, batch_targets=targets, weighting=settings.weighting)
    return batches[0] if batches else None


def rate_share(step: int, total: int, settings: TuningSettings) -> float:
    """Return the factor of the learning rate, 0 to 1, at a step: linear warm-up, then the schedule."""
    warmup = max(1, round(total * settings.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if settings.schedule == "constant" else 1.0 - 0.9 * progress
