"""Only approved steps of runs become training targets."""

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


def run(identifier: str, *steps: Step, text: str = "") -> Trajectory:
    provenance = Provenance("small", "r1", tools={"look": "v1", "answer": "v1"})
    task = Task(f"task-{identifier}", text or f"Do {identifier}.")
    return Trajectory(identifier, task, provenance, AT, steps, Outcome.ANSWERED, None, AT)


def rating(run_id: str, verdict: Literal["up", "down"], number: int = 1, reviewer: str = "ann") -> Rating:
    return Rating(f"{run_id}-r{number}", run_id, verdict, reviewer, "", AT)


def correction(run_id: str, index: int, tool: str, number: int = 1, reviewer: str = "bob") -> Correction:
    return Correction(f"{run_id}-c{index}-{number}", run_id, index, ToolCall(tool, {}), "Better.", (), reviewer, "", AT)


def save(store: Store, trajectory: Trajectory) -> Trajectory:
    store.begin(trajectory)
    return trajectory


def targets_of(curated: Curated) -> list[tuple[str, str, list[tuple[int, str]]]]:
    return [
        (row.run, row.kind, [(index, step.call.name if step.call else "") for index, step in row.targets.items()])
        for row in curated.rows
    ]


def test_every_step_of_a_run_rated_up_is_a_target(store: Store) -> None:
    first = save(store, run("a", step("look"), step("answer")))
    store.feedback.add_rating(rating("a", "down"))
    store.feedback.add_rating(rating("a", "up", 2))
    made = curate(store)
    assert targets_of(made) == [("a", "accepted", [(0, "look"), (1, "answer")])]
    assert made.rows[0].trajectory == first
    assert made.rows[0].targets[0].token_ids == (1, 2)
    assert (made.accepted, made.corrections, dict(made.left_out)) == (1, 0, {})
    assert tools_of(made.rows) == {"look", "answer"}


def test_a_run_without_feedback_or_with_only_a_thumb_down_is_not_trained(store: Store) -> None:
    save(store, run("a", step("look")))
    save(store, run("b", step("look")))
    store.feedback.add_rating(rating("b", "up"))
    store.feedback.add_rating(rating("b", "down", 2))
    made = curate(store)
    assert made.rows == ()
    assert made.left_out == {"b": "rated down and not corrected"}


def test_each_corrected_step_is_a_row_in_its_own_context_and_the_newest_correction_counts(store: Store) -> None:
    save(store, run("a", step("look"), step("wrong"), step("answer")))
    store.feedback.add_rating(rating("a", "down"))
    store.feedback.add_correction(correction("a", 1, "worse"))
    store.feedback.add_correction(correction("a", 2, "hand_over"))
    store.feedback.add_correction(correction("a", 1, "look", 2))
    made = curate(store)
    assert targets_of(made) == [("a", "corrected", [(1, "look")]), ("a", "corrected", [(2, "hand_over")])]
    assert [len(row.trajectory.steps) for row in made.rows] == [2, 3]
    target = made.rows[0].targets[1]
    assert (target.author, target.thought, target.token_ids) == ("correction", "Better.", ())
    assert made.corrections == 2
    assert made.rows[0].reviewers == ("bob",)


def test_a_correction_of_an_accepted_run_ends_it_there(store: Store) -> None:
    save(store, run("a", step("look"), step("wrong"), step("answer")))
    store.feedback.add_rating(rating("a", "up"))
    store.feedback.add_correction(correction("a", 1, "look"))
    made = curate(store)
    assert targets_of(made) == [("a", "accepted", [(0, "look"), (1, "look")])]
    assert made.rows[0].targets[1].author == "correction"
    assert len(made.rows[0].trajectory.steps) == 2
    assert made.rows[0].reviewers == ("ann", "bob")


def test_a_step_that_could_not_be_read_is_no_target(store: Store) -> None:
    unread = Step(None, said="{", error="not JSON")
    save(store, run("a", unread, step("answer")))
    save(store, run("b", unread))
    for name in "ab":
        store.feedback.add_rating(rating(name, "up"))
    made = curate(store)
    assert targets_of(made) == [("a", "accepted", [(1, "answer")])]
    assert made.left_out == {"b": "rated up, and no step of it can be read or was given whole"}


def test_rows_come_in_the_order_in_which_the_runs_began(store: Store) -> None:
    for name in ("b", "c", "a"):
        save(store, run(name, step("answer")))
        store.feedback.add_rating(rating(name, "up"))
    assert [row.run for row in curate(store).rows] == ["b", "c", "a"]


# -- corrections that are not trained --------------------------------------------------------------------------


def set_kind(store: Store, correction_id: str, kind: Kind) -> None:
    id = f"a{len(store.feedback.arbitrations())}"
    of = store.feedback.correction(correction_id).run
    store.feedback.add_arbitration(Arbitration(id, of, correction_id, kind, "reviewer", "ann", "because", AT))


