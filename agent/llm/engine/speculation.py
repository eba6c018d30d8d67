"""Guesses what comes next by what came behind the same words before: in the prompt, and in what was said to others.

An agent says the same few things again and again: thoughts it was tuned on, arguments it was shown, sentences it
quotes. A guess is read in the same pass as the token it follows, and every token of it is chosen anew from the logits
there; so wrong guesses cost a little and change nothing. Sources: prompt lookup decoding (Saxena, 2023), REST (He et
al., 2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MOST = 12
"""Tokens of a guess."""
KEYS = (6, 3, 2)
"""How many last tokens must have come before; the longest that did decides."""
REMEMBERED = 512
"""Texts that are kept for each adapter; the least recent goes first."""


class Phrases:
    """Texts, and where in them each run of words stands last."""

    def __init__(self) -> None:
        self._places: list[dict[tuple[int, ...], tuple[Sequence[int], int]]] = [{} for _ in KEYS]

    def add(self, ids: Sequence[int], start: int = 0) -> None:
        """Take in `ids` from `start` on; what stands before was taken in already."""
        for size, places in zip(KEYS, self._places, strict=True):
            for end in range(max(size, start), len(ids)):
                places[tuple(ids[end - size : end])] = ids, end

    def find(self, level: int, last: Sequence[int]) -> Sequence[int]:
        """What stood behind the last `KEYS[level]` of these ids; empty where they are new."""
        size = KEYS[level]
        found = self._places[level].get(tuple(last[-size:])) if len(last) >= size else None
        if found is None:
            return ()
        ids, end = found
        return ids[end : end + MOST]


class Heard:
    """A text as it grows, and the phrases in it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.phrases = Phrases()

    def upto(self, known: int, rest: Sequence[int]) -> Sequence[int]:
        """The text, of which the first `known` ids stay as they are and `rest` stands behind."""
        # Phrases behind `known` are not forgotten: they name places in this very list, and a guess may be wrong.
        del self.ids[known:]
        start = len(self.ids)
        self.ids += rest
        self.phrases.add(self.ids, start)
        return self.ids


class Said:
    """What was said lately under one adapter."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.phrases = Phrases()
        self._since = 0

    def add(self, ids: tuple[int, ...]) -> None:
        known = ids in self._texts
        self._texts[ids] = None
        self._texts.move_to_end(ids)
        if known:
            return
        self.phrases.add(ids)
        self._since += 1
        if len(self._texts) > REMEMBERED:
            self._texts.popitem(last=False)
        if self._since > REMEMBERED:
            # Places of texts that are gone are dropped now and then, not each time.
            self._since = 0
            self.phrases = Phrases()
            for text in self._texts:
                self.phrases.add(text)


def guess(last: Sequence[int], own: Phrases, said: Said) -> Sequence[int]:
    """What probably follows `last`: by the longest run of words known, what was said before the prompt."""
    for level in range(len(KEYS)):
        for place in (said.phrases, own):
            found = place.find(level, last)
            if found:
                return found
    return ()
