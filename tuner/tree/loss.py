"""Loss and gradient of a packed tree, equal to those of its examples row by row.

A pack without branches is one forward and one backward pass. A trunk is computed once; its keys and values are given to
each branch as leaves that gather gradients, which go back through the trunk after the last branch. So a step holds the
activations of one path through its packs at a time, whatever the number of branches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import IMPLEMENTATION
from tuner.tree.attention import NOTHING, KeysAndValues, TreeLayout
from tuner.tree.packing import Pack, weight_in

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Noise:
    """Regularisation of a training pass; an evaluation uses none of it."""

    smoothing: float = 0.0
    """Share of a target's probability that is spread over all tokens. Source: Szegedy et al., 2016."""
    neftune: float = 0.0
    """Alpha of the uniform noise on the embeddings. Source: NEFTune (Jain et al., 2023)."""
    shifts: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By the id of a pack, [T, d] added to the embeddings of its tokens."""
    hold: float = 0.0
    """Weight of the divergence from `references`. Source: the KL penalty of Ouyang et al., 2022."""
    references: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By the id of a pack, [N, vocabulary] reference log-probabilities at its targets."""


SILENCE = Noise()


def backward(
    model: Any,
    pack: Pack,
    weight: float,
    precision: str = "float32",
    *,
    noise: Noise = SILENCE,
    before: KeysAndValues = NOTHING,
) -> float:
    """Add the gradient of a pack's weighted loss divided by `weight`, branches included; returns the summed loss."""
    with products_in(precision, model.device.type):
        loss, layout = _forward(model, pack, before, noise)
    total = float(loss.detach())
    leaves = _leaves(layout.kept)
    prefix = join_prefixes(before, leaves)
    for branch in pack.branches:
        total += backward(model, branch, weight, precision, noise=noise, before=prefix)
    _go_back(loss / weight, layout.kept, leaves)
    return total


def backward_with_prefix(
    model: Any,
    packs: Sequence[Pack],
    weight: float,
    precision: str = "float32",
    *,
    noise: Noise = SILENCE,
    before: KeysAndValues = NOTHING,
) -> float:
    """Call `backward` for several packs and propagate the gradient into a trained prefix, `before`."""
    leaves = _leaves(before)
    total = sum(backward(model, pack, weight, precision, noise=noise, before=leaves) for pack in packs)
    _go_back(None, before, leaves)
    return total


def loss_of(model: Any, pack: Pack, *, before: KeysAndValues = NOTHING) -> torch.Tensor:
    """Return the weighted sum of the cross-entropy over the targets of a pack and its branches."""
    loss, layout = _forward(model, pack, before, SILENCE)
    if pack.branches:
        prefix = join_prefixes(before, layout.kept)
        for branch in pack.branches:
            loss = loss + loss_of(model, branch, before=prefix)
    return loss


def mean_loss(
    model: Any, packs: Sequence[Pack], precision: str = "float32", *, before: KeysAndValues = NOTHING
) -> float:
    """Return the weighted mean loss over all targets, without gradients."""
    import torch

    with torch.inference_mode(), products_in(precision, model.device.type):
        total = sum(float(loss_of(model, pack, before=before)) for pack in packs)
    return total / weight_in(packs)


def misses(
    model: Any, packs: Sequence[Pack], precision: str = "float32", *, before: KeysAndValues = NOTHING
) -> dict[str, list[tuple[int, int]]]:
    """Return by run the targets that are not the likeliest token, each with the likeliest, in the order of the pack."""
    import torch

    missed: dict[str, list[tuple[int, int]]] = {}
    with torch.inference_mode():
        for pack, logits, labels in _each(model, packs, precision, before):
            likeliest = logits.argmax(-1)
            for place in (likeliest != labels).nonzero()[:, 0].tolist():
                for run in pack.runs[place]:
                    missed.setdefault(run, []).append((int(labels[place]), int(likeliest[place])))
    return missed


def log_probabilities(
    model: Any, packs: Sequence[Pack], precision: str = "float32", *, before: KeysAndValues = NOTHING
) -> dict[int, torch.Tensor]:
    """Return by the id of a pack, branches included, the log-probabilities at its targets: [N, vocabulary]."""
    import torch

    with torch.no_grad():
        return {id(pack): logits.float().log_softmax(-1) for pack, logits, _ in _each(model, packs, precision, before)}


