"""The gate: whether a candidate may be served, and why, from three evaluations of the same tasks.

Nothing is run, read or written here. The candidate ships only when all of these hold: the paired 95 %
bootstrap interval of its gain over the active adapter lies above zero; no group of tasks, nor the tasks to be
escalated, lost more than the margin and more than chance explains; no group that is never to be lost lost a task on
balance; and there were enough tasks. Does not guarantee that the suite resembles real use.

Chance is measured by the exact sign test (McNemar's test on the tasks that changed, one-sided). A suite has several
groups, and each is a chance to be wrong, so that Holm's correction holds the probability of stopping a candidate that
is no worse anywhere below `level` for all groups together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import comb

from agent.errors import TuningError
from tuner.evaluation.comparison import is_lost
from tuner.evaluation.evaluate import EvaluatedTask, Evaluation
from tuner.evaluation.statistics import bootstrap_mean, points

ESCALATIONS = "refusals"
"""The name of the tasks to be escalated among the groups, whatever group of the suite they are in."""


@dataclass(frozen=True)
class GatePolicy:
    """The requirements for a candidate. Shares are 0 to 1."""

    margin: float = 0.1
    """The loss of success that a group may take even where it is more than chance; escalations alike."""
    level: float = 0.1
    """The probability that chance alone stops a candidate that is no worse in any group, at most."""
    never_lost: tuple[str, ...] = ()
    """Groups that may not lose a task on balance, whatever chance explains; "refusals" names the tasks to be
    escalated."""
    min_tasks: int = 20
    small_group: int = 10
    """Groups with fewer tasks are called small: only a large loss of them is more than chance."""
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1 or not 0 < self.level < 1 or self.min_tasks < 1 or self.resamples < 100:
            raise TuningError(
                f"{self}: expected margin from 0 to 1, level between 0 and 1, min_tasks from 1, resamples from 100"
            )


@dataclass(frozen=True)
class GroupChange:
    """How a share differs between two evaluations of the same tasks, with the paired 95 % interval."""

    name: str
    tasks: int
    before: float
    after: float
    gain: float
    low: float
    high: float
    won: int
    """Tasks that failed before and hold now."""
    lost: int
    chance: float
    """The probability of at least as many lost among the tasks that changed, were either way as likely."""
    small: bool = False
    blocks: bool = False
    """Loses more than the margin and more than chance explains; or anything, where it is never to be lost."""


@dataclass(frozen=True)
class Decision:
    """Ship or not, with the figures; `gain`, `low` and `high` are over the active adapter."""

    ship: bool
    gain: float
    low: float
    high: float
    overall: GroupChange
    over_base: GroupChange
    groups: tuple[GroupChange, ...]
    refusals: GroupChange | None
    """None when no task of the suite is to be escalated."""
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: GatePolicy


def decide(
    base: Evaluation, active: Evaluation | None, candidate: Evaluation, policy: GatePolicy | None = None
) -> Decision:
    """Decide whether a candidate ships.

    Args:
        base: The base without recall.
        active: What is served now; None for the base.
        candidate: The new adapter.
        policy: The requirements.

    Raises:
        TuningError: The evaluations are not of the same suite, tasks and base, or `never_lost` names an unknown group.
    """
    policy = policy or GatePolicy()
    before = base if active is None else active
    for name, other in (("base", base), ("active", before)):
        _check_comparable(name, other, candidate)
    old, new = _by_id(before), _by_id(candidate)
    pairs = [(old[task], new[task]) for task in sorted(new)]
    names = sorted({row.group for row in new.values()})
    overall = _change("all tasks", pairs, _success, policy)
    base_rows = _by_id(base)
    over_base = _change("all tasks", [(base_rows[task], new[task]) for task in sorted(new)], _success, policy)
    escalations = [pair for pair in pairs if pair[1].expects_refusal]
    known = [*names, *([ESCALATIONS] if escalations else [])]
    if unknown := sorted(set(policy.never_lost) - set(known)):
        raise TuningError(
            f"gate.never_lost names {', '.join(unknown)}, not in the suite; its groups are {', '.join(known)}"
        )
    changes = [_change(name, [pair for pair in pairs if pair[1].group == name], _success, policy) for name in names]
    changes += [_change(ESCALATIONS, escalations, _escalated, policy)] if escalations else []
    changes = _mark_blocking(changes, policy)
    groups = tuple(changes[: len(names)])
    refusals = changes[-1] if escalations else None

    objections = [*_objections(overall, policy), *(_loss(change, policy) for change in changes if change.blocks)]
    notes = _notes(overall, groups, refusals, policy, "base" if active is None else "active one")
    return Decision(
        ship=not objections,
        gain=overall.gain,
        low=overall.low,
        high=overall.high,
        overall=overall,
        over_base=over_base,
        groups=groups,
        refusals=refusals,
        reasons=(*objections, *notes),
        policy=policy,
    )


def _check_comparable(name: str, other: Evaluation, candidate: Evaluation) -> None:
    if other.suite != candidate.suite:
        raise TuningError(
            f"the {name} was evaluated on suite {other.suite[:12]}, the candidate on {candidate.suite[:12]}; "
            "evaluate both on the same suite"
        )
    unmatched = sorted(_by_id(other).keys() ^ _by_id(candidate).keys())
    if unmatched:
        raise TuningError(
            f"the {name} and the candidate differ in {len(unmatched)} task(s), such as "
            f"{', '.join(unmatched[:5])}; evaluate both on the same tasks"
        )
    if other.base_revision != candidate.base_revision:
        raise TuningError(
            f"the {name} ran on base revision {other.base_revision!r}, the candidate on "
            f"{candidate.base_revision!r}; evaluate both on the same base"
        )


def _by_id(evaluation: Evaluation) -> dict[str, EvaluatedTask]:
    rows = {row.task: row for row in evaluation.rows}
    if len(rows) != len(evaluation.rows) or not rows:
        raise TuningError(f"{len(evaluation.rows)} rows for {len(rows)} task ids; expected one row a task")
    return rows


def _success(row: EvaluatedTask) -> bool:
    return row.scores.success


def _escalated(row: EvaluatedTask) -> bool:
    return row.scores.refusal is True


def _change(
    name: str,
    pairs: Iterable[tuple[EvaluatedTask, EvaluatedTask]],
    holds: Callable[[EvaluatedTask], bool],
    policy: GatePolicy,
) -> GroupChange:
    verdicts = [(holds(old), holds(new)) for old, new in pairs]
    gain = bootstrap_mean([new - old for old, new in verdicts], resamples=policy.resamples, seed=policy.seed)
    won = sum(new and not old for old, new in verdicts)
    lost = sum(old and not new for old, new in verdicts)
    return GroupChange(
        name=name,
        tasks=len(verdicts),
        before=sum(old for old, _ in verdicts) / len(verdicts),
        after=sum(new for _, new in verdicts) / len(verdicts),
        gain=gain.mean,
        low=gain.low,
        high=gain.high,
        won=won,
        lost=lost,
        chance=sign_test(won, lost),
        small=len(verdicts) < policy.small_group,
    )


def sign_test(won: int, lost: int) -> float:
    """Return the one-sided exact p-value of `lost` losses among `won + lost` equally likely changes (McNemar)."""
    changed = won + lost
    return sum(comb(changed, count) for count in range(lost, changed + 1)) / (1 << changed)


def _mark_blocking(changes: Sequence[GroupChange], policy: GatePolicy) -> list[GroupChange]:
    """Mark the changes that stop the candidate, with Holm's step-down correction over all of them."""
    unlikely: set[str] = set()
    for place, change in enumerate(sorted(changes, key=lambda change: change.chance)):
        if change.chance > policy.level / (len(changes) - place):
            break
        unlikely.add(change.name)
    return [
        replace(
            change,
            blocks=change.lost > change.won
            if change.name in policy.never_lost
            else change.name in unlikely and is_lost(change.gain, policy.margin),
        )
        for change in changes
    ]


