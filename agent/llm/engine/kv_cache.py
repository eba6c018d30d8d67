"""Keys and values of sequences: prefixes that several share, stored once, and each sequence's own part in a slot.

Slots are rows of one buffer per layer, so that attention reads all running sequences in one product. An idle sequence
keeps its slot until another needs it; its own part is then moved out of the slot, and back when it runs again.
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
"""Tokens; prefixes are shared in multiples of it, so that similar sequences share the same object."""

_MIN_ROOM = 256


class SharedPrefix:
    """The first positions of several sequences; immutable."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.length = int(pairs[0][0].shape[1])
        self._shorter: weakref.WeakValueDictionary[int, SharedPrefix] = weakref.WeakValueDictionary()

    def first(self, length: int) -> SharedPrefix:
        """Return the first `length` positions; the same object for as long as it is in use."""
        if length == self.length:
            return self
        shorter = self._shorter.get(length)
        if shorter is None:
            # Copied: a view would keep the longer prefix in memory after its last user is gone.
            shorter = SharedPrefix(
                [(keys[:, :length].clone(), values[:, :length].clone()) for keys, values in self.pairs]
            )
            self._shorter[length] = shorter
        return shorter


class KeyValues:
    """One sequence: its shared prefix, if it has one, and its own part after it."""

    def __init__(self, slots: Slots) -> None:
        self.length = 0
        self.shared: SharedPrefix | None = None
        self.slot: int | None = None
        self.is_running = False
        """Whether its slot must not go to another sequence."""
        self._slots = slots
        self._evicted: list[Pair] | None = None
        """The own part while it has no slot."""

    @classmethod
    def from_pairs(cls, pairs: Sequence[Pair], slots: Slots) -> KeyValues:
        """Return a sequence that starts with a copy of these keys and values of each layer."""
        sequence = cls(slots)
        if pairs:
            sequence.length = int(pairs[0][0].shape[1])
            sequence._evicted = [
                (keys.to(slots.dtype or keys.dtype, copy=True), values.to(slots.dtype or values.dtype, copy=True))
                for keys, values in pairs
            ]
        return sequence

    @property
    def own_length(self) -> int:
        return self.length - (self.shared.length if self.shared is not None else 0)

    def own(self, layer: int, length: int | None = None) -> Pair:
        """Return the own part in one layer; `length` is longer than its own while a pass is writing to it."""
        end = self.own_length if length is None else length
        keys, values = self._slots.row(layer, self.slot) if self._evicted is None else self._evicted[layer]
        return keys[:, :end], values[:, :end]

    def whole(self, layer: int, length: int | None = None) -> Pair:
        """Return shared and own part in one layer, concatenated; `length` as in `own`."""
        import torch

        keys, values = self.own(layer, length)
        if self.shared is None:
            return keys, values
        before = self.shared.pairs[layer]
        return torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)

    def copy(self, length: int) -> KeyValues:
        """Return a sequence with the same first `length` positions, of which whole `SHARED_UNIT`s are shared."""
        twin = KeyValues(self._slots)
        twin.length = length
        if length == 0:
            return twin
        unit = length - length % SHARED_UNIT
        if unit and self.shared is None and not self._slots.static:
            self._share(unit)
        if unit and self.shared is not None:
            twin.shared = self.shared.first(min(unit, self.shared.length))
        # Usually the whole shared prefix is kept, and only the own part has to be copied.
        start, part, end = 0, self.own, twin.own_length
        if twin.shared is not self.shared:
            start, part, end = length - twin.own_length, self.whole, length
        pairs = [part(layer) for layer in range(self._slots.layers)]
        twin._evicted = [(keys[:, start:end].clone(), values[:, start:end].clone()) for keys, values in pairs]
        return twin

    def evict(self) -> None:
        """Move the own part out of the slot."""
        if self.slot is not None and self.length:
            pairs = [self.own(layer) for layer in range(self._slots.layers)]
            self._evicted = [(keys.clone(), values.clone()) for keys, values in pairs]
        self.slot = None

    def take_slot(self, slot: int) -> None:
        """Move the own part into a free slot."""
        self.slot = slot
        evicted, self._evicted = self._evicted, None
        for layer, (keys, values) in enumerate(evicted or ()):
            self._slots.fit(layer, keys)
            row = self._slots.row(layer, slot)
            row[0][:, : keys.shape[1]] = keys
            row[1][:, : keys.shape[1]] = values

    def _share(self, length: int) -> None:
        """Turn the first `length` positions of the own part into a shared prefix."""
        pairs = [self.own(layer) for layer in range(self._slots.layers)]
        rest = self.own_length - length
        prefix = SharedPrefix([(keys[:, :length].clone(), values[:, :length].clone()) for keys, values in pairs])
        remainder = [(keys[:, length:].clone(), values[:, length:].clone()) for keys, values in pairs]
        self.shared = prefix
        if self._evicted is not None:
            self._evicted = remainder
            return
        for layer, (keys, values) in enumerate(remainder):
            row = self._slots.row(layer, self.slot)
            row[0][:, :rest] = keys
            row[1][:, :rest] = values


