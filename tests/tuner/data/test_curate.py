"""Which steps of which runs are learnt from: those people stand behind, and none else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Branch, Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store
from tuner.data.curate import Curated, curate, tools_of

AT = "2026-01-01T00:00:00Z"


def step(tool: str, observation: str = "ok") -> Step:
    return Step(ToolCall(tool, {}), observation, thought=f"Call {tool}.", token_ids=(1, 2))


def run(identifier: str, *steps: Step) -> Trajectory:
    made_by = Provenance("small", "r1", tools={"look": "v1", "answer": "v1"})
    return Trajectory(identifier, Task(f"task-{identifier}", "Do it."), made_by, AT, steps, Outcome.ANSWERED, None, AT)


def rating(run_id: str, verdict: Literal["up", "down"], number: int = 1, reviewer: str = "ann") -> Rating:
    return Rating(f"{run_id}-r{number}", run_id, verdict, reviewer, "", AT)


def correction(run_id: str, index: int, tool: str, number: int = 1, reviewer: str = "bob") -> Correction:
    return Correction(f"{run_id}-c{index}-{number}", run_id, index, ToolCall(tool, {}), "Better.", (), reviewer, "", AT)


def kept(store: Store, trajectory: Trajectory) -> Trajectory:
    store.begin(trajectory)
    return trajectory


def said(made: Curated) -> list[tuple[str, str, list[tuple[int, str]]]]:
    return [
        (row.run, row.kind, [(index, one.call.name if one.call else "") for index, one in row.targets.items()])
        for row in made.rows
    ]


def test_every_step_of_a_run_rated_up_is_a_target(store: Store) -> None:
    first = kept(store, run("a", step("look"), step("answer")))
    store.rate(rating("a", "down"))
    store.rate(rating("a", "up", 2))
    made = curate(store)
    assert said(made) == [("a", "accepted", [(0, "look"), (1, "answer")])]
    assert made.rows[0].trajectory == first
    assert made.rows[0].targets[0].token_ids == (1, 2)
    assert (made.accepted, made.corrections, dict(made.left_out)) == (1, 0, {})
    assert tools_of(made.rows) == {"look", "answer"}


def test_a_run_that_nobody_looked_at_or_that_was_only_rated_down_teaches_nothing(store: Store) -> None:
    kept(store, run("a", step("look")))
    kept(store, run("b", step("look")))
    store.rate(rating("b", "up"))
    store.rate(rating("b", "down", 2))
    made = curate(store)
    assert made.rows == ()
    assert made.left_out == {"b": "rated down and not corrected"}


def test_each_corrected_step_is_a_row_in_its_own_context_and_the_newest_correction_counts(store: Store) -> None:
    kept(store, run("a", step("look"), step("wrong"), step("answer")))
    store.rate(rating("a", "down"))
    store.correct(correction("a", 1, "worse"))
    store.correct(correction("a", 2, "hand_over"))
    store.correct(correction("a", 1, "look", 2))
    made = curate(store)
    assert said(made) == [("a", "corrected", [(1, "look")]), ("a", "corrected", [(2, "hand_over")])]
    assert [len(row.trajectory.steps) for row in made.rows] == [2, 3]
    target = made.rows[0].targets[1]
    assert (target.author, target.thought, target.token_ids) == ("correction", "Better.", ())
    assert made.corrections == 2
    assert made.rows[0].reviewers == ("bob",)


def test_a_correction_of_an_accepted_run_ends_it_there(store: Store) -> None:
    kept(store, run("a", step("look"), step("wrong"), step("answer")))
    store.rate(rating("a", "up"))
    store.correct(correction("a", 1, "look"))
    made = curate(store)
    assert said(made) == [("a", "accepted", [(0, "look"), (1, "look")])]
    assert made.rows[0].targets[1].author == "correction"
    assert len(made.rows[0].trajectory.steps) == 2
    assert made.rows[0].reviewers == ("ann", "bob")


def test_a_step_that_could_not_be_read_is_no_target(store: Store) -> None:
    unread = Step(None, said="{", error="not JSON")
    kept(store, run("a", unread, step("answer")))
    kept(store, run("b", unread))
    for name in "ab":
        store.rate(rating(name, "up"))
    made = curate(store)
    assert said(made) == [("a", "accepted", [(1, "answer")])]
    assert made.left_out == {"b": "rated up, and no step of it can be read or was given whole"}


def test_rows_come_in_the_order_the_runs_were_made(store: Store) -> None:
    for name in ("b", "c", "a"):
        kept(store, run(name, step("answer")))
        store.rate(rating(name, "up"))
    assert [row.run for row in curate(store).rows] == ["b", "c", "a"]


# -- what is not for the weights -----------------------------------------------------------------------------


def belongs(store: Store, correction_id: str, kind: Kind, superseded_by: str | None = None) -> None:
    id = f"a{len(store.arbitrations())}"
    of = store.correction(correction_id).run
    store.arbitrate(Arbitration(id, of, correction_id, kind, "rule", "", "because", AT, superseded_by))


def test_facts_exceptions_and_what_was_taken_back_are_left_out_with_the_reason(store: Store) -> None:
    for name in ("fact", "exception", "old", "new"):
        kept(store, run(name, step("look")))
        store.correct(correction(name, 0, f"say_{name}"))
    belongs(store, "fact-c0-1", "fact")
    belongs(store, "exception-c0-1", "exception")
    belongs(store, "old-c0-1", "habit", superseded_by="new-c0-1")
    belongs(store, "new-c0-1", "habit")
    made = curate(store)
    assert said(made) == [("new", "corrected", [(0, "say_new")])]
    assert made.held_back == {
        "fact-c0-1": "fact, says rule: because",
        "exception-c0-1": "exception, says rule: because",
        "old-c0-1": "superseded by new-c0-1",
    }
    assert made.held_back_kinds == {"fact": 1, "exception": 1, "superseded": 1}
    assert made.left_out == {name: made.held_back[f"{name}-c0-1"] for name in ("fact", "exception", "old")}
    assert made.corrections == 4
    belongs(store, "fact-c0-1", "habit")
    assert [row.run for row in curate(store).rows] == ["fact", "new"]


def test_an_accepted_branch_does_not_teach_the_exception_it_was_taken_up_from(store: Store) -> None:
    kept(store, run("a", step("look"), step("wrong")))
    store.correct(correction("a", 1, "rare"))
    shared = replace(step("rare"), author="correction", token_ids=())
    branch = replace(run("b", step("look"), shared, step("answer")), branch=Branch("a", 1))
    kept(store, branch)
    store.rate(rating("b", "up"))
    assert said(curate(store))[1] == ("b", "accepted", [(0, "look"), (1, "rare"), (2, "answer")])
    belongs(store, "a-c1-1", "exception")
    made = curate(store)
    assert said(made) == [("b", "accepted", [(0, "look"), (2, "answer")])]
    assert made.left_out == {"a": "exception, says rule: because"}


# -- what the reviewer did not give --------------------------------------------------------------------------


def given(run_id: str, index: int, tool: str, **parts: Any) -> Correction:
    """A correction that holds only what is given here."""
    return replace(correction(run_id, index, tool), **{"thought": "", "only_given": True, **parts})


def test_a_thought_that_is_not_given_is_context_of_the_corrected_step(store: Store) -> None:
    kept(store, run("a", step("wrong"), step("answer")))
    store.correct(given("a", 0, "look"))
    (row,) = curate(store).rows
    assert row.targets[0] == Step(
        ToolCall("look", {}), thought="Call wrong.", author="correction", context_parts=("thought",)
    )
    store.rate(rating("a", "up"))
    (row,) = curate(store).rows
    assert (row.kind, row.targets[0].context_parts) == ("accepted", ("thought",))


def test_words_that_an_older_version_copied_into_a_correction_are_no_target(store: Store) -> None:
    planned = replace(step("wrong"), plan=(",", "thought"))
    kept(store, run("a", planned, step("answer")))
    store.correct(replace(correction("a", 0, "look"), plan=planned.plan))
    (row,) = curate(store).rows
    assert (row.targets[0].thought, row.targets[0].context_parts) == ("Better.", ("plan",))
    store.correct(replace(correction("a", 0, "look", 2), thought=planned.thought, plan=planned.plan))
    (row,) = curate(store).rows
    assert row.targets[0].context_parts == ("plan", "thought")


@pytest.mark.parametrize("older", [False, True])
def test_an_accepted_branch_leaves_a_call_without_its_thought_to_the_run_that_was_corrected(
    store: Store, older: bool
) -> None:
    kept(store, run("a", step("look"), step("wrong")))
    copied = "Call wrong." if older else ""
    store.correct(given("a", 1, "right", thought=copied, only_given=not older))
    shared = Step(ToolCall("right", {}), "ok", thought=copied, author="correction")
    branch = replace(run("b", step("look"), shared, step("answer")), branch=Branch("a", 1))
    kept(store, branch)
    store.rate(rating("b", "up"))
    made = curate(store)
    assert said(made) == [("a", "corrected", [(1, "right")]), ("b", "accepted", [(0, "look"), (2, "answer")])]
    assert made.rows[0].targets[1].context_parts == ("thought",)
    assert made.rows[1].trajectory == branch, "what followed is trained behind what it was served with"


def test_a_branch_that_holds_nothing_but_such_a_call_says_why_it_gives_no_row(store: Store) -> None:
    kept(store, run("a", step("wrong")))
    store.correct(given("a", 0, "answer"))
    shared = Step(ToolCall("answer", {}), "ok", author="correction")
    kept(store, replace(run("b", shared), branch=Branch("a", 0)))
    store.rate(rating("b", "up"))
    made = curate(store)
    assert said(made) == [("a", "corrected", [(0, "answer")])]
    assert made.left_out == {"b": "its corrected step is trained in the run that was corrected"}


def test_an_accepted_run_of_which_nothing_is_left_says_why(store: Store) -> None:
    kept(store, run("a", step("wrong")))
    store.correct(correction("a", 0, "rare"))
    belongs(store, "a-c0-1", "exception")
    store.rate(rating("a", "up"))
    made = curate(store)
    assert (made.rows, made.left_out) == ((), {"a": "exception, says rule: because"})
