"""The gate of a trained task: whether a version trained with corrections replaces the one that is served.

Pure. Both versions are scored on the same test set and on corrections that neither was trained on. The gate does not
guarantee that these resemble later inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuner.evaluation.comparison import Comparison, compare, is_lost
from tuner.evaluation.statistics import points
from tuner.reports.verdict import verdict_files


@dataclass(frozen=True)
class TaskPolicy:
    """What the gate requires of a new version. Shares are 0 to 1."""

    min_corrected: int = 5
    """Held-out corrections below which their gain is not counted."""
    margin: float = 0.01
    """The loss allowed on the test set where the corrections gain."""
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class TaskDecision:
    """Whether to ship, and the figures that decided."""

    ship: bool
    test: Comparison
    corrected: Comparison
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: TaskPolicy


def decide(
    test: tuple[Sequence[float], Sequence[float]],
    corrected: tuple[Sequence[float], Sequence[float]],
    policy: TaskPolicy | None = None,
) -> TaskDecision:
    """Ship where one of test set and held-out corrections gains significantly and the other does not lose.

    The test set may lose up to the margin, the corrections nothing.

    Args:
        test: scores of the served and of the new version on the test set, 0 to 1 for each example.
        corrected: the same on the held-out corrections.
        policy: what is required.
    """
    policy = policy or TaskPolicy()
    old, new = (
        compare(name, *scores, resamples=policy.resamples, seed=policy.seed)
        for name, scores in (("the test", test), ("held-out corrections", corrected))
    )
    few, lost = new.examples < policy.min_corrected, is_lost(old.gain, policy.margin)
    corrections_gain = not few and new.low > 0 and not lost
    test_gains = old.low > 0 and new.gain >= 0
    against = []
    if not (corrections_gain or test_gains):
        if few:
            against.append(
                f"Only {new.examples} corrections are held out; at least {policy.min_corrected} are needed to decide."
            )
        elif new.low <= 0:
            against.append(f"The gain is not sure for {_describe(new)}, not above zero.")
        if new.gain < 0 < old.low:
            against.append(f"The test gains, but {_describe(new)}.")
        if lost:
            against.append(f"More than {points(policy.margin, sign=False)} are lost on {_describe(old)}.")
    notes = [f"How right on {_describe(comparison)}." for comparison in (old, new) if comparison.examples]
    return TaskDecision(not against, old, new, (*against, *notes), policy)


def write_report(decision: TaskDecision, before: str, after: str) -> dict[str, bytes]:
    """Return the files of the report, by name; they contain no text of an example."""
    return verdict_files(
        decision,
        candidate=after,
        against=before,
        headers=("how right on", "examples", "before", "after", "gain"),
        rows=[(item.name, item.examples, *item.cells()) for item in (decision.test, decision.corrected)],
        data={"version": 1, "before": before, "after": after, "decision": asdict(decision)},
    )


def _describe(comparison: Comparison) -> str:
    return f"{comparison.name}: {comparison.describe()}"
