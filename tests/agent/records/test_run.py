"""The record: what is written is read back equal, and nothing else is guessed at."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RecordError
from agent.records.run import (
    Branch,
    Checked,
    Evidence,
    Grounding,
    Outcome,
    Provenance,
    Recalled,
    Step,
    Task,
    ToolCall,
    Trajectory,
    Usage,
    from_json,
    step_from_dict,
    step_to_dict,
    to_json,
)
from tools.context import Passage

# Surrogates too: a model may write "\ud800" in its JSON.
texts = st.text(st.characters(), max_size=20)
counts = st.integers(0, 2**31)
reals = st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | reals | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
calls = st.builds(ToolCall, name=texts, arguments=st.dictionaries(texts, values, max_size=3))
passages = st.builds(Passage, label=counts, id=texts, document=texts, heading=texts, text=texts, score=st.floats(-1, 1))
evidence = st.builds(Evidence, text=texts, label=st.none() | counts, document=texts, heading=texts)
checked = st.builds(
    Checked,
    text=texts,
    supported=st.booleans(),
    score=st.floats(0, 1),
    evidence=st.lists(evidence, max_size=2).map(tuple),
)
groundings = st.builds(
    Grounding,
    mode=st.sampled_from(["mark", "withhold"]),
    sentences=st.lists(checked, max_size=2).map(tuple),
    reply=texts,
)
usages = st.builds(Usage, prompt=counts, cached=counts, forced=counts, sampled=counts)
steps = st.builds(
    Step,
    call=st.none() | calls,
    observation=texts,
    thought=texts,
    plan=st.lists(texts, max_size=3).map(tuple),
    error=st.none() | texts,
    notice=st.none() | texts,
    said=texts,
    token_ids=st.lists(counts, max_size=4).map(tuple),
    passages=st.lists(passages, max_size=2).map(tuple),
    usage=usages,
    model_seconds=st.floats(0, 1e6),
    tool_seconds=st.floats(0, 1e6),
    author=st.sampled_from(["model", "correction"]),
    grounding=st.none() | groundings,
)
trajectories = st.builds(
    Trajectory,
    id=st.uuids().map(str),
    task=st.builds(Task, id=texts, text=texts, facts=st.dictionaries(texts, texts, max_size=3)),
    provenance=st.builds(
        Provenance,
        base=texts,
        base_revision=texts,
        adapter=st.none() | texts,
        adapter_hash=st.none() | texts,
        prompt_version=texts,
        tools=st.dictionaries(texts, texts, max_size=2),
        seed=counts,
        temperature=st.floats(0, 5),
    ),
    started_at=st.datetimes().map(lambda time: time.isoformat() + "Z"),
    steps=st.lists(steps, max_size=3).map(tuple),
    outcome=st.none() | st.sampled_from(Outcome),
    error=st.none() | texts,
    ended_at=st.none() | st.datetimes().map(lambda time: time.isoformat() + "Z"),
    branch=st.none() | st.builds(Branch, run=texts, step=counts),
)


@given(trajectories)
def test_a_record_is_read_back_equal_and_stays_on_one_line(trajectory: Trajectory) -> None:
    text = to_json(trajectory)
    assert from_json(text) == trajectory
    assert "\n" not in text


@given(steps)
def test_a_step_is_read_back_equal(step: Step) -> None:
    assert step_from_dict(json.loads(json.dumps(step_to_dict(step)))) == step


def test_a_newer_version_is_refused() -> None:
    data = json.loads(to_json(Trajectory("r", Task("t", "?"), Provenance(), "2026-01-01T00:00:00Z")))
    with pytest.raises(RecordError, match="upgrade"):
        from_json(json.dumps({**data, "version": 99}))


def test_records_from_before_answers_were_checked_are_read() -> None:
    step = Step(ToolCall("answer", {"text": "Yes."}), "Yes.")
    data = json.loads(to_json(Trajectory("r", Task("t", "?"), Provenance(), "", (step,), Outcome.ANSWERED)))
    assert data.pop("version") == 3
    del data["steps"][0]["grounding"], data["steps"][0]["effect_unknown"]
    old = from_json(json.dumps({**data, "version": 1}))
    assert (old.steps, old.answer) == ((step,), "Yes.")


def test_records_from_before_unknown_effects_were_marked_are_read() -> None:
    step = Step(ToolCall("pay", {}), error="It failed.")
    data = json.loads(to_json(Trajectory("r", Task("t", "?"), Provenance(), "", (step,), Outcome.CRASHED)))
    del data["steps"][0]["effect_unknown"]
    assert from_json(json.dumps({**data, "version": 2})).steps == (step,)


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", '{"version":1}', '{"version":1,"x":2}'])
def test_what_is_no_record_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(RecordError):
        from_json(text)


def test_every_outcome_says_what_it_means() -> None:
    assert all(outcome.meaning for outcome in Outcome)


def test_the_answer_and_its_citations_come_from_the_last_step() -> None:
    one, two = (Passage(label, f"p{label}", "a.md", "A", "text") for label in (1, 2))
    answer = Step(ToolCall("answer", {"text": "Yes.", "citations": [2, 7]}))
    trajectory = Trajectory("r", Task("t", "?"), Provenance(), "", (Step(None, passages=(one, two)), answer))
    assert trajectory.answer is None
    ended = Trajectory("r", Task("t", "?"), Provenance(), "", trajectory.steps, Outcome.ANSWERED)
    assert ended.answer == "Yes."
    assert ended.passages == (one, two)
    assert ended.citations == (two,)


def test_cached_tokens_are_not_counted() -> None:
    step = Step(None, usage=Usage(prompt=100, cached=60, forced=5, sampled=10))
    assert Trajectory("r", Task("t", "?"), Provenance(), "").with_step(step).with_step(step).tokens == 110


def test_a_record_from_before_recalled_tasks_had_runs_is_read() -> None:
    shown = Recalled("where is #", "look", ("look", "answer"), "r0")
    made = Trajectory("r", Task("t", "?"), Provenance(recalled=(shown,)), "2026-01-01T00:00:00Z")
    assert from_json(to_json(made)) == made
    data = json.loads(to_json(made))
    assert data["version"] == 3
    del data["provenance"]["recalled"][0]["run"]
    old = from_json(json.dumps({**data, "version": 1}))
    assert old.provenance.recalled == (Recalled("where is #", "look", ("look", "answer")),)
