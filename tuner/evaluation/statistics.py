"""TODO: tuner/evaluation/statistics.py"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    count: int
    mean: float
    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """A share with its 95 % Wilson score interval; (0, 1) when nothing was counted."""
    if count == 0:
        return Interval(0, 0.0, 0.0, 1.0)
    z = 1.959963984540054
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(count, share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def bootstrap_mean(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean with its 95 % percentile bootstrap interval; the order of the values does not matter.

    How often each distinct value turns up in a resample is multinomial, so that is drawn, not indices.
    Percentile intervals are somewhat narrow for fewer than about 20 values.
    """
    if not values:
        return Interval(0, 0.0, 0.0, 0.0)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    count = int(counts.sum())
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(distinct))  # bounds the memory of one draw to 32 MB
    sizes = [min(chunk, resamples - begin) for begin in range(0, resamples, chunk)]
    draws = [generator.multinomial(count, counts / count, size=size) @ distinct for size in sizes]
    means = np.concatenate(draws) / count
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(count, float(counts @ distinct / count), float(low), float(high))


class Gain(Protocol):
    """A mean before and after, and the gain with its interval, all 0 to 1."""

    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...
    @property
    def gain(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def paired(
    before: Sequence[float], after: Sequence[float], *, resamples: int, seed: int
) -> tuple[float, float, Interval]:
    """The means before and after, and the gain with its paired 95 % bootstrap interval; 0 where there is nothing."""
    gain = bootstrap_mean([new - old for old, new in zip(before, after, strict=True)], resamples=resamples, seed=seed)
    count = max(1, len(before))
    return sum(before) / count, sum(after) / count, gain


def points(share: float, *, sign: bool = True) -> str:
    """A share of 1 as points of a hundred."""
    return f"{share * 100:+.1f} points" if sign else f"{share * 100:.1f} points"


def told_gain(one: Gain, over: str) -> str:
    """A gain in words; `over` says how many of what it was measured with."""
    return (
        f"{one.before:.3f} before, {one.after:.3f} after, {points(one.gain)} with a 95 % interval of "
        f"{points(one.low)} to {points(one.high)} over {over}"
    )


def gain_cells(one: Gain) -> tuple[str, str, str]:
    """The same as cells of a table: before, after, gain."""
    return f"{one.before:.3f}", f"{one.after:.3f}", f"{points(one.gain)} ({points(one.low)} to {points(one.high)})"
