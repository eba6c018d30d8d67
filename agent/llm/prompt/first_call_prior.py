"""What a step is expected to say before the model is asked: a memory beside the model, each with its odds.

Behind a mark some texts are expected, each with a share; what the shares leave over to one is the model's to spend.
So memory counts at once, before any weight has learnt it, and the model decides where memory is not sure. Sources: a
memory beside a language model, kNN-LM (Khandelwal et al., 2020); products of experts (Hinton, 2002), with an exponent
for the one that is surer of itself than it is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.llm.prompt.json_grammar import canonical
from agent.records.run import Recalled

LEFT_OVER = 0.02
"""What is at least left to the model alone: memory rules nothing out."""

MODEL_COUNTS = 0.2
"""Exponent of the model's own odds among what is expected: a small tuned model is far surer than it is right."""

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

    def weighed(self, begun: bytes, pieces: Sequence[bytes], own: np.ndarray) -> np.ndarray:
        """How likely each of these is to come next [len(pieces)], they alone being possible; as natural logarithms.

        `begun` is what `ahead` gave, `own` the logarithms of how likely the model holds them [len(pieces)]. Among the
        pieces that what is expected goes on with, the shares are multiplied with the model's odds to the power of
        `MODEL_COUNTS`; what the shares leave over is spent as the model alone would.
        """
        left = max(LEFT_OVER, 1.0 - sum(share for _, share in self.expected))
        mass = np.zeros(len(pieces))
        for text, share in self.expected:
            if _may_follow(text, begun):
                rest = text[len(begun) :]
                mass += share * np.array([rest.startswith(piece) or piece.startswith(rest) for piece in pieces])
        model = _normal(own)
        if mass.any():
            both = mass * np.exp(MODEL_COUNTS * (own - own.max()))
            model = (1 - left) * both / both.sum() + left * model
        result: np.ndarray = np.log(np.maximum(model, np.finfo(float).tiny))
        return result


def _normal(logarithms: np.ndarray) -> np.ndarray:
    odds = np.exp(logarithms - logarithms.max())
    result: np.ndarray = odds / odds.sum()
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
