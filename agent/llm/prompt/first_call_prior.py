"""Prior over the first call of a run: recalled calls of similar tasks, combined with the model's probabilities.

So a correction counts at once, before any weight is trained on it, and where the recalled calls leave probability over,
the model decides. Sources: a memory beside a language model, kNN-LM (Khandelwal et al., 2020); products of experts
(Hinton, 2002), with an exponent for the overconfident expert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.llm.prompt.json_grammar import canonical
from agent.records.run import Recalled

MIN_MODEL_SHARE = 0.02
"""Probability that is always left to the model alone, so that the prior excludes no call."""

MODEL_EXPONENT = 0.2
"""Exponent of the model's probabilities among the expected calls: a small tuned model is overconfident."""

CALL_MARKER = b'"tool":"'
"""Occurs once in a step: inside its strings a quotation mark is escaped."""


@dataclass(frozen=True)
class FirstCallPrior:
    """Texts that are expected after a marker, in UTF-8, with probabilities that sum to at most one."""

    after: bytes
    expected: tuple[tuple[bytes, float], ...]

    def begun_call(self, generated: bytes) -> bytes | None:
        """Return what was generated after the marker while an expected text may still follow, else None."""
        _, marker, begun = generated.partition(self.after)
        return begun if marker and any(_continues(text, begun) for text, _ in self.expected) else None

    def combine(self, begun: bytes, pieces: Sequence[bytes], scores: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of the next piece, [len(pieces)], under prior and model.

        Among the pieces that continue an expected text, the prior's probabilities are multiplied with the model's to
        the power of `MODEL_EXPONENT`; the probability that the prior leaves over is the model's alone.

        Args:
            begun: what `begun_call` returned.
            pieces: the bytes of each token that the grammar admits.
            scores: the model's log-probabilities of them, [len(pieces)], up to a constant.
        """
        left = max(MIN_MODEL_SHARE, 1.0 - sum(share for _, share in self.expected))
        mass = np.zeros(len(pieces))
        for text, share in self.expected:
            if _continues(text, begun):
                rest = text[len(begun) :]
                mass += share * np.array([rest.startswith(piece) or piece.startswith(rest) for piece in pieces])
        probabilities = _softmax(scores)
        if mass.any():
            product = mass * np.exp(MODEL_EXPONENT * (scores - scores.max()))
            probabilities = (1 - left) * product / product.sum() + left * probabilities
        result: np.ndarray = np.log(np.maximum(probabilities, np.finfo(float).tiny))
        return result


def make_prior(recalled: Sequence[Recalled]) -> FirstCallPrior | None:
    """Return the prior that recalled tasks give for a run's first call; None where none has a share."""
    shares: dict[bytes, float] = defaultdict(float)
    for task in recalled:
        if task.share > 0:
            shares[_expected_text(task)] += task.share
    return FirstCallPrior(CALL_MARKER, tuple(shares.items())) if shares else None


def _expected_text(task: Recalled) -> bytes:
    """Return how a step continues after the marker: the tool and, where they come first, its enumerated arguments."""
    arguments = ",".join(f"{canonical(name)}:{canonical(value)}" for name, value in task.choices)
    return (f'{task.tool}","args":{{{arguments}' if arguments else f'{task.tool}"').encode()


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    result: np.ndarray = weights / weights.sum()
    return result


def _continues(text: bytes, begun: bytes) -> bool:
    return len(text) > len(begun) and text.startswith(begun)
