"""Inputs of the encoder: windows of tokens, and padded batches of windows of similar length."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.tasks.head.token_alignment import IGNORED

if TYPE_CHECKING:
    import torch


NO_EXAMPLE = -1
"""Number of a window that belongs to no example, such as the name of a label that is learnt as text."""


@dataclass(frozen=True)
class Window:
    """One sequence of tokens of one example."""

    example: int
    """The example's place in the list that the windows were made from, or NO_EXAMPLE."""
    ids: tuple[int, ...]
    second: int
    """Where the tokens of the second text begin, for models with token types; `len(ids)` with one text."""
    targets: tuple[float, ...] = ()
    """The task's encoding of its labels; empty for an example without labels."""
    marks: tuple[int, ...] = ()
    """Relations: the tokens of the entity signs. Text pairs: the role of the window's text."""
    words: tuple[int, ...] = ()
    """Tagging: for each token the word whose tag it predicts, or IGNORED."""
    offsets: tuple[tuple[int, int], ...] = ()
    """Questions: the characters of the context that each token from `second` on covers."""


@dataclass(frozen=True)
class WindowBatch:
    """Windows as tensors, padded to the longest; B windows of T tokens."""

    windows: tuple[Window, ...]
    ids: torch.Tensor
    """[B, T], token ids."""
    mask: torch.Tensor
    """[B, T], 1 at tokens and 0 at padding."""
    types: torch.Tensor
    """[B, T], 1 in the second text."""
    numbers: tuple[int, ...] = field(default=())
    """The places of the windows in the list they were taken from."""


def batch_windows(
    windows: Sequence[Window],
    size: int,
    padding: int,
    *,
    chance: random.Random | None = None,
    device: Any = "cpu",
    group_size: int = 1,
) -> Iterator[WindowBatch]:
    """Yield all windows in batches of similar length (bucketed padding).

    Args:
        size: Windows per batch, at most.
        padding: Id of the padding token.
        chance: Shuffles the windows, sorts them in pools of 50 batches, and shuffles the batches; by default batches
            come in the order of length.
        group_size: So many consecutive windows always stay in one batch.
    """
    order = list(range(0, len(windows), group_size))
    size = max(1, size // group_size)

    def length(at: int) -> int:
        return max(len(window.ids) for window in windows[at : at + group_size])

    if chance is None:
        order.sort(key=length)
        starts = [order[start : start + size] for start in range(0, len(order), size)]
    else:
        chance.shuffle(order)
        pool = 50 * size
        pools = [sorted(order[start : start + pool], key=length) for start in range(0, len(order), pool)]
        starts = [one_pool[start : start + size] for one_pool in pools for start in range(0, len(one_pool), size)]
        chance.shuffle(starts)
    for firsts in starts:
        numbers = [first + offset for first in firsts for offset in range(group_size)]
        yield pad_windows([windows[at] for at in numbers], padding, numbers=numbers, device=device)


def pad_windows(
    windows: Sequence[Window], padding: int, *, numbers: Sequence[int] = (), device: Any = "cpu"
) -> WindowBatch:
    """Pad windows to the longest and return them as one batch."""
    import torch

    longest = max(len(window.ids) for window in windows)
    ids = torch.full((len(windows), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    types = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        mask[row, : len(window.ids)] = 1
        types[row, window.second : len(window.ids)] = 1
    return WindowBatch(tuple(windows), ids.to(device), mask.to(device), types.to(device), tuple(numbers))


def balanced_weights(targets: Sequence[float], classes: int) -> torch.Tensor:
    """Return weights [classes] of mean 1 over the targets, by which all classes that occur count the same.

    IGNORED targets do not count; classes that do not occur get weight 1.
    """
    import torch

    counts = torch.zeros(classes)
    for target, count in Counter(targets).items():
        if target != IGNORED:
            counts[int(target)] = count
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp_min(1)), torch.ones(()))
