"""What of earlier lessons is learnt again with the new ones, so that an adapter that goes on does not forget.

Source: experience replay (Rolnick et al., 2019), chosen by farthest-first traversal (Gonzalez, 1985).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from agent.encoders.encoder import Encoder
from agent.text.normalise import plain
from tuner.data.curate import TrainingRow


def replayed(
    rows: Sequence[TrainingRow], learnt: Collection[str], share: float, encoder: Encoder
) -> tuple[TrainingRow, ...]:
    """The rows of new tasks, and of the tasks in `learnt` that `share` which covers them best; in their order."""
    old = sorted({row.task: row.trajectory.task.text for row in rows if row.task in learnt}.items())
    count = math.ceil(share * len(old))
    kept = {task for task, _ in old}
    if count < len(old):
        vectors = encoder.encode([plain(text) for _, text in old]) if count else np.zeros((0, 1), np.float32)
        kept = {old[place][0] for place in cover(vectors, count)}
    return tuple(row for row in rows if row.task not in learnt or row.task in kept)


def cover(vectors: np.ndarray, count: int) -> list[int]:
    """Places of `count` unit vectors [N, d], each the farthest from those before it; first the most central."""
    if not count:
        return []
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < min(count, len(vectors)):
        nearest[chosen] = np.inf
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen
