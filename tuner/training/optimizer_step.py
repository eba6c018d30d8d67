"""TODO: tuner/training/optimizer_step.py"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Step:
    """What one optimizer step gave."""

    loss: float
    norm: float
    """Of the gradient, before clipping."""
    rate: float