class Slots:
    """Rows for the own parts of running sequences. Buffers are allocated, and grow, on demand."""

    def __init__(
        self, layers: int, max_running: int, *, static: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Create the slots of a model with `layers` layers.

        Args:
            max_running: the most sequences that run at once, which is the most slots.
            static: what `static_forward` needs: no shared prefixes, a last column in each slot that no sequence
                reaches, and buffers that grow, and so move, rarely.
            dtype: the type in which keys and values are stored; None stores them in the type they are written in.
        """
        self.layers = layers
        self.static = static
        self.dtype = dtype
        self.reallocations = 0
        """How often a buffer was replaced by a larger one."""
        self._max_running = max_running
        self._owners: list[weakref.ref[KeyValues] | None] = []
        self._room = _MIN_ROOM
        self._buffers: list[Pair | None] = [None] * layers

    def assign(self, sequence: KeyValues) -> None:
        """Give a sequence a slot until `release`, if need be that of an idle sequence.

        Raises ModelError when all slots belong to running sequences.
        """
        self.reserve(sequence.own_length)
        if sequence.slot is None:
            place = self._free_slot()
            self._owners[place] = weakref.ref(sequence)
            sequence.take_slot(place)
        sequence.is_running = True

    def release(self, sequence: KeyValues) -> None:
        """Mark a sequence as idle; its slot may go to another."""
        sequence.is_running = False

    def write(
        self, layer: int, rows: torch.Tensor, columns: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store T new positions at `rows` and `columns` (both int64 [T]); key and value are [kv_heads, T, d]."""
        buffers = self.fit(layer, key)
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer[rows, :, columns] = new.transpose(0, 1).to(buffer.dtype)

    def block(self, layer: int, rows: range | torch.Tensor, length: int) -> Pair:
        """Return R slots for one product over all of them, [R * kv_heads, length, d]; a range is not copied."""
        buffers = self._buffers[layer]
        assert buffers is not None
        keys, values = (
            buffer[rows.start : rows.stop, :, :length] if isinstance(rows, range) else buffer[rows, :, :length]
            for buffer in buffers
        )
        return keys.flatten(0, 1), values.flatten(0, 1)

    def row(self, layer: int, slot: int | None) -> Pair:
        """Return one slot of a layer, as a view."""
        buffers = self._buffers[layer]
        assert buffers is not None
        assert slot is not None
        return buffers[0][slot], buffers[1][slot]

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in each slot; the buffers grow when they are next written to."""
        while self._room < length + self.static:
            self._room *= 2

    @property
    def room(self) -> int:
        """Positions that a slot has room for."""
        return self._room

    @property
    def rows(self) -> int:
        """Number of slots, free ones included."""
        count = len(self._owners)
        return min(self._max_running, 1 << (count - 1).bit_length()) if self.static and count else count

    def grow_all(self) -> bool:
        """Grow all buffers now, not at their next write; return False while there are none."""
        for layer, pair in enumerate(self._buffers):
            if pair is None:
                return False
            self.fit(layer, pair[0][0])
        return True

    def fit(self, layer: int, like: torch.Tensor) -> Pair:
        """Return the layer's buffers, grown to the reserved size. `like` is [kv_heads, T, d]."""
        shape = (self.rows, like.shape[0], self._room, like.shape[2])
        old = self._buffers[layer]
        if old is None or old[0].shape != shape:
            # Zeros, not uninitialised memory: masked positions are multiplied by 0 and must be finite.
            fresh = (like.new_zeros(shape, dtype=self.dtype), like.new_zeros(shape, dtype=self.dtype))
            if old is not None:
                rows, room = old[0].shape[0], old[0].shape[2]
                fresh[0][:rows, :, :room] = old[0]
                fresh[1][:rows, :, :room] = old[1]
            self._buffers[layer] = old = fresh
            self.reallocations += 1
        return old

    def _free_slot(self) -> int:
        """Return a slot that no running sequence uses: an empty one, a new one, or that of an idle sequence."""
        owners = [reference() if reference is not None else None for reference in self._owners]
        for place, owner in enumerate(owners):
            if owner is None:
                return place
        if len(owners) < self._max_running:
            self._owners.append(None)
            return len(owners)
        for place, owner in enumerate(owners):
            if owner is not None and not owner.is_running:
                owner.evict()
                return place
        raise ModelError(f"{self._max_running} sequences run already; end one of them first")
