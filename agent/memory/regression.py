"""Which label belongs to a text, learnt from few labelled vectors: kernel ridge regression, solved in closed form.

The nearest labelled text is often near for its subject and not for what is asked; a regression learns what sets the
labels apart. Leaving some of the texts out again needs no second fit. Source: Saunders, Gammerman and Vovk, "Ridge
regression learning algorithm in dual variables" (1998); blocks left out by the inverse of a partitioned matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.memory.encoder import Vectors

SHARPNESS = 1.0
"""Of the kernel exp(sharpness * (cosine - 1)), a Gaussian on the unit sphere."""

RIDGE = 0.1


class LabelRegression:
    """Scores labels for a vector. Takes memory with the square of the number of texts, and time with its cube."""

    def __init__(self, vectors: Vectors, labels: Sequence[str]) -> None:
        """`vectors` [N, d] of length one, and the label of each."""
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

    def scores(self, vector: Vectors, *, without: Sequence[int] = ()) -> np.ndarray:
        """About how likely each label is [L], as if the texts of these indices had not been there."""
        seen = _kernel(self._vectors @ vector)
        weights = self._weights
        if len(without):
            out = list(without)
            weights = weights - self._inverse[:, out] @ np.linalg.solve(self._inverse[np.ix_(out, out)], weights[out])
        result: np.ndarray = seen @ weights + self._share
        return result


def _kernel(cosines: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.exp(SHARPNESS * (cosines - 1.0))
    return result
