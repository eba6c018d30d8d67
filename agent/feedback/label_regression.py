"""Label probabilities of a text from few labelled vectors: kernel ridge regression, solved in closed form.

The nearest text is often near for its subject and not for its request; a regression learns what separates the labels.
Texts can be left out without a second fit, and the probabilities are calibrated by leaving out each text in turn.
Source: Saunders, Gammerman and Vovk, "Ridge regression learning algorithm in dual variables" (1998); blocks are left
out by the inverse of a partitioned matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from agent.encoders.encoder import Vectors

SHARPNESS = 1.0
"""In the kernel exp(sharpness * (cosine - 1)), a Gaussian on the unit sphere."""

RIDGE = 0.1

LEAST = 10
"""The least number of texts for which scores become probabilities."""

UNFAMILIAR = 0.1
"""The share of texts, those farthest from all others, whose distance makes a vector unfamiliar."""

STEEPNESS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)


class LabelRegression:
    """Scores labels for a vector. Takes memory with the square of the number of texts, and time with its cube."""

    def __init__(self, vectors: Vectors, labels: Sequence[str], *, texts: int | None = None) -> None:
        """Fit on unit `vectors` [N, d] and their labels; those after the first `texts` are names of labels."""
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
        """Return a score for each label [L], without the texts of these indices."""
        seen = _kernel(self._vectors @ vector)
        weights = self._weights
        if len(without):
            out = list(without)
            weights = weights - self._inverse[:, out] @ np.linalg.solve(self._inverse[np.ix_(out, out)], weights[out])
        result: np.ndarray = seen @ weights + self._share
        return result

    def shares(self, scores: np.ndarray, nearest: float, *, complete: bool = False) -> np.ndarray:
        """Return scores as probabilities [L], which leave a rest for unknown labels.

        The rest is the share of labels that occur once (Good and Turing), unless the labels are `complete`; it is
        larger for a text whose `nearest` text, by its cosine, is farther than usual. With fewer than `LEAST` texts it
        is all.
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
        """Of the softmax, fitted so that each text's own label is likeliest when the text is left out."""
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