def _each(
    model: Any, packs: Sequence[Pack], precision: str, before: KeysAndValues
) -> Iterator[tuple[Pack, torch.Tensor, torch.Tensor]]:
    """Yield every pack and branch with its logits and labels; call it without gradients."""
    for pack in packs:
        with products_in(precision, model.device.type):
            logits, labels, layout = _logits(model, pack, before, SILENCE)
        yield pack, logits, labels
        yield from _each(model, pack.branches, precision, join_prefixes(before, layout.kept))


def products_in(precision: str, device: str) -> Any:
    """Return a context in which matrix products have this precision (see `agent.llm.weights.precision`)."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "mixed")


def _forward(model: Any, pack: Pack, before: KeysAndValues, noise: Noise) -> tuple[torch.Tensor, TreeLayout]:
    """Return the weighted sum of the losses, and the layout with the keys and values of a trunk."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div

    logits, labels, layout = _logits(model, pack, before, noise)
    logits = logits.float()
    losses = cross_entropy(logits, labels, reduction="none", label_smoothing=noise.smoothing)
    kept = noise.references.get(id(pack))
    if kept is not None:
        losses = losses + noise.hold * kl_div(logits.log_softmax(-1), kept, reduction="none", log_target=True).sum(-1)
    return (losses * torch.from_numpy(pack.weights).to(losses.device)).sum(), layout


def _logits(
    model: Any, pack: Pack, before: KeysAndValues, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor, TreeLayout]:
    """Return logits [N, vocabulary] and labels [N] of the pack's own targets."""
    import torch

    device = model.device
    mixed = torch.is_autocast_enabled(device.type)
    layout = TreeLayout(pack, device, before, keeps=bool(pack.branches), mixed=mixed)
    ids, sources, labels = (torch.from_numpy(array).to(device) for array in (pack.ids, pack.sources, pack.labels))
    given = {"input_ids": ids[None]}
    if noise.neftune or id(pack) in noise.shifts:
        given = {"inputs_embeds": _disturbed(model.get_input_embeddings()(ids), pack, noise)[None]}
    if model.config._attn_implementation == IMPLEMENTATION:
        places = layout.positions[None]
        out = model(**given, position_ids=places, logits_to_keep=sources, use_cache=False, layout=layout)
        return out.logits[0], labels, layout
    # A model that does not read trees.
    return model(**given, use_cache=False).logits[0].index_select(0, sources), labels, layout


def _disturbed(embeddings: torch.Tensor, pack: Pack, noise: Noise) -> torch.Tensor:
    """Return the embeddings [T, d] with noise and shifts added."""
    if noise.neftune:
        longest = int(pack.positions.max()) + 1
        strength = noise.neftune / math.sqrt(longest * embeddings.shape[-1])
        embeddings = embeddings + strength * (2 * embeddings.new_empty(embeddings.shape).uniform_() - 1)
    shift = noise.shifts.get(id(pack))
    return embeddings if shift is None else embeddings + shift


def _leaves(pairs: KeysAndValues) -> KeysAndValues:
    """Return the same values as leaves that gather gradients."""
    return {
        layer: (key.detach().requires_grad_(key.requires_grad), value.detach().requires_grad_(value.requires_grad))
        for layer, (key, value) in pairs.items()
    }


def _go_back(loss: torch.Tensor | None, pairs: KeysAndValues, leaves: KeysAndValues) -> None:
    """Propagate the gradient of the loss, and the gradients that the leaves gathered, through the model."""
    import torch

    ends: list[tuple[torch.Tensor, torch.Tensor | None]] = [] if loss is None else [(loss, None)]
    for layer, pair in pairs.items():
        ends += [(tensor, leaf.grad) for tensor, leaf in zip(pair, leaves[layer], strict=True) if leaf.grad is not None]
    ends = [(end, gradient) for end, gradient in ends if end.requires_grad]
    if ends:
        torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])


def join_prefixes(before: KeysAndValues, own: KeysAndValues) -> KeysAndValues:
    """Concatenate the keys and values before a trunk with those of the trunk."""
    import torch

    if not before or not own:
        return own or before
    return {
        layer: (torch.cat([before[layer][0], key], 1), torch.cat([before[layer][1], value], 1))
        for layer, (key, value) in own.items()
    }
