"""What people accepted or corrected is recalled for tasks like it, at once; what they did not is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.encoders.encoder import HashEncoder
from agent.feedback.recall import Recall, cut_to_tokens
from agent.llm.prompt.render import first_call_text
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Branch, Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store
from agent.storage.tables import Forgetting
from agent.text.normalise import MAX_TEXT, normalise_task

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "ratchet.db") as opened:
        yield opened


def recall_of(store: Store) -> Recall:
    return Recall(store, HashEncoder)


def done(store: Store, run: str, text: str, *tools: str, task: str | None = None) -> None:
    """A run that ended, its first step with a plan."""
    store.begin(Trajectory(run, Task(task or f"t-{run}", text), Provenance(), NOW))
    for index, tool in enumerate(tools):
        step = Step(ToolCall(tool, {}), plan=(f"use {tool}",) if index == 0 else ())
        store.intend(run, index, step)
        store.add_step(run, index, step)
    store.end(run, Outcome.ANSWERED, NOW)


def accepted(store: Store, run: str, text: str, call: ToolCall) -> None:
    """A run of one step, without a plan, that a reviewer accepted."""
    store.begin(Trajectory(run, Task(f"t-{run}", text), Provenance(), NOW))
    store.intend(run, 0, Step(call))
    store.add_step(run, 0, Step(call))
    store.end(run, Outcome.ANSWERED, NOW)
    rate(store, run, "up")


def rate(store: Store, run: str, verdict: str, id: str | None = None) -> None:
    store.feedback.add_rating(
        Rating(id or f"r-{run}-{verdict}", run, "up" if verdict == "up" else "down", "ann", "", NOW)
    )


def correct(store: Store, run: str, step: int, tool: str) -> None:
    call = ToolCall(tool, {})
    store.feedback.add_correction(
        Correction(f"c-{run}-{step}-{tool}", run, step, call, "so", (f"do {tool}",), "ann", "", NOW)
    )


def test_an_accepted_run_is_recalled_with_its_first_step(store: Store) -> None:
    done(store, "a", "where is parcel 12345", "track", "answer")
    rate(store, "a", "up")
    assert recall_of(store).search("where is parcel 777", 3) == (
        Recalled("where is parcel #", "track", ("use track",), "a"),
    )


def test_a_corrected_first_step_is_recalled_as_corrected(store: Store) -> None:
    done(store, "a", "where is parcel 12345", "cancel")
    correct(store, "a", 0, "track")
    assert recall_of(store).search("where is parcel 777", 3) == (
        Recalled("where is parcel #", "track", ("do track",), "a"),
    )


def test_what_nobody_approved_is_not_recalled(store: Store) -> None:
    done(store, "unseen", "where is parcel 1", "track")
    done(store, "down", "where is parcel 2", "track")
    rate(store, "down", "down")
    done(store, "later", "where is parcel 3", "track", "answer")
    correct(store, "later", 1, "hand_over")
    done(store, "recanted", "where is parcel 4", "track")
    rate(store, "recanted", "up")
    rate(store, "recanted", "down")
    assert recall_of(store).search("where is parcel 5", 5) == ()


def test_feedback_counts_from_the_next_search_on(store: Store) -> None:
    recall = recall_of(store)
    done(store, "a", "where is my parcel", "track")
    assert (recall.search("where is my parcel", 1), recall.version) == ((), 0)
    rate(store, "a", "up")
    assert [one.tool for one in recall.search("where is my parcel", 1)] == ["track"]
    correct(store, "a", 0, "hand_over")
    assert [one.tool for one in recall.search("where is my parcel", 1)] == ["hand_over"]
    assert recall.version == 2


def test_a_forgotten_run_is_not_recalled_any_more_in_an_open_process(store: Store) -> None:
    recall = recall_of(store)
    for run, text in (("a", "where is my parcel"), ("b", "where is my parcel now")):
        done(store, run, text, run)
        rate(store, run, "up")
    assert [one.tool for one in recall.search("where is my parcel", 2)] == ["b", "a"]
    version = recall.version
    with Store(store.path) as elsewhere:
        elsewhere.forget(Forgetting(NOW, ("a",), 0, {}))
    assert recall.version != version
    assert [one.tool for one in recall.search("where is my parcel", 2)] == ["b"]
    done(store, "c", "where is my parcel", "c")
    rate(store, "c", "up")
    assert [one.tool for one in recall.search("where is my parcel", 2)] == ["b", "c"]
    with Store(store.path) as elsewhere:
        elsewhere.forget(Forgetting(NOW, ("b", "c"), 0, {}))
    assert recall.search("where is my parcel", 2) == ()


def test_the_likeliest_comes_last_and_no_more_come_than_were_asked_for(store: Store) -> None:
    for run, text in (("far", "cancel order"), ("near", "where is my parcel now"), ("nearer", "where is my parcel")):
        done(store, run, text, run)
        rate(store, run, "up")
    recall = recall_of(store)
    assert [one.tool for one in recall.search("where is my parcel", 3)] == ["far", "near", "nearer"]
    assert [one.tool for one in recall.search("where is my parcel", 1)] == ["nearer"]


def test_what_most_tasks_like_it_began_with_goes_before_the_single_nearest(store: Store) -> None:
    texts = ["is the blue lamp here", "is the red lamp here", "is the green lamp here", "send the old lamp back"]
    for number, text in enumerate(texts):
        done(store, f"r{number}", text, "return" if "back" in text else "stock")
        rate(store, f"r{number}", "up")
    found = recall_of(store).search("is the old lamp here", 2)
    assert [(one.tool, one.text) for one in found] == [("return", texts[3]), ("stock", found[1].text)]


def test_a_task_does_not_recall_itself_nor_its_own_wording_when_asked_so(store: Store) -> None:
    done(store, "a", "where is parcel 111", "track", task="one")
    done(store, "b", "where is parcel 222", "track", task="two")
    done(store, "c", "where is the parcel of mine", "look", task="three")
    for run in "abc":
        rate(store, run, "up")
    recall = recall_of(store)
    assert [one.tool for one in recall.search("where is parcel 111", 3, leave_out="one")] == ["look", "track"]
    found = recall.search("where is parcel 111", 3, leave_out="one", same_wording=False)
    assert [one.tool for one in found] == ["look"]


def test_the_same_beginning_is_shown_once(store: Store) -> None:
    for number in range(4):
        done(store, f"r{number}", f"where is parcel {number}00", "track")
        rate(store, f"r{number}", "up")
    assert len(recall_of(store).search("where is parcel 999", 3)) == 1


def test_what_a_call_chose_makes_it_another_beginning_and_is_told(store: Store) -> None:
    desks = {"desk": {"enum": ["lost_card", "cash"]}, "note": {"type": "string"}}
    tools = [ToolSpec("route", "Route.", {"type": "object", "properties": desks})]
    for number in range(12):
        text = f"my card is {'lost' if number % 2 else 'empty'} {'very ' * number}"
        call = ToolCall("route", {"desk": "lost_card" if number % 2 else "cash", "note": f"n{number}"})
        accepted(store, f"r{number}", text, call)
    recall = recall_of(store)
    assert [one.choices for one in recall.search("my card is lost", 3)] == [()]
    other, likeliest = recall.search("my card is lost", 3, tools=tools)
    assert (likeliest.choices, other.choices) == ((("desk", "lost_card"),), (("desk", "cash"),))
    assert 1 > likeliest.share > 0.5 > other.share
    assert first_call_text(likeliest) == 'route desk="lost_card"'


def test_nothing_is_left_to_choices_unseen_where_each_has_been_taken(store: Store) -> None:
    desks = [f"desk_{letter}" for letter in "abcdefghijkl"]
    for number, desk in enumerate(desks):
        accepted(store, f"r{number}", f"to {desk} {'please ' * number}", ToolCall("route", {"desk": desk}))
    recall = recall_of(store)

    def kept(names: list[str]) -> float:
        schema = {"type": "object", "properties": {"desk": {"enum": names}}}
        return sum(one.share for one in recall.search("to desk_c", 12, tools=[ToolSpec("route", "Route.", schema)]))

    assert kept([*desks, "desk_m"]) < 0.1
    assert kept(desks) > 0.5


def test_without_feedback_the_encoder_is_not_asked_for(store: Store) -> None:
    def refuse() -> HashEncoder:
        raise AssertionError("nothing to compare")

    done(store, "a", "where is it", "track")
    assert Recall(store, refuse).search("where is it", 3) == ()


def test_a_text_is_shown_in_one_line_without_numbers_and_cut() -> None:
    assert normalise_task("order 12345,\n\n 2 pieces") == "order #, 2 pieces"
    assert len(normalise_task("word " * 100)) == MAX_TEXT


# -- kinds of corrections --------------------------------------------------------------------------------------


def set_kind(store: Store, correction: str, kind: Kind) -> None:
    run, id = store.feedback.correction(correction).run, f"a-{correction}-{store.feedback.version()}"
    store.feedback.add_arbitration(Arbitration(id, run, correction, kind, "reviewer", "ann", "", NOW))


def test_exceptions_and_habits_are_recalled_and_facts_are_not(store: Store) -> None:
    recall = recall_of(store)
    kinds: tuple[Kind, ...] = ("habit", "exception", "fact")
    for kind in kinds:
        run: str = kind
        done(store, run, f"where is the {run} parcel", "cancel")
        correct(store, run, 0, run)
        assert run in [one.tool for one in recall.search("where is the parcel", 5)]
        set_kind(store, f"c-{run}-0-{run}", kind)
    assert {one.tool for one in recall.search("where is the parcel", 5)} == {"habit", "exception"}


def test_a_branch_that_makes_a_fact_its_step_is_not_recalled_either(store: Store) -> None:
    done(store, "a", "where is my parcel", "cancel")
    correct(store, "a", 0, "track")
    step = Step(ToolCall("track", {}), plan=("do track",), author="correction")
    branch = Trajectory("b", Task("t-a", "where is my parcel"), Provenance(), NOW, (step,), branch=Branch("a", 0))
    store.begin(branch)
    store.end("b", Outcome.ANSWERED, NOW)
    rate(store, "b", "up")
    recall = recall_of(store)
    assert [one.tool for one in recall.search("where is it", 3)] == ["track"]
    set_kind(store, "c-a-0-track", "fact")
    assert recall.search("where is it", 3) == ()


def test_of_a_corrected_first_step_only_a_plan_that_was_given_is_recalled(store: Store) -> None:
    done(store, "a", "where is my parcel", "cancel")
    step = Step(ToolCall("track", {}), plan=("use cancel",), author="correction")
    copied = Correction("c", "a", 0, ToolCall("track", {}), "", step.plan, "ann", "", NOW)
    store.feedback.add_correction(copied)
    # As an older version took it up: with the plan of the step as it was.
    store.begin(Trajectory("b", Task("t-b", "where is it"), Provenance(), NOW, (step,), branch=Branch("a", 0)))
    store.end("b", Outcome.ANSWERED, NOW)
    rate(store, "b", "up")
    found = recall_of(store).search("where is my parcel", 5)
    assert {(one.tool, one.plan) for one in found} == {("track", ())}
    assert first_call_text(found[0]) == "track"
    store.feedback.add_correction(replace(copied, id="d", plan=("follow it",), only_given=True))
    assert [one.plan for one in recall_of(store).search("where is my parcel", 5) if one.run == "a"] == [("follow it",)]


def test_a_correction_that_a_newer_one_of_the_same_request_supersedes_is_not_recalled(store: Store) -> None:
    recall = recall_of(store)
    for run, tool in (("old", "cancel"), ("new", "refund")):
        done(store, run, "my parcel is broken", "look")
        correct(store, run, 0, tool)
    assert [one.run for one in recall.search("my parcel is broken", 5)] == ["new"]
    set_kind(store, "c-new-0-refund", "exception")
    assert {one.run for one in recall.search("my parcel is broken", 5)} == {"new", "old"}


def test_what_was_recalled_is_capped_and_the_likeliest_is_kept() -> None:
    found = [Recalled("word " * 8 + str(number), "look", run=f"r{number}") for number in range(4)]
    asked: list[str] = []

    def words(text: str) -> int:
        asked.append(text)
        return len(text.split())

    assert cut_to_tokens(found, 1000, lambda: words) == tuple(found)
    assert asked == []
    assert [one.run for one in cut_to_tokens(found, 22, lambda: words)] == ["r2", "r3"]
    assert [one.run for one in cut_to_tokens(found, 21, lambda: words)] == ["r3"]
    assert cut_to_tokens(found, 10, lambda: words) == ()
