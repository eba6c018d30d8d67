"""Keys and values of sequences: a prefix that many share, stored once, and each sequence's own part in a slot.

Slots are rows of one buffer for each layer, so that attention takes all running sequences in one product. A
sequence that waits keeps its slot until another needs it; then its part is put aside, and comes back later.
Not thread-safe: the engine's worker is the only user.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.errors import ModelError

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]
    """Keys and values of one layer, each [kv_heads, T, d]."""

SHARED_UNIT = 64
"""Tokens; a prefix is shared in multiples of it, so that sequences alike share the very same one."""

_LEAST_ROOM = 256


class SharedPrefix:
    """The first positions of many sequences; written once and only read."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.length = int(pairs[0][0].shape[1])
        self._shorter: weakref.WeakValueDictionary[int, SharedPrefix] = weakref.WeakValueDictionary()

    def upto(self, length: int) -> SharedPrefix:
        """The first `length` positions; the same object as long as anybody has it."""
        if length == self.length:
            return self
        shorter = self._shorter.get(length)
        if shorter is None:
            # Copied, for views would keep all of the longer one when nobody has that any more.
            shorter = SharedPrefix(
                [(keys[:, :length].clone(), values[:, :length].clone()) for keys, values in self.pairs]
            )
            self._shorter[length] = shorter
        return shorter


class KeyValues:
    """One sequence: its shared prefix, if it has one, and its own part behind it."""

    def __init__(self, slots: Slots) -> None:
        self.length = 0
        self.shared: SharedPrefix | None = None
        self.slot: int | None = None
        self.running = False
        """Whether the slot must not be taken away."""
        self._slots = slots
        self._aside: list[Pair] | None = None
        """The own part while there is no slot for it."""

    @classmethod
    def starting_with(cls, pairs: Sequence[Pair], slots: Slots) -> KeyValues:
        """A sequence whose first positions are read already: keys and values of each layer, which are copied."""
        made = cls(slots)
        if pairs:
            made.length = int(pairs[0][0].shape[1])
            made._aside = [
                (keys.to(slots.dtype or keys.dtype, copy=True), values.to(slots.dtype or values.dtype, copy=True))
                for keys, values in pairs
            ]
        return made

    @property
    def own_length(self) -> int:
        return self.length - (self.shared.length if self.shared is not None else 0)

    def own(self, layer: int, length: int | None = None) -> Pair:
        """The own part in one layer, of its length or a longer one that is just being written."""
        end = self.own_length if length is None else length
        keys, values = self._slots.row(layer, self.slot) if self._aside is None else self._aside[layer]
        return keys[:, :end], values[:, :end]

    def all(self, layer: int, length: int | None = None) -> Pair:
        """Shared and own part in one layer, end to end; `length` as in `own`."""
        import torch

        keys, values = self.own(layer, length)
        if self.shared is None:
            return keys, values
        before = self.shared.pairs[layer]
        return torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)

    def copy(self, length: int) -> KeyValues:
        """A sequence with the same first `length` positions, sharing what is worth sharing of them."""
        twin = KeyValues(self._slots)
        twin.length = length
        if length == 0:
            return twin
        unit = length - length % SHARED_UNIT
        if unit and self.shared is None and not self._slots.static:
            self._share(unit)
        if unit and self.shared is not None:
            twin.shared = self.shared.upto(min(unit, self.shared.length))
        # Usually the whole shared prefix is kept, and only the own part need be looked at.
        start, part, end = 0, self.own, twin.own_length
        if twin.shared is not self.shared:
            start, part, end = length - twin.own_length, self.all, length
        pairs = [part(layer) for layer in range(self._slots.layers)]
        twin._aside = [(keys[:, start:end].clone(), values[:, start:end].clone()) for keys, values in pairs]
        return twin

    def put_aside(self) -> None:
        """Leave the slot."""
        if self.slot is not None and self.length:
            pairs = [self.own(layer) for layer in range(self._slots.layers)]
            self._aside = [(keys.clone(), values.clone()) for keys, values in pairs]
        self.slot = None

    def take_slot(self, slot: int) -> None:
        """Move into a slot that is free."""
        self.slot = slot
        aside, self._aside = self._aside, None
        for layer, (keys, values) in enumerate(aside or ()):
            self._slots.fit(layer, keys)
            row = self._slots.row(layer, slot)
            row[0][:, : keys.shape[1]] = keys
            row[1][:, : keys.shape[1]] = values

    def _share(self, length: int) -> None:
        """Make the first positions of the own part a shared prefix."""
        pairs = [self.own(layer) for layer in range(self._slots.layers)]
        rest = self.own_length - length
        prefix = SharedPrefix([(keys[:, :length].clone(), values[:, :length].clone()) for keys, values in pairs])
        left = [(keys[:, length:].clone(), values[:, length:].clone()) for keys, values in pairs]
        self.shared = prefix
        if self._aside is not None:
            self._aside = left
            return
        for layer, (keys, values) in enumerate(left):
            row = self._slots.row(layer, self.slot)
            row[0][:, :rest] = keys
            row[1][:, :rest] = values


