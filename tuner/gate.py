"""The gate: whether a candidate may be served, and why, from three evaluations of the same tasks.

Pure: nothing is run, read or written here. The candidate ships only when all of these hold: the paired 95 %
bootstrap interval of its gain over the active adapter lies above zero, no watched group and no refusals lose
more than the margin (a group may lose one task, however few it has), and there were enough tasks. It is not
promised that the suite resembles real use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.errors import TuningError
from tuner.evaluate import Evaluation, Row, bootstrap_mean, points


@dataclass(frozen=True)
class GatePolicy:
    """What is asked of a candidate. Shares are 0 to 1."""

    margin: float = 0.1
    """The loss of success a watched group may take; refusals alike. One task may a group lose where that is more: which
    way a single one goes can hang on the last digit of a sum. No refusal may be lost so."""
    watched: tuple[str, ...] | None = None
    """Names of the groups that may not lose; None watches all of them."""
    min_tasks: int = 20
    small_group: int = 10
    """Groups with fewer tasks are called small, as one task weighs much there. They still count, see `margin`."""
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1 or self.min_tasks < 1 or self.resamples < 100:
            raise TuningError(f"{self}: expected margin from 0 to 1, min_tasks from 1, resamples from 100")


@dataclass(frozen=True)
class Change:
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
    watched: bool = True
    small: bool = False
    too_much: bool = False
    """Loses more than the margin, and, of a group, more than one task."""


@dataclass(frozen=True)
class Decision:
    """Ship or not, and the figures behind it; `gain`, `low` and `high` are over the active one."""

    ship: bool
    gain: float
    low: float
    high: float
    overall: Change
    over_base: Change
    groups: tuple[Change, ...]
    refusals: Change | None
    """None when no task of the suite is to be handed over."""
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: GatePolicy


def decide(
    base: Evaluation, active: Evaluation | None, candidate: Evaluation, policy: GatePolicy | None = None
) -> Decision:
    """Decide from evaluations of one suite; without `active` the base is what is served now.

    Raises TuningError when they are not of the same suite, tasks and base, or a watched group is unknown.
    """
    policy = policy or GatePolicy()
    before = base if active is None else active
    for name, other in (("base", base), ("active", before)):
        _comparable(name, other, candidate)
    old, new = _by_id(before), _by_id(candidate)
    pairs = [(old[task], new[task]) for task in sorted(new)]
    names = sorted({row.group for row in new.values()})
    if unknown := sorted(set(policy.watched or ()) - set(names)):
        raise TuningError(f"watched groups {', '.join(unknown)} are not in the suite, which has {', '.join(names)}")

    overall = _change("all tasks", pairs, _success, policy)
    base_rows = _by_id(base)
    over_base = _change("all tasks", [(base_rows[task], new[task]) for task in sorted(new)], _success, policy)
    groups = tuple(
        _change(name, [pair for pair in pairs if pair[1].group == name], _success, policy, spared=1) for name in names
    )
    due = [pair for pair in pairs if pair[1].expects_refusal]
    refusals = _change("refusals", due, _refused, policy) if due else None

    against = [*_against(overall, policy)]
    against += [
        _loss(group, f"The group {group.name!r}", policy) for group in groups if group.watched and group.too_much
    ]
    if refusals is not None and refusals.too_much:
        against.append(_loss(refusals, "The share of tasks handed over when due", policy))
    notes = _notes(overall, groups, refusals, policy, "base" if active is None else "active one")
    return Decision(
        ship=not against,
        gain=overall.gain,
        low=overall.low,
        high=overall.high,
        overall=overall,
        over_base=over_base,
        groups=groups,
        refusals=refusals,
        reasons=(*against, *notes),
        policy=policy,
    )


def _comparable(name: str, other: Evaluation, candidate: Evaluation) -> None:
    if other.suite != candidate.suite:
        raise TuningError(
            f"the {name} was evaluated on suite {other.suite[:12]}, the candidate on {candidate.suite[:12]}; "
            "evaluate both on the same suite"
        )
    apart = sorted(_by_id(other).keys() ^ _by_id(candidate).keys())
    if apart:
        raise TuningError(
            f"the {name} and the candidate differ in {len(apart)} task(s), such as "
            f"{', '.join(apart[:5])}; evaluate both on the same tasks"
        )
    if other.base_revision != candidate.base_revision:
        raise TuningError(
            f"the {name} ran on base revision {other.base_revision!r}, the candidate on "
            f"{candidate.base_revision!r}; evaluate both on the same base"
        )


def _by_id(evaluation: Evaluation) -> dict[str, Row]:
    rows = {row.task: row for row in evaluation.rows}
    if len(rows) != len(evaluation.rows) or not rows:
        raise TuningError(f"{len(evaluation.rows)} rows for {len(rows)} task ids; expected one row a task")
    return rows


def _success(row: Row) -> bool:
    return row.scores.success


def _refused(row: Row) -> bool:
    return row.scores.refusal is True


def _change(
    name: str,
    pairs: Iterable[tuple[Row, Row]],
    holds: Callable[[Row], bool],
    policy: GatePolicy,
    *,
    spared: int = 0,
) -> Change:
    """With as many tasks as are `spared` lost at most, it is not too much."""
    verdicts = [(holds(old), holds(new)) for old, new in pairs]
    gain = bootstrap_mean([new - old for old, new in verdicts], resamples=policy.resamples, seed=policy.seed)
    return Change(
        name=name,
        tasks=len(verdicts),
        before=sum(old for old, _ in verdicts) / len(verdicts),
        after=sum(new for _, new in verdicts) / len(verdicts),
        gain=gain.mean,
        low=gain.low,
        high=gain.high,
        won=sum(new and not old for old, new in verdicts),
        lost=sum(old and not new for old, new in verdicts),
        watched=policy.watched is None or name in policy.watched,
        small=len(verdicts) < policy.small_group,
        too_much=_is_more(-gain.mean, max(policy.margin, spared / len(verdicts))),
    )


def _is_more(loss: float, allowed: float) -> bool:
    """A loss of just as much is not, whatever floating point makes of it."""
    return loss > allowed + 1e-9


def _against(overall: Change, policy: GatePolicy) -> Iterable[str]:
    if overall.tasks < policy.min_tasks:
        yield f"Only {overall.tasks} tasks were held out; at least {policy.min_tasks} are needed to decide."
    if overall.low <= 0:
        yield (
            f"The gain is not sure: {points(overall.gain)} with a 95 % interval of {points(overall.low)} "
            f"to {points(overall.high)}, not above zero ({overall.won} tasks won, {overall.lost} lost)."
        )


def _loss(change: Change, what: str, policy: GatePolicy) -> str:
    one = points(1 / change.tasks, sign=False)
    small = f" It is small: one of its {change.tasks} tasks is {one}." if change.small else ""
    return (
        f"{what} lost {points(-change.gain, sign=False)} "
        f"(95 % interval of the change {points(change.low)} to {points(change.high)}), "
        f"more than the margin of {points(policy.margin, sign=False)}.{small}"
    )


def _but_for(groups: Iterable[Change], policy: GatePolicy) -> str:
    """The groups that lost a single task, and with it more than the margin."""
    spared = [
        f"{one.name} with one of its {one.tasks} tasks"
        for one in groups
        if one.watched and not one.too_much and _is_more(-one.gain, policy.margin)
    ]
    return f", but for {', '.join(spared)}: a single one says little" if spared else ""


def _notes(
    overall: Change, groups: tuple[Change, ...], refusals: Change | None, policy: GatePolicy, over: str
) -> list[str]:
    notes = []
    if overall.low > 0:
        notes.append(
            f"The candidate gains {points(overall.gain)} over the {over} (95 % interval "
            f"{points(overall.low)} to {points(overall.high)}; {overall.won} won and "
            f"{overall.lost} lost of {overall.tasks} tasks)."
        )
    if not any(group.too_much and group.watched for group in groups):
        notes.append(f"No watched group lost more than {points(policy.margin, sign=False)}{_but_for(groups, policy)}.")
    for group in groups:
        if group.too_much and not group.watched:
            notes.append(_loss(group, f"Unwatched, so not held against it: {group.name!r}", policy))
    counted = (*groups, *([refusals] if refusals else []))
    if small := [f"{group.name} ({group.tasks})" for group in counted if group.small]:
        notes.append(f"Groups of fewer than {policy.small_group} tasks say little: {', '.join(small)}.")
    if refusals is None:
        notes.append("No task of the suite is to be handed over, so refusals were not looked at.")
    elif not refusals.too_much:
        notes.append(
            f"Of the {refusals.tasks} to be handed over, {refusals.before:.0%} were before and "
            f"{refusals.after:.0%} are now."
        )
    return notes
