"""Which label belongs to a text, learnt from few labelled vectors: kernel ridge regression, solved in closed form.

The nearest labelled text is often near for its subject and not for what is asked; a regression learns what sets the
labels apart. Leaving some of the texts out again needs no second fit; how sure the scores are is learnt by leaving out
each text in turn. Source: Saunders, Gammerman and Vovk, "Ridge
regression learning algorithm in dual variables" (1998); blocks left out by the inverse of a partitioned matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from agent.encoders.encoder import Vectors

SHARPNESS = 1.0
"""Of the kernel exp(sharpness * (cosine - 1)), a Gaussian on the unit sphere."""

RIDGE = 0.1

LEAST = 10
"""Texts from which on scores are taken for probabilities."""

UNFAMILIAR = 0.1
"""Share of the texts, those farthest from all others: a vector among them, or farther, is the less familiar."""

STEEPNESS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)


class LabelRegression:
    """Scores labels for a vector. Takes memory with the square of the number of texts, and time with its cube."""

    def __init__(self, vectors: Vectors, labels: Sequence[str], *, texts: int | None = None) -> None:
        """`vectors` [N, d] of length one, and the label of each; those behind the first `texts` are names of labels."""
        self._texts = len(labels) if texts is None else texts
        self.names: tuple[str, ...] = tuple(dict.fromkeys(labels))
        """The labels, L of them."""
        self._vectors = vectors.astype(np.float64)
        place = {name: index for index, name in enumerate(self.names)}
        marks = np.zeros((len(labels), len(self.names)))
        marks[np.arange(len(labels)), [place[label] for label in labels]] = 1.0
        self._share = marks.mean(axis=0)
        gram = _kernel(self._vectors @ self._vectors.T)
        self._inverse = np.linalg.inv(gram + RIDGE * np.eye(len(labels)))
        self._weights = self._inverse @ (marks - self._share)
        self._marks = marks

    def scores(self, vector: Vectors, *, without: Sequence[int] = ()) -> np.ndarray:
        """About how likely each label is [L], as if the texts of these indices had not been there."""
        seen = _kernel(self._vectors @ vector)
        weights = self._weights
        if len(without):
            out = list(without)
            weights = weights - self._inverse[:, out] @ np.linalg.solve(self._inverse[np.ix_(out, out)], weights[out])
        result: np.ndarray = seen @ weights + self._share
        return result

    def shares(self, scores: np.ndarray, nearest: float, *, complete: bool = False) -> np.ndarray:
        """Scores as probabilities [L]; what they lack to one is left to labels that are not known.

        That is as much as labels seen once among all texts (Good and Turing), unless these labels are `complete`, and
        more for a text whose `nearest` other one, by its cosine, is farther than those of the texts are. With fewer
        than `LEAST` texts, all of it.
        """
        if self._texts < LEAST:
            return np.zeros(len(self.names))
        once = 0 if complete else int((self._marks[: self._texts].sum(axis=0) == 1).sum())
        nearer = int((self._nearest <= nearest).sum())
        familiar = min(1.0, (nearer + 1) / (self._texts + 1) / UNFAMILIAR)
        result: np.ndarray = familiar * (1 - (once + 1) / (self._texts + 1)) * _softmax(self._steepness * scores)
        return result

    @cached_property
    def _nearest(self) -> np.ndarray:
        """The cosine of each text with the nearest other one."""
        texts = self._vectors[: self._texts]
        cosines = texts @ texts.T
        np.fill_diagonal(cosines, -1.0)
        result: np.ndarray = cosines.max(axis=1)
        return result

    @cached_property
    def _steepness(self) -> float:
        """Of the softmax: the one under which each text's own label is likeliest, the text being left out."""
        others = self._marks[:, self._marks.sum(axis=0) > 1].any(axis=1)
        without = (self._marks - self._weights / np.diag(self._inverse)[:, None])[others]
        marks = self._marks[others]

        def fit(steepness: float) -> float:
            likely = (_softmax(steepness * without) * marks).sum(axis=1)
            return float(np.log(np.maximum(likely, 1e-9)).mean()) if len(likely) else 0.0

        return max(STEEPNESS, key=fit)


def _softmax(scores: np.ndarray) -> np.ndarray:
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: np.ndarray = odds / odds.sum(axis=-1, keepdims=True)
    return result


def _kernel(cosines: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.exp(SHARPNESS * (cosines - 1.0))
    return result
