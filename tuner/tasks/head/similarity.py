"""Metrics of sentence vectors: correlation of cosines with similarity scores, or ranks of the right text among all.

Spearman's correlation is the main figure for scores, as in the STS tasks (Reimers et al., 2016); the mean reciprocal
rank for pairs. Each figure has a 95 % bootstrap interval over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.evaluation.statistics import Interval, bootstrap_mean
from tuner.tasks.metrics import RESAMPLES, TaskScores

DEPTHS = (1, 5, 10)
"""The k of recall@k."""
Values = npt.NDArray[np.float64]


def measure_correlation(scores: Sequence[float], cosines: Sequence[float], *, resamples: int = RESAMPLES) -> TaskScores:
    """Measure how well cosines order pairs by their similarity scores.

    `right` of a pair, from 0 to 1, is how near its rank among the cosines is to its rank among the scores.
    """
    gold, predicted = np.asarray(scores, dtype=np.float64), np.asarray(cosines, dtype=np.float64)
    right = 1 - np.abs(_ranks(gold) - _ranks(predicted)) / max(1, len(gold) - 1)
    figures = {
        "spearman": _interval(lambda at: pearson(_ranks(gold[at]), _ranks(predicted[at])), len(gold), resamples),
        "pearson": _interval(lambda at: pearson(gold[at], predicted[at]), len(gold), resamples),
    }
    return TaskScores("spearman", figures, right=tuple(map(float, right)))


def measure_ranking(ranks: Sequence[int], *, resamples: int = RESAMPLES) -> TaskScores:
    """Measure mean reciprocal rank and recall, from the rank of each pair's other text among all, 1 for the best."""
    reciprocal = [1 / rank for rank in ranks]
    figures = {"mrr": _mean(reciprocal, resamples)}
    figures |= {f"recall@{depth}": _mean([float(rank <= depth) for rank in ranks], resamples) for depth in DEPTHS}
    return TaskScores("mrr", figures, right=tuple(reciprocal))


def pearson(left: Values, right: Values) -> float:
    """Return the correlation of two vectors [N]; 0 where one of them does not vary."""
    left, right = left - left.mean(), right - right.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / size if size > 0 else 0.0


def _ranks(values: Values) -> Values:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Values = ends - (counts + 1) / 2
    return means[inverse]


def _interval(statistic: Callable[[Any], float], count: int, resamples: int) -> Interval:
    mean = statistic(np.arange(count))
    if not resamples:
        return Interval(count, mean, mean, mean)
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(count, mean, float(low), float(high))


def _mean(values: Sequence[float], resamples: int) -> Interval:
    if resamples:
        return bootstrap_mean(values, resamples=resamples)
    mean = sum(values) / max(1, len(values))
    return Interval(len(values), mean, mean, mean)
