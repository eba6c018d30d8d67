"""Feedback is checked, stored and effective at once, whoever gives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config.project import find_project
from agent.encoders.encoder import HashEncoder
from agent.errors import FeedbackError, StoreError
from agent.feedback.approved import correction_statuses
from agent.feedback.service import arbitrate, correct, rate
from agent.llm.scripted import ScriptedModel, answer, call
from agent.records.run import Outcome, Task
from agent.runtime import Runtime


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    replies = [call("calculator", expression="2 + 2"), answer("Five."), answer("Six.")]
    with Runtime(find_project(tmp_path, {}), model=ScriptedModel(replies), encoder=HashEncoder()) as opened:
        opened.run(Task("t", "What is 2 + 2? Tell ann@example.com."), run_id="run")
        yield opened


def test_a_correction_is_stored_and_the_run_is_branched_at_it(runtime: Runtime) -> None:
    correction = correct(runtime, "last", 0, changes={"expression": "3 + 3"}, reviewer="ann", reason="typo")
    assert runtime.store.feedback.corrections("run") == (correction,)
    assert correction_statuses(runtime.store)[correction.id].is_trained
    branch = runtime.resume("run")
    assert (branch.outcome, branch.answer) == (Outcome.ANSWERED, "Six.")
    assert branch.steps[0].call == correction.call


def test_a_correction_with_a_kind_gets_it_and_arbitrate_changes_it(runtime: Runtime) -> None:
    correction = correct(runtime, "run", 1, answer="It is 4.", kind="fact", reviewer="ann", reason="ask jo@x.example")
    status = correction_statuses(runtime.store)[correction.id]
    assert (status.kind, status.reviewer, status.reason) == ("fact", "ann", "ask <email_2>")
    arbitrate(runtime, correction.id[:8], "habit", reviewer="bob")
    assert correction_statuses(runtime.store)[correction.id].kind == "habit"


def test_a_correction_with_an_unknown_kind_is_not_stored(runtime: Runtime) -> None:
    with pytest.raises(FeedbackError, match="found 'opinion'"):
        correct(runtime, "run", 1, answer="It is 4.", kind="opinion", reviewer="ann")
    assert runtime.store.feedback.corrections() == ()


def test_a_rating_is_stored_and_a_missing_run_is_named(runtime: Runtime) -> None:
    rating = rate(runtime, "last", "down", reviewer="ann", reason="wrong")
    assert runtime.store.feedback.ratings("run") == (rating,)
    with pytest.raises(StoreError, match="no run 'other'"):
        rate(runtime, "other", "up", reviewer="ann")
