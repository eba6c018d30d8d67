"""Experience replay: a share of the earlier tasks is trained again, so that an adapter does not forget them.

Source: Rolnick et al., 2019; the tasks are selected by farthest-first traversal (Gonzalez, 1985).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from agent.encoders.encoder import Encoder
from agent.text.normalise import normalise_task
from tuner.data.curate import TrainingRow


def select_replay(
    rows: Sequence[TrainingRow], trained: Collection[str], share: float, encoder: Encoder
) -> tuple[TrainingRow, ...]:
    """Return the rows of new tasks and of a share of the earlier ones, in their order.

    Args:
        rows: All rows.
        trained: Ids of the earlier tasks.
        share: Of the earlier tasks, 0 to 1; those that cover all of them best.
        encoder: Embeds the texts of the tasks.
    """
    old = sorted({row.task: row.trajectory.task.text for row in rows if row.task in trained}.items())
    count = math.ceil(share * len(old))
    selected = {task for task, _ in old}
    if count < len(old):
        vectors = encoder.encode([normalise_task(text) for _, text in old]) if count else np.zeros((0, 1), np.float32)
        selected = {old[place][0] for place in cover(vectors, count)}
    return tuple(row for row in rows if row.task not in trained or row.task in selected)


def cover(vectors: np.ndarray, count: int) -> list[int]:
    """Return the indices of `count` unit vectors [N, d]: the most central, then each the farthest from those before."""
    if not count:
        return []
    selected = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[selected[0]]
    while len(selected) < min(count, len(vectors)):
        nearest[selected] = np.inf
        selected.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[selected[-1]])
    return selected
