"""Draft tokens for speculative decoding, looked up in an n-gram index of the prompt and of earlier generations.

An agent generates the same few texts again and again: thoughts it was tuned on, arguments from its context, sentences
it quotes. Draft tokens are verified in the same forward pass as the token they follow, and each is sampled anew from
its logits; a wrong draft costs a little time and never changes the output. Sources: prompt lookup decoding (Saxena,
2023), REST (He et al., 2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MAX_DRAFT_TOKENS = 12
NGRAM_SIZES = (6, 3, 2)
"""Lengths of the n-grams that are looked up, longest first; the longest with a match is used."""
MAX_TEXTS = 512
"""Generations that are kept for each adapter; the least recently repeated is dropped first."""


class NgramIndex:
    """Maps each n-gram of some texts to the place of its last occurrence."""

    def __init__(self) -> None:
        self._places: list[dict[tuple[int, ...], tuple[Sequence[int], int]]] = [{} for _ in NGRAM_SIZES]

    def add(self, ids: Sequence[int], start: int = 0) -> None:
        """Index `ids` from `start` on; the ids before `start` must be indexed already."""
        for size, places in zip(NGRAM_SIZES, self._places, strict=True):
            for end in range(max(size, start), len(ids)):
                places[tuple(ids[end - size : end])] = ids, end

    def find(self, level: int, last: Sequence[int]) -> Sequence[int]:
        """Return what followed the last `NGRAM_SIZES[level]` ids of `last`; empty when they have no match."""
        size = NGRAM_SIZES[level]
        match = self._places[level].get(tuple(last[-size:])) if len(last) >= size else None
        if match is None:
            return ()
        ids, end = match
        return ids[end : end + MAX_DRAFT_TOKENS]


class IndexedText:
    """A growing text and the index of its n-grams."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.index = NgramIndex()

    def replace_from(self, length: int, ids: Sequence[int]) -> None:
        """Keep the first `length` ids and put `ids` after them."""
        # Stale n-grams stay in the index: they name places in this list, and a wrong draft is harmless.
        del self.ids[length:]
        start = len(self.ids)
        self.ids += ids
        self.index.add(self.ids, start)


class RecentTexts:
    """The latest generations under one adapter, with an index of their n-grams."""

    def __init__(self, max_texts: int = MAX_TEXTS) -> None:
        self._max_texts = max_texts
        self._texts: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.index = NgramIndex()
        self._added = 0
        """Texts that were indexed since the index was last rebuilt."""

    def add(self, ids: tuple[int, ...]) -> None:
        is_known = ids in self._texts
        self._texts[ids] = None
        self._texts.move_to_end(ids)
        if is_known:
            return
        self.index.add(ids)
        self._added += 1
        if len(self._texts) > self._max_texts:
            self._texts.popitem(last=False)
        if self._added > self._max_texts:
            # Rebuilt now and then, not at each dropped text: that would cost more than the stale n-grams do.
            self._added = 0
            self.index = NgramIndex()
            for text in self._texts:
                self.index.add(text)


def find_draft(last: Sequence[int], own: NgramIndex, recent: RecentTexts) -> Sequence[int]:
    """Return the ids that probably follow `last`.

    The longest matching n-gram decides; between equal lengths, recent generations go before the session's own text.
    """
    for level in range(len(NGRAM_SIZES)):
        for index in (recent.index, own):
            ids = index.find(level, last)
            if ids:
                return ids
    return ()
