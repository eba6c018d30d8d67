"""Attention for ragged batches: the tokens of many sequences in one row, each seeing its own past.

The linear layers, which cost most, run once over all tokens of all sequences, without padding. transformers passes the
queries, keys and values of every layer to the registered function below; the `Layout` that was passed to the model's
forward decides which keys each token sees. Works for any decoder that uses the attention interface of transformers;
models with attention sinks or soft-capping are not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent.errors import ModelError

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.kv_cache import KeyValues, SharedPrefix, Slots

IMPLEMENTATION = "ratchet_ragged"

_BUCKETS = (2, 16, 64)
"""Sequences are batched with others in the same bucket of new tokens. Above the last one, and beyond a sliding window,
each is computed alone."""


class Layout(Protocol):
    """Decides which keys the tokens of one forward pass see, and computes their attention."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Map query [heads, T, d], key and value [kv_heads, T, d] of one layer to its output [T, heads, d]."""
        ...


def use_ragged_attention(model: Any) -> None:
    """Switch a transformers decoder to ragged attention; each forward then needs `layout=`. Raises ModelError."""
    from transformers import AttentionInterface

    if not getattr(model, "_supports_attention_backend", True):
        raise ModelError(
            f"{type(model).__name__} does not use the attention interface of transformers; use a "
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
    return out.to(query.dtype).unsqueeze(0), None


class OneSequence:
    """The layout of a single sequence without a cache. Records the keys, values and settings of every layer."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By layer, keys and values [kv_heads, T, d]."""
        self.settings: dict[int, tuple[float, int | None]] = {}
        """By layer, the scale and the sliding window."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        self.pairs[layer] = key, value
        self.settings[layer] = scale, window
        return causal_attention(query, key, value, scale, window).transpose(0, 1)


class CachedLayout:
    """The layout of a decoding pass: each sequence's new tokens see its cache and themselves.

    Sequences with similarly many new tokens are batched: one product over their slots and one over each shared prefix
    are merged by their sums of exponentials. This is exact; see "cascade attention" in FlashInfer (Ye et al., 2024).
    Sequences with many new tokens are computed one by one.
    """

    def __init__(
        self, slots: Slots, sequences: Sequence[KeyValues], counts: Sequence[int], device: torch.device
    ) -> None:
        """Lay out sequences that all have a slot; `counts` are their new tokens, in the order of the row."""
        import torch

        self._slots = slots
        self._sequences = sequences
        self._counts = counts
        self._starts = [int(start) for start in np.cumsum([0, *counts])]
        self._places: list[int] = []
        """The slot of each sequence."""
        columns: list[int] = []
        for sequence, count in zip(sequences, counts, strict=True):
            assert sequence.slot is not None
            self._places.append(sequence.slot)
            columns += range(sequence.own_length, sequence.own_length + count)
        slots.reserve(max(columns) + 1)
        self._rows = torch.tensor(np.repeat(self._places, counts), device=device)
        self._columns = torch.tensor(columns, device=device)
        self._longest = max(sequence.length + count for sequence, count in zip(sequences, counts, strict=True))
        self._masks: dict[int, torch.Tensor] = {}
        """By sequence that is computed alone."""
        self._groups = []
        lowest = 0
        for most in _BUCKETS:
            members = [index for index, count in enumerate(counts) if lowest < count <= most]
            if members:
                self._groups.append(self._make_group(members, device))
            lowest = most
        self._alone = [index for index, count in enumerate(counts) if count > lowest]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        self._slots.write(layer, self._rows, self._columns, key, value)
        query = query.to(self._slots.dtype or query.dtype)
        groups, alone = self._groups, self._alone
        if window is not None and self._longest > window:
            groups, alone = [], list(range(len(self._counts)))
        if len(groups) == 1 and not alone:
            return groups[0].attend(layer, query, scale)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for group in groups:
            out[group.tokens] = group.attend(layer, query[:, group.tokens], scale)
        for index in alone:
            start, end = self._starts[index], self._starts[index + 1]
            out[start:end] = self._attend_alone(index, layer, query[:, start:end], scale, window).transpose(0, 1)
        return out

    def _attend_alone(
        self, index: int, layer: int, query: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """Attend for one sequence; maps the query [heads, T, d] of its new tokens to the same shape."""
        sequence, count = self._sequences[index], self._counts[index]
        if window is not None:
            return causal_attention(query, *sequence.whole(layer, sequence.own_length + count), scale, window)
        keys, values = sequence.own(layer, sequence.own_length + count)
        past = keys.shape[1] - count
        heads, _, size = query.shape
        folded = query.reshape(keys.shape[0], -1, size)
        output = _softmax_product(folded, keys[:, past:], values[:, past:], scale, self._causal_mask(index, folded))
        before = [(keys[:, :past], values[:, :past])] if past else []
        before += [sequence.shared.pairs[layer]] if sequence.shared is not None else []
        for pair in before:
            output = _merge(output, _softmax_product(folded, *pair, scale, None))
        return output[0].reshape(heads, count, size)

    def _causal_mask(self, index: int, like: torch.Tensor) -> torch.Tensor:
        """Return the additive mask [kv_heads, share * T, T] of T new tokens with each other."""
        if index not in self._masks:
            groups, rows, count = like.shape[0], like.shape[1], self._counts[index]
            hidden = ~_visible(count, count, None, like.device)
            added = like.new_zeros(count, count).masked_fill_(hidden, float("-inf"))
            self._masks[index] = added.repeat(rows // count, 1).expand(groups, -1, -1)
        return self._masks[index]

    def commit(self) -> None:
        """Count the new tokens as cached; to be called once, after the forward pass."""
        for sequence, count in zip(self._sequences, self._counts, strict=True):
            sequence.length += count

    def _make_group(self, members: Sequence[int], device: torch.device) -> _Group:
        """Lay out the sequences with these indices for products over all of them."""
        import torch

        placed = [(self._places[index], self._sequences[index], self._counts[index]) for index in members]
        slots = [slot for slot, _, _ in placed]
        # A range of slots is read in place, idle ones included; where most would be idle, rows are gathered.
        span = range(min(slots), max(slots) + 1)
        rows = span if 2 * len(slots) >= len(span) else slots
        row_of = {slot: row for row, slot in enumerate(rows)}
        width = max(count for _, _, count in placed)
        length = max(sequence.own_length + count for _, sequence, count in placed)
        # For each row and each of its `width` queries the last column it sees; padding sees the first.
        last = np.zeros((len(rows), width), dtype=np.int64)
        source = np.zeros((len(rows), width), dtype=np.int64)
        target: list[int] = []
        prefixes: dict[int, tuple[SharedPrefix, list[int]]] = {}
        start = 0
        for slot, sequence, count in placed:
            row = row_of[slot]
            last[row, :count] = np.arange(sequence.own_length, sequence.own_length + count)
            source[row, :count] = np.arange(start, start + count)
            target += range(row * width, row * width + count)
            if sequence.shared is not None:
                prefixes.setdefault(id(sequence.shared), (sequence.shared, []))[1].extend(range(start, start + count))
            start += count
        tokens = np.concatenate([np.arange(self._starts[index], self._starts[index + 1]) for index in members])
        hidden = np.arange(length) > last[..., None]
        is_dense = target == list(range(len(rows) * width))
        return _Group(
            self._slots,
            rows if isinstance(rows, range) else torch.tensor(rows, device=device),
            torch.from_numpy(tokens).to(device),
            None
            if is_dense
            else (torch.from_numpy(source.reshape(-1)).to(device), torch.tensor(target, device=device)),
            (len(rows), width, length),
            torch.from_numpy(hidden).to(device) if hidden.any() else None,
            [
                (prefix, slice(None) if len(tokens_of) == start else torch.tensor(tokens_of, device=device))
                for prefix, tokens_of in prefixes.values()
            ],
        )


@dataclass
class _Group:
    """T new tokens of sequences in R rows of the slots; each row is padded to W queries."""

    slots: Slots
    rows: range | torch.Tensor
    """The slots; R of them."""
    tokens: torch.Tensor
    """[T] their places in the row of the whole pass."""
    places: tuple[torch.Tensor, torch.Tensor] | None
    """[R * W] the token of each query, 0 for padding; [T] the query of each token. None where tokens and queries are
    the same, in the same order."""
    shape: tuple[int, int, int]
    """R, W and the number of columns L that are read."""
    hidden: torch.Tensor | None
    """Bool [R, W, L]: columns that a query does not see; None where each sees all."""
    shared: Sequence[tuple[SharedPrefix, torch.Tensor | slice]]
    """Each prefix, and the tokens that see it."""
    _added: torch.Tensor | None = None

    def attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Map query [heads, T, d] to [T, heads, d]."""
        heads, _, size = query.shape
        rows, width, length = self.shape
        keys, values = self.slots.block(layer, self.rows, length)
        groups = keys.shape[0] // rows
        # Heads that share keys become more rows of one query, so that keys are read once and not repeated.
        padded = query if self.places is None else query.index_select(1, self.places[0])
        folded = padded.reshape(groups, -1, rows, width, size).permute(2, 0, 1, 3, 4).reshape(rows * groups, -1, size)
        own, own_sums = _softmax_product(folded, keys, values, scale, self._mask(groups, heads // groups, query))
        out = self._by_token(own, groups)
        if not self.shared:
            return out
        sums = self._by_token(own_sums, groups)
        for prefix, part in self.shared:
            shared, shared_sums = _softmax_product(
                query[:, part].reshape(groups, -1, size), *prefix.pairs[layer], scale, None
            )
            by_token = (
                shared.reshape(heads, -1, size).transpose(0, 1),
                shared_sums.reshape(heads, -1, 1).transpose(0, 1),
            )
            out[part] = _merge((out[part], sums[part]), by_token)[0].to(out.dtype)
        return out

    def _by_token(self, output: torch.Tensor, groups: int) -> torch.Tensor:
        """Rearrange [R * groups, share * W, d] to [T, heads, d]."""
        rows, width, _ = self.shape
        size = output.shape[-1]
        by_query = output.reshape(rows, groups, -1, width, size).permute(0, 3, 1, 2, 4).reshape(rows * width, -1, size)
        return by_query if self.places is None else by_query.index_select(0, self.places[1])

    def _mask(self, groups: int, share: int, like: torch.Tensor) -> torch.Tensor | None:
        """Return the additive mask [R * groups, share * W, L]: minus infinity where a query does not see."""
        if self.hidden is not None and self._added is None:
            rows, width, length = self.shape
            added = like.new_zeros(self.hidden.shape).masked_fill_(self.hidden, float("-inf"))
            expanded = added[:, None, None].expand(-1, groups, share, -1, -1)
            self._added = expanded.reshape(rows * groups, share * width, length)
        return self._added


def _softmax_product(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, added: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention [B, N, d] over [B, S, d], and the log of each row's sum of exponentials, float32 [B, N, 1].

    `added`, the mask that is added to the scores, is [B, N, S].
    """
    import torch

    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if fused is not None and query.device.type == "cpu":
        mask = None if added is None else added[None].to(query.dtype)
        out, sums = fused(query[None], keys[None], values[None], 0.0, False, attn_mask=mask, scale=scale)
        return out[0], sums[0][..., None]
    exact = query.float()  # In fewer bits, a sum of exponentials would be off by some percent.
    scores = torch.baddbmm(exact.new_zeros(1), exact, keys.float().transpose(1, 2), beta=0, alpha=scale)
    if added is not None:
        scores += added
    sums = scores.logsumexp(-1, keepdim=True)
    return torch.bmm(scores.sub_(sums).exp_().to(values.dtype), values), sums


def _merge(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine attention over two parts of the keys, each with its log sums, to attention over both."""
    import torch

    share = (second[1] - first[1]).sigmoid()
    return torch.lerp(first[0].float(), second[0].float(), share), torch.logaddexp(first[1], second[1])


def causal_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Attend from the last T of S positions. Query [heads, T, d], keys and values [kv_heads, S, d] -> [heads, T, d]."""
    from torch.nn.functional import scaled_dot_product_attention

    heads, count, width = query.shape
    groups, length, _ = keys.shape
    share = heads // groups
    # Heads that share keys become more rows of one query, so that keys are read once and not repeated.
    folded = query.reshape(groups, share * count, width)
    visible = _visible(count, length, window, query.device).repeat(share, 1)
    out = scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=visible, scale=scale)
    return out.reshape(heads, count, width)


def _visible(count: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return bool [T, S]: which of S positions the last T see."""
    import torch

    rows = torch.arange(length - count, length, device=device)[:, None]
    columns = torch.arange(length, device=device)[None, :]
    mask = columns <= rows
    return mask if window is None else mask & (columns > rows - window)
