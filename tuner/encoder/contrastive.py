"""Supervised contrastive learning: balanced batches of labelled texts, and the loss on them.

Source: Khosla et al., "Supervised Contrastive Learning" (2020), the variant with the sum over positives outside the
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


def make_batches(
    examples: Sequence[Example], labels: int, texts: int, count: int, rng: random.Random
) -> list[list[Example]]:
    """Draw `count` batches of `labels` labels with `texts` texts each, or as many as there are.

    Every label is drawn about equally often, however many texts it has. With fewer labels than asked for, each
    contributes more texts.
    """
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example[1], []).append(example)
    label_count = min(labels, len(by_label))
    per_label = labels * texts // label_count
    deck = _cycle_shuffled(list(by_label), rng)
    batches = []
    for _ in range(count):
        drawn: dict[str, None] = {}
        while len(drawn) < label_count:
            drawn.setdefault(next(deck))
        batches.append(
            [
                example
                for label in drawn
                for example in rng.sample(by_label[label], min(per_label, len(by_label[label])))
            ]
        )
    return batches


def contrastive_loss(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    same_label: torch.Tensor,
    is_self: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return the mean negative log-probability of the candidates with an anchor's label.

    Args:
        anchors: unit vectors [n, d].
        candidates: unit vectors [m, d].
        same_label: [n, m], true where anchor and candidate have one label.
        is_self: [n, m], true where the candidate is the anchor itself.
        temperature: divides the cosines.

    Returns:
        The mean over the anchors that have a candidate of their label; 0 where none has.
    """
    scores = (anchors @ candidates.T / temperature).masked_fill(is_self, float("-inf"))
    losses = scores.logsumexp(dim=1, keepdim=True) - scores
    positives = same_label & ~is_self
    counts = positives.sum(dim=1)
    sums = losses.masked_fill(~positives, 0.0).sum(dim=1)
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def _cycle_shuffled(labels: list[str], rng: random.Random) -> Iterator[str]:
    """Yield the labels without end, each once before any repeats."""
    while True:
        rng.shuffle(labels)
        yield from labels