def _objections(overall: GroupChange, policy: GatePolicy) -> Iterable[str]:
    if overall.tasks < policy.min_tasks:
        yield f"Only {overall.tasks} tasks were held out; at least {policy.min_tasks} are needed to decide."
    if overall.low <= 0:
        yield (
            f"The gain is not sure: {points(overall.gain)} with a 95 % interval of {points(overall.low)} "
            f"to {points(overall.high)}, not above zero ({overall.won} tasks won, {overall.lost} lost)."
        )


def _loss(change: GroupChange, policy: GatePolicy) -> str:
    what = "The tasks to be escalated" if change.name == ESCALATIONS else f"The group {change.name!r}"
    lost = (
        f"{what} lost {points(-change.gain, sign=False)} ({change.won} won and {change.lost} lost of {change.tasks}; "
        f"95 % interval of the change {points(change.low)} to {points(change.high)})"
    )
    if change.name in policy.never_lost:
        return f"{lost}, and gate.never_lost names it."
    return (
        f"{lost}: more than the margin of {points(policy.margin, sign=False)}, and more than chance explains "
        f"(p = {change.chance:.3f})."
    )


def _notes(
    overall: GroupChange, groups: tuple[GroupChange, ...], refusals: GroupChange | None, policy: GatePolicy, over: str
) -> list[str]:
    notes = []
    if overall.low > 0:
        notes.append(
            f"The candidate gains {points(overall.gain)} over the {over} (95 % interval "
            f"{points(overall.low)} to {points(overall.high)}; {overall.won} won and "
            f"{overall.lost} lost of {overall.tasks} tasks)."
        )
    counted = (*groups, *([refusals] if refusals else []))
    if not any(change.blocks for change in counted):
        notes.append(
            f"No group lost more than {points(policy.margin, sign=False)} beyond chance"
            f"{_within_chance(counted, policy)}."
        )
    if small := [f"{change.name} ({change.tasks})" for change in counted if change.small]:
        notes.append(f"Groups of fewer than {policy.small_group} tasks say little: {', '.join(small)}.")
    if refusals is None:
        notes.append("No task of the suite is to be escalated, so escalations were not compared.")
    elif not refusals.blocks:
        notes.append(
            f"Of the {refusals.tasks} tasks to be escalated, {refusals.before:.0%} were before and "
            f"{refusals.after:.0%} are now."
        )
    return notes


def _within_chance(changes: Iterable[GroupChange], policy: GatePolicy) -> str:
    """Name the groups that lost more than the margin, but no more than chance explains."""
    lost = [
        f"{change.name} ({change.won} won and {change.lost} lost of {change.tasks}, p = {change.chance:.2f})"
        for change in changes
        if is_lost(change.gain, policy.margin)
    ]
    return f"; within chance are {', '.join(lost)}" if lost else ""
