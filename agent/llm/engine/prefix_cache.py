"""Cache of the keys and values of sequences, so that a prompt is read once.

An entry belongs to one adapter, or to the base, and never serves another. The entry with the longest common prefix is
extended in place when nobody else uses it, else its prefix is shared and copied (see `kv_cache`). The cache is bounded
by tokens; the least recently used entry is dropped first. Not thread-safe: the engine's worker is the only user.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agent.llm.engine.kv_cache import KeyValues, Slots
from agent.llm.engine.speculation import IndexedText

if TYPE_CHECKING:
    from agent.llm.engine.kv_cache import Pair

MIN_COPIED_TOKENS = 16
"""A shorter common prefix is computed again, not copied."""


@dataclass
class CacheEntry:
    """One sequence: its ids with their keys and values."""

    adapter: str | None
    ids: list[int]
    """As many as `values.length` between two passes."""
    values: KeyValues
    text: IndexedText = field(default_factory=IndexedText, repr=False)
    """Prompt and generated ids, for draft tokens."""
    is_busy: bool = True
    last_used: int = 0
    _array: np.ndarray | None = field(default=None, repr=False)

    def common_length(self, ids: np.ndarray) -> int:
        """Return how many leading ids are the same."""
        if self._array is None or len(self._array) != self.values.length:
            self._array = np.asarray(self.ids[: self.values.length], dtype=np.int64)
        return common_prefix(self._array, ids)

    def shorten(self, count: int) -> None:
        """Drop the last `count` ids, which were rejected draft tokens."""
        self.values.length -= count
        del self.ids[self.values.length :]


class PrefixCache:
    """The entries of one engine, at most `max_tokens` in all besides those in use."""

    def __init__(self, slots: Slots, *, max_tokens: int) -> None:
        self._slots = slots
        self._max_tokens = max_tokens
        self._entries: list[CacheEntry] = []
        self._starts: dict[str | None, tuple[list[int], Sequence[Pair]]] = {}
        """By adapter, the ids of its soft prompt and their keys and values in each layer."""
        self._clock = itertools.count(1)

    def set_start(self, adapter: str | None, ids: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Make every prompt under this adapter start with `ids`, whose keys and values in each layer are given."""
        self._starts[adapter] = list(ids), pairs

    def cached_length(self, adapter: str | None, ids: Sequence[int]) -> int:
        """Return the length of the longest cached prefix of `ids`, without the last id: its logits are needed."""
        return self._best(adapter, ids)[1]

    def acquire(self, adapter: str | None, ids: Sequence[int]) -> CacheEntry:
        """Return a busy entry with the longest cached prefix of `ids`, for its caller alone to extend."""
        best, size = self._best(adapter, ids)
        if best is not None and not best.is_busy and size == best.values.length:
            self._slots.assign(best.values)
            best.is_busy = True
            return best
        start, pairs = self._starts.get(adapter, ([], ()))
        if best is not None and size >= max(MIN_COPIED_TOKENS, len(start)):
            values = best.values.copy(size)
        else:
            values = KeyValues.from_pairs(pairs, self._slots)
        self._slots.assign(values)
        entry = CacheEntry(adapter, list(ids[: values.length]), values)
        self._entries.append(entry)
        return entry

    def release(self, entry: CacheEntry) -> None:
        """Keep the entry for later prompts; drop the least recently used idle entries to make room."""
        self._slots.release(entry.values)
        del entry.ids[entry.values.length :]
        entry.is_busy, entry.last_used = False, next(self._clock)
        idle = sorted((entry for entry in self._entries if not entry.is_busy), key=lambda entry: entry.last_used)
        for candidate in idle:
            if self.tokens <= self._max_tokens:
                break
            self._entries = [entry for entry in self._entries if entry is not candidate]

    def drop_adapter(self, adapter: str | None) -> None:
        """Drop all entries of an adapter; one that is busy is not kept when it is released."""
        self._entries = [entry for entry in self._entries if entry.adapter != adapter]
        self._starts.pop(adapter, None)

    def clear(self) -> None:
        """Drop all entries, busy ones included; whoever uses one must not release it."""
        for entry in self._entries:
            self._slots.release(entry.values)
        self._entries = []

    @property
    def tokens(self) -> int:
        """Cached positions; a shared prefix counts once."""
        prefixes = {
            id(entry.values.shared): entry.values.shared.length for entry in self._entries if entry.values.shared
        }
        return sum(entry.values.own_length for entry in self._entries) + sum(prefixes.values())

    def _best(self, adapter: str | None, ids: Sequence[int]) -> tuple[CacheEntry | None, int]:
        wanted = np.asarray(ids[:-1], dtype=np.int64)
        best: CacheEntry | None = None
        size = 0
        for entry in self._entries:
            if entry.adapter == adapter:
                common = entry.common_length(wanted)
                # Among equals an idle entry that ends here is best: it need not be copied.
                if common > size or (common == size > 0 and not entry.is_busy and common == entry.values.length):
                    best, size = entry, common
        return best, size


def common_prefix(left: Sequence[int] | np.ndarray, right: Sequence[int] | np.ndarray) -> int:
    """Return how many leading ids two sequences share."""
    left, right = np.asarray(left), np.asarray(right)
    size = min(len(left), len(right))
    different = np.nonzero(left[:size] != right[:size])[0]
    return int(different[0]) if len(different) else size