def test_knowledge_gaps_exceptions_and_superseded_corrections_are_left_out_with_the_reason(store: Store) -> None:
    for name in ("fact", "exception", "old", "new"):
        save(store, run(name, step("look"), text="Do it." if name in ("old", "new") else ""))
        store.feedback.add_correction(correction(name, 0, f"say_{name}"))
    set_kind(store, "fact-c0-1", "fact")
    set_kind(store, "exception-c0-1", "exception")
    made = curate(store)
    assert targets_of(made) == [("new", "corrected", [(0, "say_new")])]
    assert made.held_back == {
        "fact-c0-1": "fact, says ann: because",
        "exception-c0-1": "exception, says ann: because",
        "old-c0-1": "superseded by new-c0-1",
    }
    assert made.held_back_kinds == {"fact": 1, "exception": 1, "superseded": 1}
    assert made.left_out == {name: made.held_back[f"{name}-c0-1"] for name in ("fact", "exception", "old")}
    assert made.corrections == 4
    set_kind(store, "fact-c0-1", "habit")
    assert [row.run for row in curate(store).rows] == ["fact", "new"]


def test_an_accepted_branch_does_not_train_the_exception_that_it_began_with(store: Store) -> None:
    save(store, run("a", step("look"), step("wrong")))
    store.feedback.add_correction(correction("a", 1, "rare"))
    shared = replace(step("rare"), author="correction", token_ids=())
    branch = replace(run("b", step("look"), shared, step("answer")), branch=Branch("a", 1))
    save(store, branch)
    store.feedback.add_rating(rating("b", "up"))
    assert targets_of(curate(store))[1] == ("b", "accepted", [(0, "look"), (1, "rare"), (2, "answer")])
    set_kind(store, "a-c1-1", "exception")
    made = curate(store)
    assert targets_of(made) == [("b", "accepted", [(0, "look"), (2, "answer")])]
    assert made.left_out == {"a": "exception, says ann: because"}


# -- parts that the reviewer did not give --------------------------------------------------------------------


def given(run_id: str, index: int, tool: str, **parts: Any) -> Correction:
    """A correction that holds only what is given here."""
    return replace(correction(run_id, index, tool), **{"thought": "", "only_given": True, **parts})


def test_a_thought_that_is_not_given_is_context_of_the_corrected_step(store: Store) -> None:
    save(store, run("a", step("wrong"), step("answer")))
    store.feedback.add_correction(given("a", 0, "look"))
    (row,) = curate(store).rows
    assert row.targets[0] == Step(
        ToolCall("look", {}), thought="Call wrong.", author="correction", context_parts=("thought",)
    )
    store.feedback.add_rating(rating("a", "up"))
    (row,) = curate(store).rows
    assert (row.kind, row.targets[0].context_parts) == ("accepted", ("thought",))


def test_text_that_an_older_version_copied_into_a_correction_is_no_target(store: Store) -> None:
    planned = replace(step("wrong"), plan=(",", "thought"))
    save(store, run("a", planned, step("answer")))
    store.feedback.add_correction(replace(correction("a", 0, "look"), plan=planned.plan))
    (row,) = curate(store).rows
    assert (row.targets[0].thought, row.targets[0].context_parts) == ("Better.", ("plan",))
    store.feedback.add_correction(replace(correction("a", 0, "look", 2), thought=planned.thought, plan=planned.plan))
    (row,) = curate(store).rows
    assert row.targets[0].context_parts == ("plan", "thought")


@pytest.mark.parametrize("older", [False, True])
def test_an_accepted_branch_leaves_a_call_without_its_thought_to_the_run_that_was_corrected(
    store: Store, older: bool
) -> None:
    save(store, run("a", step("look"), step("wrong")))
    copied = "Call wrong." if older else ""
    store.feedback.add_correction(given("a", 1, "right", thought=copied, only_given=not older))
    shared = Step(ToolCall("right", {}), "ok", thought=copied, author="correction")
    branch = replace(run("b", step("look"), shared, step("answer")), branch=Branch("a", 1))
    save(store, branch)
    store.feedback.add_rating(rating("b", "up"))
    made = curate(store)
    assert targets_of(made) == [("a", "corrected", [(1, "right")]), ("b", "accepted", [(0, "look"), (2, "answer")])]
    assert made.rows[0].targets[1].context_parts == ("thought",)
    assert made.rows[1].trajectory == branch, "later steps are trained after the context they were served with"


def test_a_branch_with_only_such_a_call_gives_no_row_and_a_reason(store: Store) -> None:
    save(store, run("a", step("wrong")))
    store.feedback.add_correction(given("a", 0, "answer"))
    shared = Step(ToolCall("answer", {}), "ok", author="correction")
    save(store, replace(run("b", shared), branch=Branch("a", 0)))
    store.feedback.add_rating(rating("b", "up"))
    made = curate(store)
    assert targets_of(made) == [("a", "corrected", [(0, "answer")])]
    assert made.left_out == {"b": "its corrected step is trained in the run that was corrected"}


def test_an_accepted_run_without_trained_steps_gives_a_reason(store: Store) -> None:
    save(store, run("a", step("wrong")))
    store.feedback.add_correction(correction("a", 0, "rare"))
    set_kind(store, "a-c0-1", "exception")
    store.feedback.add_rating(rating("a", "up"))
    made = curate(store)
    assert (made.rows, made.left_out) == ((), {"a": "exception, says ann: because"})
