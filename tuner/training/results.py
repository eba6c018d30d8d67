"""What a training reports: progress while it runs, figures when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Say = Callable[[str], None]
"""Receives a line of text for the user."""


@dataclass(frozen=True)
class Progress:
    """The progress of a training."""

    epoch: int
    step: int
    steps: int
    examples: int
    """Read so far, repeated ones counted in each epoch."""
    loss: float
    held_out_loss: float | None
    tokens_per_second: float
    """Packed tokens."""
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """The figures of a finished training."""

    steps: int
    epochs: int
    loss: float
    held_out_loss: float | None
    first_held_out_loss: float | None
    best_epoch: int
    seconds: float
    precision: str
    packed_tokens: int
    row_tokens: int
    """Tokens of the same examples without packing."""
    target_tokens: int
    parameters: int
    peak_bytes: int
    """Largest memory of the process."""
    missed: Mapping[str, Sequence[tuple[int, int]]]
    """By run, among the inspected examples: the target tokens that are not the likeliest, with the likeliest."""
    looked_at: int
    """Examples inspected for `missed`: the held-out ones, then training examples."""
