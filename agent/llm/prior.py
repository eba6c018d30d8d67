"""What a step is expected to say before the model is asked: odds that its own are multiplied with.

Behind a mark some texts are expected, each with a share. A token that may still become one of them gets its part of
that share, all others have what is left in common. So memory counts at once, before any weight has learnt it, and the
model decides where memory is not sure. Sources: products of experts (Hinton, 2002); a memory beside a language model,
kNN-LM (Khandelwal et al., 2020).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.llm.grammar import canonical
from agent.trajectory import Recalled

LEFT_OVER = 0.02
"""What is at least left for all that is not expected: memory alone rules nothing out."""

MARK = b'"tool":"'
"""Stands once in a step: within its texts a quotation mark is escaped."""


@dataclass(frozen=True)
class Prior:
    """Texts that are expected behind a mark, in UTF-8, with shares that sum to at most one."""

    after: bytes
    expected: tuple[tuple[bytes, float], ...]

    def ahead(self, said: bytes) -> bytes | None:
        """What was said behind the mark, while something of what is expected may still follow; else None."""
        _, mark, begun = said.partition(self.after)
        return begun if mark and any(_may_follow(text, begun) for text, _ in self.expected) else None

    def log_odds(self, begun: bytes, pieces: Sequence[bytes]) -> np.ndarray:
        """The natural logarithm of how likely each of these is to come next [len(pieces)], they alone being possible.

        `begun` is what `ahead` gave.
        """
        left = max(LEFT_OVER, 1.0 - sum(share for _, share in self.expected))
        possible = [(text[len(begun) :], share) for text, share in self.expected if _may_follow(text, begun)]
        mass = np.zeros(len(pieces))
        for rest, share in possible:
            mass += share * np.array([rest.startswith(piece) or piece.startswith(rest) for piece in pieces])
        whole = sum(share for _, share in possible)
        result: np.ndarray = np.log((1 - left) * mass / whole + left / len(pieces))
        return result


def prior_of(recalled: Sequence[Recalled]) -> Prior | None:
    """What solved tasks make a run's first step expect; None where they tell no shares."""
    shares: dict[bytes, float] = defaultdict(float)
    for one in recalled:
        if one.share > 0:
            shares[_beginning(one)] += one.share
    return Prior(MARK, tuple(shares.items())) if shares else None


def _beginning(one: Recalled) -> bytes:
    """How the step goes on behind the mark: the tool and, where they come first, what it chose."""
    chosen = ",".join(f"{canonical(name)}:{canonical(value)}" for name, value in one.choices)
    return (f'{one.tool}","args":{{{chosen}' if chosen else f'{one.tool}"').encode()


def _may_follow(text: bytes, begun: bytes) -> bool:
    return len(text) > len(begun) and text.startswith(begun)
