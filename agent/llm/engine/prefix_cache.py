"""Keeps keys and values of what was read, so that a prompt is read once.

An entry belongs to one adapter (or the base): keys of one never serve another. The longest known prefix of a
prompt is taken over when nobody else extends it, else shared and copied (see `cache`). Bounded by tokens, the
longest unused goes first.
Not thread-safe: the engine's worker is its only user.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agent.llm.engine.kv_cache import KeyValues, Slots
from agent.llm.engine.speculation import Heard

if TYPE_CHECKING:
    from agent.llm.engine.kv_cache import Pair

WORTH_COPYING = 16
"""Tokens; a shorter common prefix is read again."""


@dataclass
class Entry:
    """One sequence that was read: its ids and their keys and values."""

    adapter: str | None
    ids: list[int]
    """As many as `values.length` once a forward pass is over."""
    values: KeyValues
    heard: Heard = field(default_factory=Heard, repr=False)
    """What was read and said, to guess from."""
    busy: bool = True
    used: int = 0
    _array: np.ndarray | None = field(default=None, repr=False)

    def common(self, ids: np.ndarray) -> int:
        """How many leading ids are the same."""
        if self._array is None or len(self._array) != self.values.length:
            self._array = np.asarray(self.ids[: self.values.length], dtype=np.int64)
        return common_prefix(self._array, ids)

    def shorten(self, count: int) -> None:
        """Forget the last `count` ids, which were read on a guess."""
        self.values.length -= count
        del self.ids[self.values.length :]


class PrefixCache:
    """The sequences whose keys and values are at hand."""

    def __init__(self, slots: Slots, *, max_tokens: int) -> None:
        self._slots = slots
        self._max_tokens = max_tokens
        self._entries: list[Entry] = []
        self._starts: dict[str | None, tuple[list[int], Sequence[Pair]]] = {}
        self._clock = itertools.count(1)

    def begin_with(self, adapter: str | None, ids: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Every prompt under this adapter begins with `ids`, whose keys and values in each layer are known."""
        self._starts[adapter] = list(ids), pairs

    def known(self, adapter: str | None, ids: Sequence[int]) -> int:
        """Length of the longest known prefix of `ids`; the last id is left out, for its logits are needed."""
        return self._best(adapter, ids)[1]

    def take(self, adapter: str | None, ids: Sequence[int]) -> Entry:
        """A busy entry that holds the longest known prefix of `ids`, for its caller alone to extend."""
        best, size = self._best(adapter, ids)
        if best is not None and not best.busy and size == best.values.length:
            self._slots.hold(best.values)
            best.busy = True
            return best
        start, pairs = self._starts.get(adapter, ([], ()))
        if best is not None and size >= max(WORTH_COPYING, len(start)):
            values = best.values.copy(size)
        else:
            values = KeyValues.starting_with(pairs, self._slots)
        self._slots.hold(values)
        entry = Entry(adapter, list(ids[: values.length]), values)
        self._entries.append(entry)
        return entry

    def give_back(self, entry: Entry) -> None:
        """Keep the entry for later prompts; make room by dropping the longest unused."""
        self._slots.let_go(entry.values)
        del entry.ids[entry.values.length :]
        entry.busy, entry.used = False, next(self._clock)
        idle = sorted((one for one in self._entries if not one.busy), key=lambda one: one.used)
        for one in idle:
            if self.tokens <= self._max_tokens:
                break
            self._drop(one)

    def forget(self, adapter: str | None) -> None:
        """Drop what was read under an adapter that is gone; what is busy is not kept when it comes back."""
        self._entries = [one for one in self._entries if one.adapter != adapter]
        self._starts.pop(adapter, None)

    @property
    def tokens(self) -> int:
        """Positions that are kept; a shared prefix counts once."""
        prefixes = {id(one.values.shared): one.values.shared.length for one in self._entries if one.values.shared}
        return sum(one.values.own_length for one in self._entries) + sum(prefixes.values())

    def _drop(self, entry: Entry) -> None:
        self._entries = [one for one in self._entries if one is not entry]

    def _best(self, adapter: str | None, ids: Sequence[int]) -> tuple[Entry | None, int]:
        wanted = np.asarray(ids[:-1], dtype=np.int64)
        best: Entry | None = None
        size = 0
        for entry in self._entries:
            if entry.adapter == adapter:
                common = entry.common(wanted)
                # Of equals the idle one that ends here is best: it need not be copied.
                if common > size or (common == size > 0 and not entry.busy and common == entry.values.length):
                    best, size = entry, common
        return best, size


def common_prefix(left: Sequence[int] | np.ndarray, right: Sequence[int] | np.ndarray) -> int:
    """How many leading ids two sequences share."""
    left, right = np.asarray(left), np.asarray(right)
    size = min(len(left), len(right))
    different = np.nonzero(left[:size] != right[:size])[0]
    return int(different[0]) if len(different) else size
