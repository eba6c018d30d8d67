"""How the tokens of a pack look at each other: along their path in the tree, and back at every trunk before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.packing import Pack, visibility

if TYPE_CHECKING:
    import torch

QUERY_BLOCK = 192
"""Tokens whose attention is computed in one product; they share the columns that any of them sees."""

KeysAndValues = Sequence[tuple["torch.Tensor", "torch.Tensor"]]
"""Of each layer, [kv_heads, S, d] each."""


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    columns: torch.Tensor
    """[C] the positions, trunks included, that any of the block's tokens sees."""
    visible: torch.Tensor
    """Bool [end - start, C]."""


class TreeLayout:
    """For training: one row that holds a tree. See `agent.llm.attention.Layout`."""

    def __init__(self, pack: Pack, device: torch.device, before: KeysAndValues = (), *, mixed: bool = False) -> None:
        """`mixed` makes products in bfloat16 and everything else in float32."""
        import torch

        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Keys and values of each layer, once the forward pass is over; kept of a trunk alone."""
        self._keeps = bool(pack.branches)
        self._before = before
        self._mixed = mixed
        self._depths = torch.from_numpy(np.concatenate([np.arange(pack.start), pack.positions])).to(device)
        self._start = pack.start
        seen = visibility(pack)
        self._blocks = []
        for start in range(0, len(pack), QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, len(pack))
            own = np.nonzero(seen[start:end].any(axis=0))[0]
            columns = np.concatenate([np.arange(pack.start), pack.start + own])
            trunks = np.ones((end - start, pack.start), dtype=bool)
            visible = np.concatenate([trunks, seen[start:end][:, own]], 1)
            self._blocks.append(_Block(start, end, *(torch.from_numpy(one).to(device) for one in (columns, visible))))
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
        """Query [heads, T, d], key and value [kv_heads, T, d]; returns [T, heads, d]."""
        import torch

        if self._keeps:
            self.kept.append((key, value))
        if self._before:
            key = torch.cat([self._before[layer][0], key], 1)
            value = torch.cat([self._before[layer][1], value], 1)
        if self._mixed:
            from tuner.mixed import attention

            key, value = key.to(torch.bfloat16), value.to(torch.bfloat16)
        parts = []
        for place, block in enumerate(self._blocks):
            keys, values = key.index_select(1, block.columns), value.index_select(1, block.columns)
            asked = query[:, block.start : block.end]
            visible = block.visible
            if window is not None:
                depths = self._depths[self._start + block.start : self._start + block.end]
                visible = visible & (self._depths[block.columns] > depths[:, None] - window)
            if self._mixed:
                bias = self._biases[place] if window is None else _as_bias(visible)
                out = attention(asked, keys, values, bias, scale)
            else:
                out = _exact_attention(asked, keys, values, visible, scale)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)


def _as_bias(visible: torch.Tensor) -> torch.Tensor:
    """Zero, or minus infinity where nothing is seen; in bfloat16, as what it is added to."""
    import torch

    return torch.zeros_like(visible, dtype=torch.bfloat16).masked_fill_(~visible, float("-inf"))


def _exact_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """[heads, T, d] over [kv_heads, S, d]."""
    from torch.nn.functional import scaled_dot_product_attention

    share = query.shape[0] // keys.shape[0]
    return scaled_dot_product_attention(
        query[None],
        keys.repeat_interleave(share, 0)[None],
        values.repeat_interleave(share, 0)[None],
        attn_mask=visible,
        scale=scale,
    )[0]
