"""The checker judges what the record and the workspace show."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.records.run import Outcome, ToolCall
from tests.tuner.suite_parts import answered, passage, refused, step, suite_task, trajectory
from tuner.evaluation.checks import same_value, score
from tuner.evaluation.suite import StateCheck


def shop(folder: Path, status: str) -> Path:
    path = folder / "shop.db"
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table orders (id text, status text, total real, items integer)")
        connection.execute("insert into orders values ('48213', ?, 19.9, 2)", [status])
        connection.commit()
    return path


def test_all_expected_calls_with_their_arguments_make_a_success(tmp_path: Path) -> None:
    task = suite_task(calls=(ToolCall("start_return", {"order_id": "48213", "sku": "TL-20"}),), must=(("9 May",),))
    run = answered("By 9  may.", step("start_return", {"order_id": 48213, "sku": " tl\u201320", "note": "free"}))
    scores = score(task, run, tmp_path)
    assert scores.success
    assert (scores.tool, scores.arguments, scores.facts, scores.refusal) == (True, True, True, True)
    assert (scores.state, scores.citations, scores.reasons) == (None, None, ())


def test_a_refused_call_does_not_count_and_wrong_arguments_are_told_apart(tmp_path: Path) -> None:
    task = suite_task(calls=(ToolCall("cancel", {"order_id": "1"}),))
    failed = score(task, answered("x", step("cancel", {"order_id": "1"}, error="no")), tmp_path)
    assert (failed.tool, failed.arguments, failed.success) == (False, False, False)
    wrong = score(task, answered("x", step("cancel", {"order_id": "2"})), tmp_path)
    assert (wrong.tool, wrong.arguments, wrong.success) == (True, False, False)
    assert wrong.reasons == ("no successful call of cancel had order_id='1'",)


def test_a_forbidden_call_fails_the_task(tmp_path: Path) -> None:
    scores = score(suite_task(forbidden_calls=("refund",)), answered("x", step("refund")), tmp_path)
    assert (scores.tool, scores.arguments, scores.success) == (False, None, False)
    assert "forbidden" in scores.reasons[0]


def test_a_step_that_could_not_be_read_is_no_call(tmp_path: Path) -> None:
    unread = replace(step("x"), call=None, error="not JSON", said="???")
    assert score(suite_task(must=(("done",),)), answered("Done.", unread), tmp_path).success


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("48213", 48213, True),
        (48213, "48213", True),
        ("048", 48, False),
        (19.9, "19.90", True),
        (0.3, 0.1 + 0.2, True),
        (2**63 + 1, 2**63, False),
        ("Big  Tent", " big tent", True),
        (True, "true", True),
        (True, 1, True),
        (True, "yes", False),
        (None, None, True),
        (None, "", False),
        (["a", 1], ["A", "1"], True),
        (["a"], ["a", "b"], False),
        ({"a": 1}, {"a": "1"}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ("nan", float("nan"), False),
        (float("nan"), float("inf"), False),
        ([], "", False),
        (b"x", "x", False),
    ],
)
def test_values_are_compared_by_what_they_mean(expected: Any, found: Any, same: bool) -> None:
    assert same_value(expected, found) is same


@pytest.mark.parametrize(
    ("answer", "fact", "said"),
    [
        ("It leaves on 9\u00a0May.", "9 May", True),
        ("It leaves on 19 May.", "9 May", False),
        ("It costs 45.00 EUR", "45", True),
        ("It costs 45.50 EUR", "45", False),
        ("It costs 45,000 EUR", "45", False),
        ("You pay 45.", "45", True),
        ("You pay 45, as agreed", "45", True),
        ("Order 482130", "48213", False),
        ("within 3\u20135 days", "3-5 days", True),
        ("It\u2019s FREE", "it's free", True),
        ("We refunded you", "refund", True),
        ("a.b", "a+b", False),
    ],
)
def test_facts_are_found_loosely_in_words_and_exactly_in_numbers(
    tmp_path: Path, answer: str, fact: str, said: bool
) -> None:
    assert score(suite_task(must=((fact,),)), answered(answer), tmp_path).facts is said
    assert score(suite_task(must_not=(fact,)), answered(answer), tmp_path).facts is not said


def test_any_of_several_facts_will_do_and_no_answer_has_none(tmp_path: Path) -> None:
    task = suite_task(must=(("no charge", "free"),))
    assert score(task, answered("It is free."), tmp_path).facts
    silent = score(task, trajectory(step("get_order"), outcome=Outcome.OUT_OF_STEPS), tmp_path)
    assert (silent.facts, silent.success) == (False, False)
    assert any("out_of_steps" in reason for reason in silent.reasons)


def test_the_final_state_is_read_from_the_workspace(tmp_path: Path) -> None:
    query = "select id, status, total, items from orders"
    task = suite_task(state=(StateCheck("shop.db", query, ((48213, "cancelled", 19.9, "2"),)),))
    shop(tmp_path / "run", "cancelled")
    assert score(task, answered(), tmp_path / "run").state
    shop(tmp_path / "other", "open")
    scores = score(task, answered(), tmp_path / "other")
    assert scores.state is False
    assert "expected [[48213, 'cancelled', 19.9, '2']]" in scores.reasons[0]


def test_an_untouched_database_is_the_projects_own_copy(tmp_path: Path) -> None:
    task = suite_task(state=(StateCheck("shop.db", "select status from orders", (("open",),)),))
    workspace = tmp_path / "run"
    workspace.mkdir()
    assert score(task, answered(), workspace).state is False
    original = shop(tmp_path / "project", "open")
    assert score(task, answered(), workspace, pristine=original).state
    assert score(task, answered(), workspace, pristine=original.parent).state


@pytest.mark.parametrize(
    "query",
    [
        "delete from orders",
        "attach database 'made.db' as made",
        "pragma journal_mode=wal",
        "select * from no_such_table",
        "select 1; select 2",
        "",
    ],
)
def test_a_query_can_only_read_and_a_bad_one_is_a_reason(tmp_path: Path, query: str) -> None:
    path = shop(tmp_path / "run", "open")
    before = path.read_bytes()
    scores = score(suite_task(state=(StateCheck("shop.db", query, ((1,),)),)), answered(), tmp_path / "run")
    assert scores.state is False
    assert path.read_bytes() == before
    assert [child.name for child in (tmp_path / "run").iterdir()] == ["shop.db"]


def test_citations_are_counted_by_document(tmp_path: Path) -> None:
    search = step("search_knowledge", passages=(passage(1, "returns.md"), passage(2, "shipping.md")))
    task = suite_task(cites=("returns.md",))
    assert score(task, answered("x", search, citations=[1]), tmp_path).citations
    assert score(task, answered("x", search, citations=[2]), tmp_path).reasons == ("returns.md is not cited",)
    odd = answered("x", search)
    odd = replace(odd, steps=(*odd.steps[:-1], step("answer", {"text": "x", "citations": 1})))
    assert score(task, odd, tmp_path).citations is False


def test_a_refusal_is_right_only_where_it_is_expected(tmp_path: Path) -> None:
    due = suite_task(refusal=True)
    assert score(due, refused(), tmp_path).success
    assert score(due, answered(), tmp_path).refusal is False
    open_task = suite_task(must_not=("x",))
    needless = score(open_task, refused(), tmp_path)
    assert (needless.refusal, needless.success) == (False, False)


def test_a_refusal_that_changed_something_first_is_none(tmp_path: Path) -> None:
    original = shop(tmp_path / "project", "open")
    shop(tmp_path / "same", "open")
    shop(tmp_path / "changed", "cancelled")
    task = suite_task(refusal=True)
    assert score(task, refused(), tmp_path / "same", pristine=original.parent).success
    scores = score(task, refused(), tmp_path / "changed", pristine=original.parent)
    assert scores.refusal is False
    assert scores.reasons == ("the run changed shop.db before it escalated",)


def test_a_run_that_ended_any_other_way_is_no_success(tmp_path: Path) -> None:
    task = suite_task(calls=(ToolCall("get_order", {}),))
    for outcome in (None, Outcome.LOOPING, Outcome.CRASHED):
        scores = score(task, trajectory(step("get_order"), outcome=outcome), tmp_path)
        assert (scores.tool, scores.refusal, scores.success) == (True, True, False)
        assert len(scores.reasons) == 1