class Slots:
    """Rows for the own parts of running sequences. Buffers are made, and grow, as they are needed."""

    def __init__(self, layers: int, most: int, *, static: bool = False, dtype: torch.dtype | None = None) -> None:
        """`most` sequences can run at once. What is written is kept as `dtype`; None keeps it as it comes.

        With `static`, as `agent.llm.engine.static_forward` needs it, sequences share nothing and lie whole in their slots, whose last
        column no sequence reaches; and the buffers grow seldom, for then they move.
        """
        self.layers = layers
        self.static = static
        self.dtype = dtype
        self.moves = 0
        """How often a buffer was replaced by a larger one."""
        self._most = most
        self._tenants: list[weakref.ref[KeyValues] | None] = []
        self._room = _LEAST_ROOM
        self._buffers: list[Pair | None] = [None] * layers

    def hold(self, sequence: KeyValues) -> None:
        """Give a sequence a slot until `let_go`, taking it from one that waits if need be."""
        self.reserve(sequence.own_length)
        if sequence.slot is None:
            place = self._free()
            self._tenants[place] = weakref.ref(sequence)
            sequence.take_slot(place)
        sequence.running = True

    def let_go(self, sequence: KeyValues) -> None:
        """The sequence waits; its slot may go to another."""
        sequence.running = False

    def write(
        self, layer: int, rows: torch.Tensor, columns: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put T new positions where `rows` and `columns` (both int64 [T]) say; key and value are [kv_heads, T, d]."""
        buffers = self.fit(layer, key)
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer[rows, :, columns] = new.transpose(0, 1).to(buffer.dtype)

    def block(self, layer: int, rows: range | torch.Tensor, length: int) -> Pair:
        """R slots for products over all of them: [R * kv_heads, length, d], as they lie or picked."""
        buffers = self._buffers[layer]
        assert buffers is not None
        keys, values = (
            buffer[rows.start : rows.stop, :, :length] if isinstance(rows, range) else buffer[rows, :, :length]
            for buffer in buffers
        )
        return keys.flatten(0, 1), values.flatten(0, 1)

    def row(self, layer: int, slot: int | None) -> Pair:
        buffers = self._buffers[layer]
        assert buffers is not None
        assert slot is not None
        return buffers[0][slot], buffers[1][slot]

    def reserve(self, length: int) -> None:
        """See that a slot holds `length` positions."""
        while self._room < length + self.static:
            self._room *= 2

    @property
    def room(self) -> int:
        """Columns of a slot."""
        return self._room

    @property
    def rows(self) -> int:
        """Slots that there are, taken or not."""
        taken = len(self._tenants)
        return min(self._most, 1 << (taken - 1).bit_length()) if self.static and taken else taken

    def settle(self) -> bool:
        """Let all buffers grow now and not at their next write; False while there are none."""
        for layer, pair in enumerate(self._buffers):
            if pair is None:
                return False
            self.fit(layer, pair[0][0])
        return True

    def fit(self, layer: int, like: torch.Tensor) -> Pair:
        """The layer's buffers, made large enough. `like` is [kv_heads, T, d]."""
        shape = (self.rows, like.shape[0], self._room, like.shape[2])
        old = self._buffers[layer]
        if old is None or old[0].shape != shape:
            # Zeros and not garbage: what masked positions hold is multiplied by 0, and must be finite for it.
            fresh = (like.new_zeros(shape, dtype=self.dtype), like.new_zeros(shape, dtype=self.dtype))
            if old is not None:
                rows, room = old[0].shape[0], old[0].shape[2]
                fresh[0][:rows, :, :room] = old[0]
                fresh[1][:rows, :, :room] = old[1]
            self._buffers[layer] = old = fresh
            self.moves += 1
        return old

    def _free(self) -> int:
        """A slot nobody runs in: an empty one, a new one, or one that is taken away."""
        tenants = [one() if one is not None else None for one in self._tenants]
        for place, tenant in enumerate(tenants):
            if tenant is None:
                return place
        if len(tenants) < self._most:
            self._tenants.append(None)
            return len(tenants)
        for place, tenant in enumerate(tenants):
            if tenant is not None and not tenant.running:
                tenant.put_aside()
                return place
        raise ModelError(f"{self._most} sequences run already; end one of them first")
