"""What goes through the encoder: windows of tokens, and batches of them of like length."""

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
"""In place of an example's number: what is learnt beside the examples, such as the name of a label."""


@dataclass(frozen=True)
class Window:
    """One sequence of tokens, of one example."""

    example: int
    """Its number in the list that windows were made of, or NO_EXAMPLE."""
    ids: tuple[int, ...]
    second: int
    """Where the tokens of the second text begin, in models that tell two apart; `len(ids)` with one."""
    targets: tuple[float, ...] = ()
    """What the task makes of its labels; empty where there are none."""
    marks: tuple[int, ...] = ()
    """Tokens that a relation is read from."""
    words: tuple[int, ...] = ()
    """In a tagging, for each token the word that it tells the tag of, or IGNORED."""
    offsets: tuple[tuple[int, int], ...] = ()
    """In a question, the characters of the context that each token from `second` on stands for."""


@dataclass(frozen=True)
class Batch:
    """Windows as tensors, padded to the longest; B windows of T tokens."""

    windows: tuple[Window, ...]
    ids: torch.Tensor
    """[B, T]"""
    mask: torch.Tensor
    """[B, T], 1 where a token is."""
    types: torch.Tensor
    """[B, T], 1 in the second text."""
    numbers: tuple[int, ...] = field(default=())
    """Which windows these are, in the list they were taken from."""


def batches(
    windows: Sequence[Window],
    size: int,
    padding: int,
    *,
    chance: random.Random | None = None,
    device: Any = "cpu",
    together: int = 1,
) -> Iterator[Batch]:
    """All windows, those of like length together; in the order of length, or shuffled where `chance` is given.

    Shuffled are the windows in pools of 50 batches, sorted inside, and then the batches. Of `together` windows, one
    behind the other, all are in the same batch.
    """
    order = list(range(0, len(windows), together))
    size = max(1, size // together)

    def length(at: int) -> int:
        return max(len(one.ids) for one in windows[at : at + together])

    if chance is None:
        order.sort(key=length)
        made = [order[start : start + size] for start in range(0, len(order), size)]
    else:
        chance.shuffle(order)
        pool = 50 * size
        pools = [sorted(order[start : start + pool], key=length) for start in range(0, len(order), pool)]
        made = [one[start : start + size] for one in pools for start in range(0, len(one), size)]
        chance.shuffle(made)
    for begun in made:
        numbers = [at + part for at in begun for part in range(together)]
        yield batch([windows[at] for at in numbers], padding, numbers=numbers, device=device)


def batch(windows: Sequence[Window], padding: int, *, numbers: Sequence[int] = (), device: Any = "cpu") -> Batch:
    """These windows as one batch."""
    import torch

    longest = max(len(one.ids) for one in windows)
    ids = torch.full((len(windows), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    types = torch.zeros_like(ids)
    for row, one in enumerate(windows):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
        types[row, one.second : len(one.ids)] = 1
    return Batch(tuple(windows), ids.to(device), mask.to(device), types.to(device), tuple(numbers))


def balanced(targets: Sequence[float], classes: int) -> torch.Tensor:
    """Weights by which every class that is there counts the same over all targets, of mean 1; IGNORED ones aside."""
    import torch

    counts = torch.zeros(classes)
    for target, count in Counter(targets).items():
        if target != IGNORED:
            counts[int(target)] = count
    there = counts > 0
    return torch.where(there, counts.sum() / (there.sum() * counts.clamp_min(1)), torch.ones(()))
