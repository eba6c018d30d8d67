"""How well cosines say how alike texts are: correlation with scores, or where the right one is among all others.

Spearman's decides for scores, as in the STS tasks (Reimers et al., 2016); the mean reciprocal rank for pairs. Each with
a 95 % bootstrap interval over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.evaluation.statistics import Interval, bootstrap_mean
from tuner.tasks.metrics import RESAMPLES, Scores

DEEP = (1, 5, 10)
"""Places within which a right one is counted as found."""
Values = npt.NDArray[np.float64]


def correlations(wanted: Sequence[float], said: Sequence[float], *, resamples: int = RESAMPLES) -> Scores:
    """Scores and cosines of the same pairs. How right a pair is: how near its place among the cosines is to its place
    among the scores, 0 to 1."""
    gold, cosines = np.asarray(wanted, dtype=np.float64), np.asarray(said, dtype=np.float64)
    places, given = _places(gold), _places(cosines)
    right = 1 - np.abs(places - given) / max(1, len(gold) - 1)
    figures = {
        "spearman": _interval(lambda at: pearson(_places(gold[at]), _places(cosines[at])), len(gold), resamples),
        "pearson": _interval(lambda at: pearson(gold[at], cosines[at]), len(gold), resamples),
    }
    return Scores("spearman", figures, right=tuple(map(float, right)))


def ranking(ranks: Sequence[int], *, resamples: int = RESAMPLES) -> Scores:
    """The place of each pair's other among all of them, 1 for the best: mean reciprocal rank and recall."""
    reciprocal = [1 / rank for rank in ranks]
    figures = {"mrr": _mean(reciprocal, resamples)}
    figures |= {f"recall@{deep}": _mean([float(rank <= deep) for rank in ranks], resamples) for deep in DEEP}
    return Scores("mrr", figures, right=tuple(reciprocal))


def pearson(one: Values, other: Values) -> float:
    """Correlation of two vectors; 0 where one of them does not vary."""
    left, right = one - one.mean(), other - other.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / size if size > 0 else 0.0


def _places(values: Values) -> Values:
    """Ranks from 0, the mean of those that are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Values = ends - (counts + 1) / 2
    return means[inverse]


def _interval(statistic: Callable[[Any], float], count: int, resamples: int) -> Interval:
    mean = statistic(np.arange(count))
    if not resamples:
        return Interval(count, mean, mean, mean)
    generator = np.random.default_rng(0)
    found = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(count, mean, float(low), float(high))


def _mean(values: Sequence[float], resamples: int) -> Interval:
    if resamples:
        return bootstrap_mean(values, resamples=resamples)
    mean = sum(values) / max(1, len(values))
    return Interval(len(values), mean, mean, mean)
