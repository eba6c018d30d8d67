"""The gate of a trained task: whether a version that learnt from corrections is served in place of the one before.

Pure. Both have said what they make of the same test and of corrections that neither has learnt from. It is not promised
that these are like what comes next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuner.evaluation.statistics import gain_cells, paired, points, told_gain
from tuner.reports.gate_report import markdown_table


@dataclass(frozen=True)
class TaskPolicy:
    """What is asked of a new version. Shares are 0 to 1."""

    min_corrected: int = 5
    """Held-out corrections that a gain is believed from."""
    margin: float = 0.01
    """What the test may lose, where the corrections gain."""
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Compared:
    """How right two versions are of the same examples, 0 to 1, and the gain with its paired 95 % bootstrap interval."""

    name: str
    examples: int
    before: float
    after: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskDecision:
    """Ship or not, and the figures behind it."""

    ship: bool
    test: Compared
    corrected: Compared
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: TaskPolicy


def decide(
    test: tuple[Sequence[float], Sequence[float]],
    corrected: tuple[Sequence[float], Sequence[float]],
    policy: TaskPolicy | None = None,
) -> TaskDecision:
    """Ship where the held-out corrections gain for sure and the test loses no more than the margin, or where the test
    gains for sure and the corrections lose nothing.

    Each pair is how right the served and the new version are of the same examples, one by one.
    """
    policy = policy or TaskPolicy()
    old, new = _compared("the test", *test, policy), _compared("held-out corrections", *corrected, policy)
    few = new.examples < policy.min_corrected
    # A loss of just the margin is allowed, whatever floating point makes of it.
    learnt = not few and new.low > 0 and -old.gain <= policy.margin + 1e-9
    better = old.low > 0 and new.gain >= 0
    against = []
    if not (learnt or better):
        if few:
            against.append(
                f"Only {new.examples} corrections are held out; at least {policy.min_corrected} are needed to decide."
            )
        elif new.low <= 0:
            against.append(f"The gain is not sure for {_told(new)}, not above zero.")
        if new.gain < 0 < old.low:
            against.append(f"The test gains, but {_told(new)}.")
        if -old.gain > policy.margin + 1e-9:
            against.append(f"More than {points(policy.margin, sign=False)} are lost on {_told(old)}.")
    notes = [f"How right on {_told(one)}." for one in (old, new) if one.examples]
    return TaskDecision(not against, old, new, (*against, *notes), policy)


def write_report(decision: TaskDecision, before: str, after: str) -> dict[str, bytes]:
    """The files of the report, by name; no text of an example is in them."""
    table = markdown_table(
        ("how right on", "examples", "before", "after", "gain"),
        [(one.name, one.examples, *gain_cells(one)) for one in (decision.test, decision.corrected)],
    )
    verdict = "Ship" if decision.ship else "Do not ship"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    page = f"# {verdict}: {after}\n\nAgainst {before}.\n\n{reasons}\n\n{table}\n"
    data = {"version": 1, "before": before, "after": after, "decision": asdict(decision)}
    return {
        "report/gate.json": (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode(),
        "report/gate.md": page.encode(),
    }


def _compared(name: str, before: Sequence[float], after: Sequence[float], policy: TaskPolicy) -> Compared:
    old, new, gain = paired(before, after, resamples=policy.resamples, seed=policy.seed)
    return Compared(name, len(before), old, new, gain.mean, gain.low, gain.high)


def _told(one: Compared) -> str:
    return f"{one.name}: {told_gain(one, f'{one.examples} examples')}"
