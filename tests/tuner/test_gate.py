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
from tuner.evaluate import Evaluation, bootstrap_mean
from tuner.gate import GatePolicy, decide

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


def test_a_group_that_loses_more_than_the_margin_stops_it_unless_unwatched() -> None:
    groups = {f"t-{i}": "few" if i < 4 else "many" for i in range(60)}
    before = made([True] * 4 + [False] * 56, groups)
    after = made([False] * 2 + [True] * 58, groups)
    decision = decide(before, None, after, GatePolicy(margin=0.05))
    assert not decision.ship
    assert decision.low > 0
    assert decision.reasons[0].startswith("The group 'few' lost 50.0 points")
    assert "It is small: one of its 4 tasks is 25.0 points." in decision.reasons[0]
    assert decide(before, None, after, GatePolicy(watched=("many",))).ship
    assert decide(before, None, after, GatePolicy(margin=0.5)).ship
    with pytest.raises(TuningError, match="watched groups fwe are not in the suite"):
        decide(before, None, after, GatePolicy(watched=("fwe",)))


def test_a_group_may_lose_one_task_where_that_is_more_than_the_margin_and_it_is_told() -> None:
    groups = {f"t-{i}": "few" if i < 4 else "many" for i in range(60)}
    before = made([True] * 4 + [False] * 56, groups)
    decision = decide(before, None, made([False] + [True] * 59, groups), GatePolicy(margin=0.05))
    assert decision.ship
    assert any("but for few with one of its 4 tasks" in one for one in decision.reasons)
    for lost, ship in ((1, False), (0, True)):
        due = evaluation({f"t-{i}": True if i < 4 else i >= 50 for i in range(60)}, refusals=["t-0", "t-1", "t-2"])
        fewer = evaluation({f"t-{i}": i >= lost for i in range(60)}, refusals=["t-0", "t-1", "t-2"])
        assert decide(due, None, fewer, GatePolicy(margin=0.05)).ship is ship


def test_refusals_that_drop_stop_it_even_where_success_gains() -> None:
    due = [f"t-{i}" for i in range(20)]
    before = evaluation({f"t-{i}": i < 20 for i in range(100)}, refusals=due)
    after = evaluation({f"t-{i}": i >= 2 for i in range(100)}, refusals=due)
    decision = decide(before, None, after, GatePolicy(margin=0.05))
    assert not decision.ship
    assert decision.reasons[0].startswith("The share of tasks handed over when due lost 10.0 points")


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
