"""TODO: tuner/training/results.py"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Say = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    epoch: int
    step: int
    steps: int
    examples: int
    """Learnt from so far, in every epoch again."""
    loss: float
    held_out_loss: float | None
    tokens_per_second: float
    """Packed tokens."""
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

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
    """What the same examples would have had as rows."""
    target_tokens: int
    parameters: int
    peak_bytes: int
    """The most memory that the process held."""
    missed: Mapping[str, Sequence[tuple[int, int]]]
    """Of the first examples and the held-out ones: by run, the targets it still gets wrong, and what it says there."""
    looked_at: int
    """Examples that were looked at for that."""
