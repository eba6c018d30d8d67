"""Adversarial training on the embeddings (FreeLB), so that typos and other wordings change the output less.

Each token's change is at most a share of its embedding's length and follows its own gradient. A token that many
examples share is changed once, and how examples are packed makes no other difference. Source: FreeLB (Zhu et al.,
2020), which measures a change over a whole sequence instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuner.tree.loss import Noise, backward
from tuner.tree.packing import Pack

if TYPE_CHECKING:
    import torch

CLIMBS = 3
"""Passes of FreeLB, each after a step towards the worst change."""


def freelb_backward(
    model: Any, packs: Sequence[Pack], weight: float, precision: str, *, size: float, noise: Noise
) -> float:
    """Add the mean gradient of `CLIMBS` passes over changed embeddings.

    Args:
        model: Computes logits.
        packs: Of one optimizer step.
        weight: The loss is divided by it.
        precision: Of matrix products.
        size: The largest change of an embedding, as a share of its length.
        noise: Further changes of the training pass.

    Returns:
        The summed loss of the first pass.
    """
    import torch

    tree = [node for pack in packs for node in pack.all()]
    with torch.no_grad():
        embeddings = {
            id(node): model.get_input_embeddings()(torch.from_numpy(node.ids).to(model.device)) for node in tree
        }
    limits = {key: size * embedding.norm(dim=-1, keepdim=True) for key, embedding in embeddings.items()}

    def run(shifts: dict[int, torch.Tensor]) -> float:
        for shift in shifts.values():
            shift.requires_grad_().grad = None
        changed = replace(noise, shifts=shifts)
        return sum(backward(model, pack, weight * CLIMBS, precision, noise=changed) for pack in packs)

    shifts = {key: random_change(embedding, limits[key]) for key, embedding in embeddings.items()}
    total = run(shifts)
    for _ in range(CLIMBS - 1):
        shifts = {key: climb(shift, limits[key], 1 / CLIMBS) for key, shift in shifts.items()}
        run(shifts)
    return total


def climb(shift: torch.Tensor, limit: torch.Tensor, stride: float) -> torch.Tensor:
    """Move a change along its gradient and cut it back to its limit.

    Args:
        shift: [T, d], with a gradient.
        limit: [T, 1], the largest length for each token.
        stride: Length of the move, as a share of `limit`.
    """
    gradient = shift.grad
    if gradient is None:
        return shift.detach()
    moved = shift.detach() + stride * limit * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    scale: torch.Tensor = (limit / moved.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    changed: torch.Tensor = moved * scale
    return changed


def random_change(like: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Return for each token a random direction, of random length up to `limit` [T, 1]."""
    import torch

    direction = torch.randn_like(like)
    change: torch.Tensor = limit * torch.rand_like(limit) * direction / direction.norm(dim=-1, keepdim=True)
    return change
