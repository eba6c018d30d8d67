"""Tree attention: each token of a pack attends to its path in the tree and to every trunk before the pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.tree.packing import Pack, visibility

if TYPE_CHECKING:
    import torch

QUERY_BLOCK = 192
"""Tokens whose attention is computed in one product, over all columns that any of them attends to."""

KeysAndValues = Mapping[int, tuple["torch.Tensor", "torch.Tensor"]]
"""Keys and values by layer, [kv_heads, S, d] each; empty without a prefix."""

NOTHING: KeysAndValues = {}


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    columns: torch.Tensor
    """[C] positions, trunks included, that any of the block's tokens attends to."""
    visible: torch.Tensor
    """Bool [end - start, C]."""


class TreeLayout:
    """The layout of a tree in one row, for training. See `agent.llm.engine.attention.Layout`."""

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        before: KeysAndValues = NOTHING,
        *,
        keeps: bool = False,
        mixed: bool = False,
    ) -> None:
        """Prepare positions and masks.

        Args:
            pack: The tree.
            device: Of the model.
            before: Keys and values of the prefix: the method's prefix and the pack's trunks.
            keeps: Whether to keep the keys and values of the pack.
            mixed: Whether products are in bfloat16 and everything else in float32.
        """
        import torch

        self.pack = pack
        self.before = before
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of each layer, after the forward pass."""
        start = next(iter(before.values()))[0].shape[1] if before else 0
        positions = pack.positions + (start - pack.start)
        self.positions = torch.from_numpy(positions).to(device)
        """[T] positions of the pack's tokens, those of the prefix counted."""
        self._keeps = keeps
        self._mixed = mixed
        self._depths = torch.from_numpy(np.concatenate([np.arange(start), positions])).to(device)
        self._start = start
        seen = visibility(pack)
        self._blocks = []
        for first in range(0, len(pack), QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, len(pack))
            own = np.nonzero(seen[first:last].any(axis=0))[0]
            columns = np.concatenate([np.arange(start), start + own])
            trunks = np.ones((last - first, start), dtype=bool)
            visible = np.concatenate([trunks, seen[first:last][:, own]], 1)
            self._blocks.append(
                _Block(first, last, *(torch.from_numpy(array).to(device) for array in (columns, visible)))
            )
        self._biases = [_as_bias(block.visible) for block in self._blocks] if mixed else []

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Compute attention: query [heads, T, d], key and value [kv_heads, T, d]; returns [T, heads, d]."""
        import torch

        if self._keeps:
            self.kept[layer] = key, value
        if self.before:
            key = torch.cat([self.before[layer][0], key], 1)
            value = torch.cat([self.before[layer][1], value], 1)
        if self._mixed:
            from tuner.tree.mixed_precision import attention

            key, value = key.to(torch.bfloat16), value.to(torch.bfloat16)
        parts = []
        for place, block in enumerate(self._blocks):
            keys, values = key.index_select(1, block.columns), value.index_select(1, block.columns)
            queries = query[:, block.start : block.end]
            visible = block.visible
            if window is not None:
                depths = self._depths[self._start + block.start : self._start + block.end]
                visible = visible & (self._depths[block.columns] > depths[:, None] - window)
            if self._mixed:
                bias = self._biases[place] if window is None else _as_bias(visible)
                out = attention(queries, keys, values, bias, scale)
            else:
                out = _exact_attention(queries, keys, values, visible, scale)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)


def _as_bias(visible: torch.Tensor) -> torch.Tensor:
    """Return zero, or minus infinity where masked; in bfloat16, like the scores it is added to."""
    import torch

    return torch.zeros_like(visible, dtype=torch.bfloat16).masked_fill_(~visible, float("-inf"))


def _exact_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute attention of [heads, T, d] over [kv_heads, S, d]."""
    from torch.nn.functional import scaled_dot_product_attention

    share = query.shape[0] // keys.shape[0]
    return scaled_dot_product_attention(
        query[None],
        keys.repeat_interleave(share, 0)[None],
        values.repeat_interleave(share, 0)[None],
        attn_mask=visible,
        scale=scale,
    )[0]
