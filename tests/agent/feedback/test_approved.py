"""What people stand behind is read the same everywhere, and of what was said of a correction the right word counts."""

from __future__ import annotations

import pytest

from agent.errors import FeedbackError
from agent.feedback.approved import judged_runs, origin, rulings
from agent.feedback.validation import make_arbitration
from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Branch, Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store

AT = "2026-01-01T00:00:00Z"


def begin(store: Store, run: str, *tools: str, branch: Branch | None = None, corrected: int | None = None) -> None:
    steps = tuple(
        Step(ToolCall(tool, {}) if tool else None, author="correction" if index == corrected else "model")
        for index, tool in enumerate(tools)
    )
    store.begin(
        Trajectory(run, Task("t", "Do it."), Provenance(), AT, steps, Outcome.ANSWERED, None, AT, branch=branch)
    )


def correct(store: Store, run: str, step: int, tool: str, number: int = 1) -> str:
    id = f"{run}-{step}-{number}"
    store.correct(Correction(id, run, step, ToolCall(tool, {}), "", (), "ann", "", AT))
    return id


def rule(store: Store, correction: str, kind: Kind, superseded_by: str | None = None) -> None:
    run, count = store.correction(correction).run, len(store.arbitrations())
    store.arbitrate(Arbitration(f"a{count}", run, correction, kind, "rule", "", "why", AT, superseded_by))


def review(store: Store, correction: str, kind: Kind) -> None:
    found, count = store.correction(correction), len(store.arbitrations())
    store.arbitrate(
        make_arbitration(found, kind, scrubber=None, reviewer="bob", reason="I know", id=f"a{count}", at=AT)
    )


def test_people_stand_behind_corrections_and_the_readable_steps_of_accepted_runs(store: Store) -> None:
    begin(store, "accepted", "look", "", "wrong", "answer")
    begin(store, "corrected", "look", "wrong", "answer")
    begin(store, "recanted", "look")
    begin(store, "unseen", "look")
    for number, (run, verdict) in enumerate((("accepted", "up"), ("recanted", "up"), ("recanted", "down"))):
        store.rate(Rating(f"r{number}", run, "up" if verdict == "up" else "down", "ann", "", AT))
    correct(store, "accepted", 2, "worse")
    correct(store, "accepted", 2, "right", 2)
    correct(store, "corrected", 1, "right")
    backed = {
        one.trajectory.id: {index: step.call.name for index, step in one.backed().items() if step.call}
        for one in judged_runs(store)
    }
    assert backed == {
        "accepted": {0: "look", 2: "right", 3: "answer"},
        "corrected": {1: "right"},
        "recanted": {},
    }
    named = list(judged_runs(store, ["corrected", "unseen"]))
    assert [list(one.backed()) for one in named] == [[1], []]
    assert [one.accepted for one in judged_runs(store)] == [True, False, False]


def test_a_correction_that_nobody_ruled_on_is_a_habit(store: Store) -> None:
    begin(store, "a", "look")
    id = correct(store, "a", 0, "right")
    ruling = rulings(store)[id]
    assert (ruling.kind, ruling.by, ruling.is_trained, ruling.is_recalled) == ("habit", "", True, True)


def test_a_reviewer_goes_before_the_rule_and_the_newest_word_of_each_counts(store: Store) -> None:
    begin(store, "a", "look")
    id = correct(store, "a", 0, "right")
    rule(store, id, "fact")
    rule(store, id, "exception")
    assert (rulings(store)[id].kind, rulings(store)[id].by) == ("exception", "rule")
    assert (rulings(store)[id].is_trained, rulings(store)[id].is_recalled) == (False, True)
    review(store, id, "habit")
    rule(store, id, "fact")
    ruling = rulings(store)[id]
    assert (ruling.kind, ruling.by, ruling.reason, ruling.is_reviewers) == ("habit", "bob", "I know", True)
    review(store, id, "fact")
    ruling = rulings(store)[id]
    assert (ruling.kind, ruling.is_trained, ruling.is_recalled) == ("fact", False, False)
    assert ruling.why_held_back == "fact, says bob: I know"
    assert [one.kind for one in store.arbitrations()] == ["fact", "exception", "habit", "fact", "fact"]


def test_an_older_correction_of_the_same_step_is_superseded(store: Store) -> None:
    begin(store, "a", "look")
    older, newer = correct(store, "a", 0, "one"), correct(store, "a", 0, "two", 2)
    ruled = rulings(store)
    assert (ruled[older].superseded_by, ruled[newer].superseded_by) == (newer, None)
    assert ruled[older].why_held_back == f"superseded by {newer}"
    assert not ruled[older].is_recalled


def test_a_reviewers_exception_is_not_superseded_and_supersedes_nothing(store: Store) -> None:
    for run in "ab":
        begin(store, run, "look")
    older, newer = correct(store, "a", 0, "one"), correct(store, "b", 0, "two")
    rule(store, older, "habit", superseded_by=newer)
    assert rulings(store)[older].superseded_by == newer
    review(store, newer, "exception")
    assert rulings(store)[older].superseded_by is None
    review(store, newer, "habit")
    review(store, older, "exception")
    assert rulings(store)[older].superseded_by is None


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
    branch = store.get("c")
    assert [origin(store, branch, index) for index in range(3)] == [first, second, None]


def test_a_correction_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    begin(store, "a", "look", "look")
    id = correct(store, "a", 0, "right")
    assert store.correction("a-0").id == id
    correct(store, "a", 1, "right")
    with pytest.raises(FeedbackError, match="begins several corrections"):
        store.correction("a-")
    for name in ("", "b"):
        with pytest.raises(FeedbackError, match="`ratchet corrections` lists"):
            store.correction(name)


def test_where_a_correction_belongs_is_one_of_three(store: Store) -> None:
    begin(store, "a", "look")
    found = store.correction(correct(store, "a", 0, "right"))
    with pytest.raises(FeedbackError, match="a fact, a habit or an exception, found 'opinion'"):
        make_arbitration(found, "opinion", scrubber=None, reviewer="bob", id="x", at=AT)
    with pytest.raises(FeedbackError, match="needs the name"):
        make_arbitration(found, "fact", scrubber=None, reviewer=" ", id="x", at=AT)
    with pytest.raises(FeedbackError, match="no run 'z'"):
        store.arbitrate(Arbitration("x", "z", "c", "fact", "rule", "", "", AT))
