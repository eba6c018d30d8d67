"""Suites read back what a file says, and refuse a faulty one with every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.errors import TaskError
from agent.records.run import ToolCall
from tuner.evaluation.suite import StateCheck, load_suite

ROW: dict[str, Any] = {
    "id": "t-0001",
    "group": "returns",
    "task": {"text": "Send it back.", "facts": {"customer_id": "C1042"}},
    "tools": None,
    "check": {
        "calls": [{"tool": "start_return", "args": {"order_id": "48213"}}],
        "forbidden_calls": ["refund_order"],
        "state": [{"database": "shop.db", "query": "select status from orders", "equals": [["open"]]}],
        "must": ["9 May", ["no charge", "free"]],
        "must_not": ["refund"],
        "cites": ["returns-policy.md"],
        "refusal": False,
    },
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_a_row_is_read_with_all_its_parts(tmp_path: Path) -> None:
    solution = [{"plan": ["look"], "thought": "first", "tool": "answer", "args": {"citations": "{cite:a.md}"}}]
    (task,) = load_suite(write(tmp_path / "s.jsonl", {**ROW, "solution": solution}))
    assert (task.id, task.group, task.task.facts) == ("t-0001", "returns", {"customer_id": "C1042"})
    assert task.tools is None
    assert task.check.calls == (ToolCall("start_return", {"order_id": "48213"}),)
    assert task.check.state == (StateCheck("shop.db", "select status from orders", (("open",),)),)
    assert task.check.must == (("9 May",), ("no charge", "free"))
    assert task.solution[0].call == ToolCall("answer", {"citations": "{cite:a.md}"})
    assert (task.solution[0].thought, task.solution[0].plan) == ("first", ("look",))


def test_every_fault_is_named_with_its_line_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        ROW,
        "{not json",
        {**ROW, "id": "a/b"},
        ROW,
        {**ROW, "id": "t-5", "check": {"must": [[]], "muts_not": ["x"], "refusal": "no"}},
        {**ROW, "id": "t-6", "check": {}},
        {**ROW, "id": "t-7", "task": {"text": " ", "facts": {"n": 5}}, "tools": ["get_order"]},
    )
    with pytest.raises(TaskError) as caught:
        load_suite(path)
    message = str(caught.value)
    assert f"{path}:2: not JSON" in message
    assert f"{path}:3: id 'a/b'" in message
    assert f"{path}:4: id 't-0001' was used on line 1" in message
    assert f"{path}:5: check has the unknown key 'muts_not'" in message
    assert f"{path}:5: check.must[0] is []" in message
    assert f'{path}:5: check.refusal is "no"; expected true or false' in message
    assert f"{path}:6: check is empty" in message
    assert f"{path}:7: task.facts.n is 5; expected text" in message
    assert f"{path}:7: task.text" in message
    assert f"{path}:7: check.calls[0] expects 'start_return', which is not in the row's tools" in message


@pytest.mark.parametrize("row", ["[]", "3", "null", '"x"', "{}", '{"id": NaN}', "[" * 100_000])
def test_any_json_that_is_no_row_is_a_fault_and_not_a_crash(tmp_path: Path, row: str) -> None:
    with pytest.raises(TaskError, match=r"s\.jsonl:1: "):
        load_suite(write(tmp_path / "s.jsonl", row))


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read"):
        load_suite(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="no rows"):
        load_suite(write(tmp_path / "s.jsonl", "", " "))


def test_a_database_outside_the_workspace_is_refused(tmp_path: Path) -> None:
    state = [{"database": "../shop.db", "query": "select 1", "equals": [[1]]}]
    with pytest.raises(TaskError, match="inside the workspace"):
        load_suite(write(tmp_path / "s.jsonl", {**ROW, "check": {"state": state}}))


def test_the_hash_follows_meaning_and_not_spelling(tmp_path: Path) -> None:
    plain = load_suite(write(tmp_path / "a.jsonl", ROW))
    spaced = load_suite(write(tmp_path / "b.jsonl", "", json.dumps(dict(reversed(ROW.items())), indent=None)))
    other = load_suite(write(tmp_path / "c.jsonl", {**ROW, "group": "other"}))
    assert plain.hash == spaced.hash
    assert plain.hash != other.hash


def test_head_takes_an_even_share_of_each_group_in_file_order(tmp_path: Path) -> None:
    names = ["a"] * 6 + ["b"] * 2 + ["c"] * 4
    rows = [{**ROW, "id": f"t-{i}", "group": name} for i, name in enumerate(names)]
    suite = load_suite(write(tmp_path / "s.jsonl", *rows))
    assert {name: len(tasks) for name, tasks in suite.groups.items()} == {"a": 6, "b": 2, "c": 4}
    assert [task.id for task in suite.head(6)] == ["t-0", "t-1", "t-6", "t-7", "t-8", "t-9"]
    assert [len(tasks) for tasks in suite.head(9).groups.values()] == [4, 2, 3]
    assert suite.head(100) == suite
    assert load_suite(tmp_path / "s.jsonl", limit=6) == suite.head(6)
    with pytest.raises(TaskError, match="at least 1"):
        suite.head(0)
