"""Means with 95 % intervals: Wilson's for shares, the percentile bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    count: int
    mean: float
    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """Return a share with its 95 % Wilson score interval, which is (0, 1) for a count of 0."""
    if count == 0:
        return Interval(0, 0.0, 0.0, 1.0)
    z = 1.959963984540054
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(count, share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def bootstrap_mean(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean with its 95 % percentile bootstrap interval; the order of the values does not matter.

    The counts of distinct values in a resample are multinomial, so counts are drawn and not indices. Percentile
    intervals are somewhat narrow for fewer than about 20 values.
    """
    if not values:
        return Interval(0, 0.0, 0.0, 0.0)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    count = int(counts.sum())
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(distinct))  # Limits the memory of a draw to 32 MB.
    sizes = [min(chunk, resamples - begin) for begin in range(0, resamples, chunk)]
    draws = [generator.multinomial(count, counts / count, size=size) @ distinct for size in sizes]
    means = np.concatenate(draws) / count
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(count, float(counts @ distinct / count), float(low), float(high))


def points(share: float, *, sign: bool = True) -> str:
    """Format a share as percentage points."""
    return f"{share * 100:+.1f} points" if sign else f"{share * 100:.1f} points"
