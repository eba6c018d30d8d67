"""One attention for ragged batches: many sequences laid end to end in one row, each seeing its own past.

The linear layers, which cost most, then run once over all tokens of all sequences, and nothing is padded.
transformers hands every layer's queries, keys and values to the registered function below; the `Layout` that
was passed to the model's forward decides which keys each token sees. Works for any decoder that goes through
the attention interface of transformers; models with attention sinks or soft-capping are not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agent.errors import ModelError

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "ratchet_ragged"

_SMALL = 16
"""New tokens up to which plain products beat the fused kernel, whose set-up costs more than it saves."""


class Layout(Protocol):
    """Says which keys the tokens of one forward pass see."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Query [heads, T, d], key and value [kv_heads, T, d] of this pass; returns [T, heads, d]."""
        ...


def use_ragged_attention(model: Any) -> None:
    """Switch a transformers decoder to ragged attention. From then on each forward needs `layout=`."""
    from transformers import AttentionInterface

    if not getattr(model, "_supports_attention_backend", True):
        raise ModelError(
            f"{type(model).__name__} does not go through the attention interface of transformers; use a "
            "Llama, Qwen or Mistral kind of model"
        )
    AttentionInterface.register(IMPLEMENTATION, _ragged_attention)
    model.set_attn_implementation(IMPLEMENTATION)


def _ragged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if layout is None:
        raise ModelError("this model runs with ragged attention; pass layout= to its forward")
    if softcap is not None or s_aux is not None:
        raise ModelError("soft-capped attention and attention sinks are not supported; use another base model")
    out = layout.attend(module.layer_idx, query[0], key[0], value[0], scaling, sliding_window)
    return out.unsqueeze(0), None


class KeyValues:
    """Keys and values of one sequence in every layer, in buffers that grow by doubling."""

    def __init__(self, layers: int) -> None:
        self.length = 0
        self._buffers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind `length` (which the caller moves on after the last layer); return all so far."""
        end = self.length + key.shape[1]
        buffers = self._buffers[layer]
        if buffers is None or buffers[0].shape[1] < end:
            buffers = self._grow(buffers, key, end)
            self._buffers[layer] = buffers
        keys, values = buffers
        keys[:, self.length : end] = key
        values[:, self.length : end] = value
        return keys[:, :end], values[:, :end]

    def _grow(
        self, old: tuple[torch.Tensor, torch.Tensor] | None, like: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        room = max(64, end + end // 4)
        fresh = (
            like.new_empty(like.shape[0], room, like.shape[2]),
            like.new_empty(like.shape[0], room, like.shape[2]),
        )
        if old is not None:
            fresh[0][:, : self.length] = old[0][:, : self.length]
            fresh[1][:, : self.length] = old[1][:, : self.length]
        return fresh

    def copy(self, length: int) -> KeyValues:
        """The first `length` positions, as buffers of their own."""
        twin = KeyValues(len(self._buffers))
        twin.length = length
        for layer, buffers in enumerate(self._buffers):
            if buffers is not None:
                keys, values = buffers
                room = length + max(64, length // 4)
                pair = (
                    keys.new_empty(keys.shape[0], room, keys.shape[2]),
                    keys.new_empty(keys.shape[0], room, keys.shape[2]),
                )
                pair[0][:, :length] = keys[:, :length]
                pair[1][:, :length] = values[:, :length]
                twin._buffers[layer] = pair
        return twin

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    @property
    def bytes(self) -> int:
        return sum(2 * pair[0].nelement() * pair[0].element_size() for pair in self._buffers if pair is not None)


@dataclass(frozen=True)
class CachedLayout:
    """For decoding: the row is a run of new tokens for each sequence, which sees its own cache and itself."""

    sequences: Sequence[KeyValues]
    counts: Sequence[int]
    """New tokens of each sequence, in the order they lie in the row."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        start = 0
        for sequence, count in zip(self.sequences, self.counts, strict=True):
            end = start + count
            keys, values = sequence.append(layer, key[:, start:end], value[:, start:end])
            out[start:end] = _causal(query[:, start:end], keys, values, scale, window).transpose(0, 1)
            start = end
        return out

    def commit(self) -> None:
        """Count the new tokens as cached; call once the forward pass is over."""
        for sequence, count in zip(self.sequences, self.counts, strict=True):
            sequence.length += count


def _causal(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """The last T positions look back. Query [h, T, d], keys and values [g, S, d] -> [h, T, d]."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, count, width = query.shape
    groups, length, _ = keys.shape
    share = heads // groups
    # The heads that share keys become more rows of one query, so the keys are read once and not repeated.
    folded = query.reshape(groups, share * count, width)
    if count <= _SMALL and (window is None or window >= length):
        weights = torch.baddbmm(query.new_zeros(1), folded, keys.transpose(1, 2), beta=0, alpha=scale)
        if count > 1:
            future = torch.ones(count, count, dtype=torch.bool, device=query.device).triu_(1)
            weights.view(groups, share, count, length)[..., -count:].masked_fill_(future, float("-inf"))
        return torch.bmm(weights.softmax(-1), values).reshape(heads, count, width)
    visible = _visible(count, length, window, query.device).repeat(share, 1)
    out = scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=visible, scale=scale)
    return out.reshape(heads, count, width)


def _visible(count: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool [T, S]: which of S positions the last T may see."""
    import torch

    rows = torch.arange(length - count, length, device=device)[:, None]
    columns = torch.arange(length, device=device)[None, :]
    mask = columns <= rows
    return mask if window is None else mask & (columns > rows - window)
