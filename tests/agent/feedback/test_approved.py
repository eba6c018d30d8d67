"""The approved steps of a run, and which corrections are trained, recalled and superseded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.errors import FeedbackError
from agent.feedback.approved import correction_statuses, reviewed_runs, source_correction
from agent.feedback.validation import make_arbitration
from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Branch, Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store

AT = "2026-01-01T00:00:00Z"


def begin(
    store: Store,
    run: str,
    *tools: str,
    branch: Branch | None = None,
    corrected: int | None = None,
    task: Task | None = None,
) -> None:
    steps = tuple(
        Step(ToolCall(tool, {}) if tool else None, author="correction" if index == corrected else "model")
        for index, tool in enumerate(tools)
    )
    store.begin(
        Trajectory(
            run,
            task or Task(run, f"Do {run}."),
            Provenance(),
            AT,
            steps,
            Outcome.ANSWERED,
            ended_at=AT,
            branch=branch,
        )
    )


def correct(store: Store, run: str, step: int, tool: str, number: int = 1) -> str:
    id = f"{run}-{step}-{number}"
    store.feedback.add_correction(Correction(id, run, step, ToolCall(tool, {}), "", (), "ann", "", AT))
    return id


def add_rule_record(store: Store, correction: str, kind: Kind, superseded_by: str | None = None) -> None:
    """What an earlier version's rule appended."""
    run, count = store.feedback.correction(correction).run, len(store.feedback.arbitrations())
    store.feedback.add_arbitration(
        Arbitration(f"a{count}", run, correction, kind, "rule", "", "why", AT, superseded_by)
    )


def review(store: Store, correction: str, kind: Kind) -> None:
    found, count = store.feedback.correction(correction), len(store.feedback.arbitrations())
    store.feedback.add_arbitration(
        make_arbitration(found, kind, scrubber=None, reviewer="bob", reason="I know", id=f"a{count}", at=AT)
    )


def test_approved_steps_are_corrections_and_the_readable_steps_of_accepted_runs(store: Store) -> None:
    begin(store, "accepted", "look", "", "wrong", "answer")
    begin(store, "corrected", "look", "wrong", "answer")
    begin(store, "recanted", "look")
    begin(store, "unseen", "look")
    for number, (run, verdict) in enumerate((("accepted", "up"), ("recanted", "up"), ("recanted", "down"))):
        store.feedback.add_rating(Rating(f"r{number}", run, "up" if verdict == "up" else "down", "ann", "", AT))
    correct(store, "accepted", 2, "worse")
    correct(store, "accepted", 2, "right", 2)
    correct(store, "corrected", 1, "right")
    approved = {
        one.trajectory.id: {index: step.call.name for index, step in one.approved_steps().items() if step.call}
        for one in reviewed_runs(store)
    }
    assert approved == {
        "accepted": {0: "look", 2: "right", 3: "answer"},
        "corrected": {1: "right"},
        "recanted": {},
    }
    named = list(reviewed_runs(store, ["corrected", "unseen"]))
    assert [list(one.approved_steps()) for one in named] == [[1], []]
    assert [one.is_accepted for one in reviewed_runs(store)] == [True, False, False]


def test_a_correction_without_a_kind_is_a_habit(store: Store) -> None:
    begin(store, "a", "look")
    id = correct(store, "a", 0, "right")
    status = correction_statuses(store)[id]
    assert (status.kind, status.reviewer, status.is_trained, status.is_recalled) == ("habit", "", True, True)


def test_the_newest_kind_counts(store: Store) -> None:
    begin(store, "a", "look")
    id = correct(store, "a", 0, "right")
    review(store, id, "exception")
    status = correction_statuses(store)[id]
    assert (status.kind, status.is_trained, status.is_recalled) == ("exception", False, True)
    review(store, id, "fact")
    status = correction_statuses(store)[id]
    assert (status.kind, status.is_trained, status.is_recalled) == ("fact", False, False)
    assert status.why_not_trained == "fact, says bob: I know"
    review(store, id, "habit")
    status = correction_statuses(store)[id]
    assert (status.kind, status.reviewer, status.reason, status.is_trained) == ("habit", "bob", "I know", True)
    assert [one.kind for one in store.feedback.arbitrations()] == ["exception", "fact", "habit"]


def test_what_a_rule_of_an_earlier_version_decided_is_read_and_ignored(store: Store) -> None:
    for run in "ab":
        begin(store, run, "look")
    older, newer = correct(store, "a", 0, "one"), correct(store, "b", 0, "two")
    add_rule_record(store, older, "fact", superseded_by=newer)
    assert [one.by for one in store.feedback.arbitrations()] == ["rule"]
    status = correction_statuses(store)[older]
    assert (status.kind, status.superseded_by, status.is_trained) == ("habit", None, True)
    review(store, older, "exception")
    add_rule_record(store, older, "fact")
    assert correction_statuses(store)[older].kind == "exception"


