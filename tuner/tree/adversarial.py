"""Training against the worst small change of the embeddings, so that a typo or another wording changes less.

Each token's change is at most a share of its embedding's length, and goes along its own gradient: so a token that
many examples share is changed once, and how examples are packed changes nothing else. Source: FGM (Miyato et al.,
2017), PGD (Madry et al., 2018), FreeLB (Zhu et al., 2020); there a change is measured over a whole sequence.
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
"""Steps that "pgd" and "freelb" take towards the worst change."""


def adversarial_backward(
    kind: str,
    size: float,
    model: Any,
    packs: Sequence[Pack],
    weight: float,
    precision: str,
    noise: Noise,
    parameters: Sequence[torch.nn.Parameter],
) -> float:
    """Add the gradient of the mean of clean and changed passes over `weight`; returns the first pass's loss, summed.

    `kind` is "fgm" (2 passes), "pgd" (4) or "freelb" (3, all changed).
    """
    import torch

    every = [one for pack in packs for one in pack.all()]
    with torch.no_grad():
        embeddings = {
            id(one): model.get_input_embeddings()(torch.from_numpy(one.ids).to(model.device)) for one in every
        }
    lengths = {key: size * one.norm(dim=-1, keepdim=True) for key, one in embeddings.items()}

    def run(shifts: dict[int, torch.Tensor], share: float) -> float:
        for shift in shifts.values():
            shift.requires_grad_().grad = None
        return sum(
            backward(model, pack, weight / share, precision, noise=replace(noise, shifts=shifts)) for pack in packs
        )

    def climbed(shifts: dict[int, torch.Tensor], stride: float) -> dict[int, torch.Tensor]:
        return {key: climb(shift, lengths[key], stride) for key, shift in shifts.items()}

    shifts = {key: torch.zeros_like(one) for key, one in embeddings.items()}
    if kind == "fgm":
        total = run(shifts, 0.5)
        run(climbed(shifts, 1.0), 0.5)
    elif kind == "pgd":
        total = run(shifts, 0.5)
        clean = [None if one.grad is None else one.grad.clone() for one in parameters]
        shifts = climbed(shifts, 1 / CLIMBS)
        for _ in range(CLIMBS - 1):
            run(shifts, 0.5)
            shifts = climbed(shifts, 1 / CLIMBS)
        # The passes on the way there only showed the direction.
        for parameter, gradient in zip(parameters, clean, strict=True):
            parameter.grad = gradient
        run(shifts, 0.5)
    else:
        shifts = {key: random_change(one, lengths[key]) for key, one in shifts.items()}
        total = run(shifts, 1 / CLIMBS)
        for _ in range(CLIMBS - 1):
            shifts = climbed(shifts, 1 / CLIMBS)
            run(shifts, 1 / CLIMBS)
    return total


def climb(shift: torch.Tensor, most: torch.Tensor, stride: float) -> torch.Tensor:
    """A step of `stride` times `most` along each token's gradient, cut back to the length `most` [T, 1]."""
    gradient = shift.grad
    if gradient is None:
        return shift.detach()
    moved = shift.detach() + stride * most * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    kept: torch.Tensor = (most / moved.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    changed: torch.Tensor = moved * kept
    return changed


def random_change(like: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """A random direction for each token, of a random part of the length `most`."""
    import torch

    direction = torch.randn_like(like)
    made: torch.Tensor = most * torch.rand_like(most) * direction / direction.norm(dim=-1, keepdim=True)
    return made
