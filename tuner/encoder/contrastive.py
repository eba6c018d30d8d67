"""Texts of one label are to be nearer to each other than to those of all others: batches, and the loss on them.

Source: Khosla et al., "Supervised Contrastive Learning" (2020), the loss whose sum over positives stands outside the
logarithm.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Example = tuple[str, str]
"""A text and its label."""


def batches(
    examples: Sequence[Example], labels: int, texts: int, count: int, chance: random.Random
) -> list[list[Example]]:
    """`count` batches, each of `labels` labels with `texts` texts, or as many as there are.

    Every label turns up about as often, however many texts it has; where there are fewer labels each brings more texts.
    """
    piles: dict[str, list[Example]] = {}
    for one in examples:
        piles.setdefault(one[1], []).append(one)
    together = min(labels, len(piles))
    each = labels * texts // together
    deck = _dealt(list(piles), chance)
    made = []
    for _ in range(count):
        taken: dict[str, None] = {}
        while len(taken) < together:
            taken.setdefault(next(deck))
        made.append([one for label in taken for one in chance.sample(piles[label], min(each, len(piles[label])))])
    return made


def contrastive_loss(
    asked: torch.Tensor, others: torch.Tensor, alike: torch.Tensor, left_out: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over the asked, of vectors [n, d], of how unlikely those of their label are among the others [m, d].

    `alike` and `left_out` [n, m] are true where two have one label, and where a text would meet itself. Who has nobody
    of its label is passed over; the loss is 0 where that is everybody.
    """
    scores = (asked @ others.T / temperature).masked_fill(left_out, float("-inf"))
    unlikely = scores.logsumexp(dim=1, keepdim=True) - scores
    friends = alike & ~left_out
    counts = friends.sum(dim=1)
    sums = unlikely.masked_fill(~friends, 0.0).sum(dim=1)
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def _dealt(labels: list[str], chance: random.Random) -> Iterator[str]:
    """The labels without end, each once before any comes again."""
    while True:
        chance.shuffle(labels)
        yield from labels