def test_an_older_correction_of_the_same_step_is_superseded(store: Store) -> None:
    begin(store, "a", "look")
    older, newer = correct(store, "a", 0, "one"), correct(store, "a", 0, "two", 2)
    statuses = correction_statuses(store)
    assert (statuses[older].superseded_by, statuses[newer].superseded_by) == (newer, None)
    assert statuses[older].why_not_trained == f"superseded by {newer}"
    assert not statuses[older].is_recalled


def test_a_newer_correction_of_the_same_request_supersedes_the_older(store: Store) -> None:
    request = Task("t", "Where is order 4711?", {"customer": "C-1"})
    tasks = {
        "first": request,
        "spaced": replace(request, text="where is  order 4711?"),
        "number": replace(request, text="Where is order 4712?"),
        "context": replace(request, facts={"customer": "C-2"}),
        "newest": request,
    }
    for run, task in tasks.items():
        begin(store, run, "look", "look", task=task)
    ids = {run: correct(store, run, 0, run) for run in tasks}
    later_step = correct(store, "newest", 1, "other")
    superseded = {id: status.superseded_by for id, status in correction_statuses(store).items()}
    assert superseded == {
        ids["first"]: ids["newest"],
        ids["spaced"]: ids["newest"],
        ids["number"]: None,
        ids["context"]: None,
        ids["newest"]: None,
        later_step: None,
    }


def test_equal_corrections_of_the_same_request_do_not_supersede_each_other(store: Store) -> None:
    task = Task("t", "Do it.")
    for run in "abc":
        begin(store, run, "look", task=task)
    oldest, older, newer = (correct(store, run, 0, tool) for run, tool in (("a", "x"), ("b", "y"), ("c", "x")))
    superseded = {id: status.superseded_by for id, status in correction_statuses(store).items()}
    assert superseded == {oldest: None, older: newer, newer: None}


def test_an_exception_is_not_superseded_by_another_run_and_supersedes_none(store: Store) -> None:
    for run in "ab":
        begin(store, run, "look", task=Task("t", "Do it."))
    older, newer = correct(store, "a", 0, "one"), correct(store, "b", 0, "two")
    assert correction_statuses(store)[older].superseded_by == newer
    review(store, newer, "exception")
    assert correction_statuses(store)[older].superseded_by is None
    review(store, newer, "habit")
    review(store, older, "exception")
    assert correction_statuses(store)[older].superseded_by is None


def test_the_step_of_a_branch_of_a_branch_leads_back_to_its_correction(store: Store) -> None:
    begin(store, "a", "wrong", "look")
    first = correct(store, "a", 0, "right")
    begin(store, "b", "right", "wrong", branch=Branch("a", 0), corrected=0)
    second = correct(store, "b", 1, "better")
    store.begin(
        Trajectory(
            "c",
            Task("t", "Do it."),
            Provenance(),
            AT,
            (
                Step(ToolCall("right", {}), author="correction"),
                Step(ToolCall("better", {}), author="correction"),
                Step(ToolCall("answer", {})),
            ),
            Outcome.ANSWERED,
            None,
            AT,
            Branch("b", 1),
        )
    )
    (branch,) = reviewed_runs(store, ["c"])
    assert [source_correction(store, branch, index) for index in range(3)] == [first, second, None]


def test_a_correction_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    begin(store, "a", "look", "look")
    id = correct(store, "a", 0, "right")
    assert store.feedback.correction("a-0").id == id
    correct(store, "a", 1, "right")
    with pytest.raises(FeedbackError, match="begins several corrections"):
        store.feedback.correction("a-")
    for name in ("", "b"):
        with pytest.raises(FeedbackError, match="`ratchet corrections` lists"):
            store.feedback.correction(name)


def test_a_correction_has_one_of_three_kinds(store: Store) -> None:
    begin(store, "a", "look")
    found = store.feedback.correction(correct(store, "a", 0, "right"))
    with pytest.raises(FeedbackError, match="a fact, a habit or an exception, found 'opinion'"):
        make_arbitration(found, "opinion", scrubber=None, reviewer="bob", id="x", at=AT)
    with pytest.raises(FeedbackError, match="needs the name"):
        make_arbitration(found, "fact", scrubber=None, reviewer=" ", id="x", at=AT)
    with pytest.raises(FeedbackError, match="no run 'z'"):
        store.feedback.add_arbitration(Arbitration("x", "z", "c", "fact", "rule", "", "", AT))
