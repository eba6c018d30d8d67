"""What the gates of adapters, encoders and trained tasks share: the paired comparison and its wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.evaluation.statistics import bootstrap_mean, points


@dataclass(frozen=True)
class Comparison:
    """Mean scores before and after on the same examples, 0 to 1, and the gain with its paired 95 % interval.

    Without examples every figure is 0.
    """

    name: str
    examples: int
    before: float
    after: float
    gain: float
    low: float
    high: float

    def describe(self, unit: str = "examples") -> str:
        """Return the figures as a phrase; `unit` says what was scored."""
        return (
            f"{self.before:.3f} before, {self.after:.3f} after, {points(self.gain)} with a 95 % interval of "
            f"{points(self.low)} to {points(self.high)} over {self.examples} {unit}"
        )

    def cells(self) -> tuple[str, str, str]:
        """Return the cells of a table: before, after, and the gain with its interval."""
        interval = f"({points(self.low)} to {points(self.high)})"
        return f"{self.before:.3f}", f"{self.after:.3f}", f"{points(self.gain)} {interval}"


def compare(name: str, before: Sequence[float], after: Sequence[float], *, resamples: int, seed: int) -> Comparison:
    """Compare two equally long lists of scores, 0 to 1, by a paired bootstrap."""
    gain = bootstrap_mean([new - old for old, new in zip(before, after, strict=True)], resamples=resamples, seed=seed)
    count = len(before)
    means = [sum(scores) / max(1, count) for scores in (before, after)]
    return Comparison(name, count, means[0], means[1], gain.mean, gain.low, gain.high)


def is_lost(gain: float, margin: float) -> bool:
    """Whether a gain is a loss of more than the margin. A loss of just the margin is none, whatever the rounding."""
    return -gain > margin + 1e-9
