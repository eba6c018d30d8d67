"""TODO: tuner/training/schedule.py"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuner.settings import TrainSettings
from tuner.tree.packing import Batch, Example, make_batches


def _plan(examples: Sequence[Example], settings: TrainSettings) -> list[list[Batch]]:
    """Every epoch's optimizer steps: as many epochs as set, or as it takes to have enough steps."""
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


def _as_one(examples: Sequence[Example], settings: TrainSettings) -> Batch | None:
    """Everything as if it were one step."""
    most = sum(one.target_count for one in examples)
    batches = make_batches(examples, batch_targets=most, weighting=settings.weighting)
    return batches[0] if batches else None


def _rate(step: int, total: int, settings: TrainSettings) -> float:
    """Share of the learning rate: linear warm-up, then the schedule."""
    warmup = max(1, round(total * settings.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))
    return 1.0 if settings.schedule == "constant" else 1.0 - 0.9 * along
