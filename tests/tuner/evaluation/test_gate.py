"""The gate turns one way only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TuningError
from tests.tuner.suite_parts import evaluation
from tuner.evaluation.evaluate import Evaluation
from tuner.evaluation.gate import GatePolicy, decide, sign_test
from tuner.evaluation.statistics import bootstrap_mean

verdicts = st.lists(st.booleans(), min_size=30, max_size=80)


def made(values: list[bool], groups: Mapping[str, str] | None = None) -> Evaluation:
    return evaluation({f"t-{i}": value for i, value in enumerate(values)}, groups=groups)


@given(verdicts)
@settings(max_examples=40, deadline=None)
def test_identical_evaluations_never_ship(values: list[bool]) -> None:
    decision = decide(made(values), made(values), made(values), GatePolicy(margin=1))
    assert not decision.ship
    assert (decision.gain, decision.low, decision.high) == (0, 0, 0)


@given(verdicts, st.integers(10, 30))
@settings(max_examples=40, deadline=None)
def test_a_candidate_that_wins_many_and_loses_none_ships(values: list[bool], wins: int) -> None:
    before = [False] * wins + values
    decision = decide(made(before), None, made([True] * wins + values))
    assert decision.ship
    assert decision.low > 0
    assert (decision.overall.won, decision.overall.lost) == (wins, 0)


@given(verdicts, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_rows_does_not_matter(values: list[bool], random: Random) -> None:
    base, candidate = made(values), made([not value for value in values])
    turned = replace(candidate, rows=tuple(random.sample(candidate.rows, len(candidate.rows))))
    assert decide(base, None, candidate) == decide(base, None, turned)


@given(verdicts)
@settings(max_examples=30, deadline=None)
def test_nothing_that_loses_more_than_it_wins_ships(values: list[bool]) -> None:
    worse = [value and i % 3 != 0 for i, value in enumerate(values)]
    assert not decide(made(values), None, made(worse), GatePolicy(margin=1)).ship


def test_the_gain_is_over_the_active_one_and_not_over_the_base() -> None:
    base, active = made([False] * 60), made([True] * 60)
    decision = decide(base, active, made([True] * 60))
    assert not decision.ship
    assert (decision.gain, decision.over_base.gain) == (0, 1)


def grouped(before: Mapping[str, tuple[int, int, int]], *, gained: int) -> tuple[Evaluation, Evaluation]:
    """Evaluations before and after: by group its tasks, those won and those lost; `gained` others are won."""
    old: list[bool] = [False] * gained
    new: list[bool] = [True] * gained
    groups = {f"t-{i}": "others" for i in range(gained)}
    for name, (tasks, won, lost) in before.items():
        groups |= {f"t-{len(old) + i}": name for i in range(tasks)}
        old += [False] * won + [True] * (tasks - won)
        new += [True] * won + [False] * lost + [True] * (tasks - won - lost)
    return made(old, groups), made(new, groups)


def test_a_small_group_that_loses_two_of_nine_by_chance_does_not_stop_a_large_gain() -> None:
    """The second adapter of a demo was refused so, with 28 points gained over all."""
    before, after = grouped({"policy": (9, 2, 4), "change": (20, 5, 1)}, gained=17)
    decision = decide(before, None, after)
    assert decision.ship
    assert any("within chance are policy (2 won and 4 lost of 9, p = 0.34)" in reason for reason in decision.reasons)


def test_a_group_that_loses_more_than_chance_explains_stops_it() -> None:
    before, after = grouped({"policy": (9, 0, 7), "change": (20, 5, 1)}, gained=40)
    decision = decide(before, None, after)
    assert not decision.ship
    assert decision.low > 0
    assert decision.reasons[0].startswith("The group 'policy' lost 77.8 points (0 won and 7 lost of 9")
    assert "more than chance explains (p = 0.008)" in decision.reasons[0]
    assert decide(before, None, after, GatePolicy(margin=0.8)).ship


def test_a_loss_that_is_no_chance_but_within_the_margin_does_not_stop_it() -> None:
    before, after = grouped({"many": (200, 0, 10)}, gained=60)
    assert decide(before, None, after, GatePolicy(margin=0.05)).ship
    assert not decide(before, None, after, GatePolicy(margin=0.04)).ship


def test_a_group_that_is_never_to_be_lost_stops_it_with_a_single_task() -> None:
    before, after = grouped({"few": (4, 0, 1)}, gained=40)
    assert decide(before, None, after).ship
    decision = decide(before, None, after, GatePolicy(never_lost=("few",)))
    assert not decision.ship
    assert "gate.never_lost names it" in decision.reasons[0]
    even, same = grouped({"few": (4, 1, 1)}, gained=40)
    assert decide(even, None, same, GatePolicy(never_lost=("few",))).ship
    with pytest.raises(TuningError, match=r"never_lost names fwe, not in the suite; its groups are few, others"):
        decide(before, None, after, GatePolicy(never_lost=("fwe",)))


def test_escalations_that_drop_beyond_chance_stop_it_even_where_success_gains() -> None:
    due = [f"t-{i}" for i in range(20)]
    for lost, ships in ((2, True), (12, False)):
        before = evaluation({f"t-{i}": i < 20 for i in range(100)}, refusals=due)
        after = evaluation({f"t-{i}": i >= lost for i in range(100)}, refusals=due)
        decision = decide(before, None, after, GatePolicy(margin=0.05))
        assert decision.ship is ships
        assert not decide(before, None, after, GatePolicy(never_lost=("refusals",))).ship
    assert decision.reasons[0].startswith("The tasks to be escalated lost 60.0 points (0 won and 12 lost of 20")


def test_chance_alone_seldom_stops_a_candidate_and_the_ruin_of_a_group_does() -> None:
    """Six groups of ten; a candidate that changes a quarter of the tasks either way, and one that ruins a group."""
    generator = np.random.default_rng(3)
    stopped = ruined = 0
    for _ in range(300):
        old = generator.random((6, 10)) < 0.5
        changed = generator.random((6, 10)) < 0.25
        stopped += any_blocked(old, old ^ changed)
        worse = old.copy()
        old[0], worse[0] = True, generator.random(10) < 0.1
        ruined += any_blocked(old, worse)
    assert stopped / 300 <= 0.1
    assert ruined / 300 >= 0.9


def any_blocked(old: np.ndarray, new: np.ndarray) -> bool:
    groups = {f"t-{i}": f"group {i // 10}" for i in range(old.size)}
    before, after = (made(verdicts.ravel().tolist(), groups) for verdicts in (old, new))
    decision = decide(before, None, after, GatePolicy(resamples=100))
    return any(group.blocks for group in decision.groups)


def test_the_sign_test_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for won, lost in ((0, 0), (0, 1), (2, 4), (0, 7), (5, 3), (30, 50)):
        expected = 1.0 if won + lost == 0 else binomtest(lost, won + lost, 0.5, alternative="greater").pvalue
        assert sign_test(won, lost) == pytest.approx(expected)


def test_too_few_tasks_never_ship() -> None:
    decision = decide(made([False] * 10), None, made([True] * 10))
    assert not decision.ship
    assert decision.reasons[0] == "Only 10 tasks were held out; at least 20 are needed to decide."


def test_evaluations_of_different_tasks_are_not_compared() -> None:
    base = made([True] * 40)
    for other, message in (
        (replace(base, suite="other"), "same suite"),
        (made([True] * 41), "same tasks"),
        (replace(base, base_revision="r2"), "same base"),
        (replace(base, rows=(*base.rows, base.rows[0])), "one row a task"),
        (replace(base, rows=()), "one row a task"),
    ):
        with pytest.raises(TuningError, match=message):
            decide(base, None, other)
        with pytest.raises(TuningError, match=message):
            decide(base, other, base)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(TuningError, match="margin"):
        GatePolicy(margin=5)


def test_intervals_cover_the_true_gain_and_equals_seldom_ship() -> None:
    generator = np.random.default_rng(7)
    for chances, largest_miss, largest_ship in (((0.3, 0.1), 0.09, 1.0), ((0.1, 0.1), 0.09, 0.06)):
        gain, misses, shipped = chances[0] - chances[1], 0, 0
        for i in range(400):
            draws = generator.choice([1.0, -1.0, 0.0], p=[*chances, 1 - sum(chances)], size=120)
            interval = bootstrap_mean(draws.tolist(), resamples=1000, seed=i)
            misses += not interval.low <= gain <= interval.high
            shipped += interval.low > 0
        assert misses / 400 <= largest_miss
        assert shipped / 400 <= largest_ship
