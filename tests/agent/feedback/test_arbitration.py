"""The rule: what the documents lack is a fact, what nearly all others do otherwise an exception, all else a habit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.encoders.encoder import HashEncoder
from agent.feedback.approved import Ruling, rulings
from agent.feedback.arbitration import LEAST_CLOSE, RECURS, by_wording, settle
from agent.feedback.missing_facts import Search
from agent.feedback.validation import make_arbitration
from agent.records.feedback import Correction, Rating
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store
from tools.context import Passage

AT = "2026-01-01T00:00:00Z"
BROKEN = tuple(f"the {colour} lamp {{}} that came today is broken" for colour in ("red", "blue", "green", "white"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "ratchet.db") as opened:
        yield opened


def done(store: Store, run: str, text: str, *steps: Step, facts: dict[str, str] | None = None) -> None:
    task = Task(f"t-{run}", text, facts or {})
    store.begin(Trajectory(run, task, Provenance(), AT, steps, Outcome.ANSWERED, None, AT))


def correct(store: Store, run: str, tool: str, step: int = 0, **arguments: Any) -> str:
    id = f"c-{run}-{len(store.corrections())}"
    store.correct(Correction(id, run, step, ToolCall(tool, arguments), "", (), "ann", "", AT))
    return id


def accepted(store: Store, run: str, text: str, *steps: Step) -> None:
    done(store, run, text, *steps)
    store.rate(Rating(f"r-{run}", run, "up", "ann", "", AT))


def arbitrated(store: Store, search: Search | None = None) -> dict[str, Ruling]:
    ids = (f"a{number}" for number in count(len(store.arbitrations())))
    settle(store, embed=HashEncoder().encode, search=search, new_id=lambda: next(ids), at=AT)
    return rulings(store)


def look(observation: str = "", **arguments: Any) -> Step:
    return Step(ToolCall("look", arguments), observation)


def kinds(ruled: dict[str, Ruling], ids: Sequence[str]) -> list[str]:
    return [ruled[id].kind for id in ids]


# -- facts ---------------------------------------------------------------------------------------------------


def test_an_answer_that_nothing_shown_says_is_a_fact(store: Store) -> None:
    done(store, "a", "How long may I keep it?", look("Thirty days."), Step(ToolCall("answer", {"text": "30 days."})))
    id = correct(store, "a", "answer", 1, text="You may keep it 60 days.", citations=[])
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.by, ruling.is_trained) == ("fact", "rule", False)
    assert ruling.reason == "nothing shown before this step says 60"


def test_an_answer_that_only_says_what_was_shown_is_a_habit(store: Store) -> None:
    done(store, "a", "How long may I keep it?", look("Thirty days."), Step(ToolCall("answer", {"text": "Long."})))
    id = correct(store, "a", "answer", 1, text="You may keep it 30 days.", citations=[])
    assert arbitrated(store)[id].kind == "habit"


def test_a_fact_becomes_a_habit_when_the_documents_hold_it(store: Store) -> None:
    done(store, "a", "How long may I keep it?", Step(ToolCall("answer", {"text": "Long."})))
    id = correct(store, "a", "answer", text="You have 60 days.", citations=[])
    assert arbitrated(store, lambda query: [])[id].kind == "fact"
    passage = Passage(1, "p", "keep.md", "", "You have sixty days.")
    ruling = arbitrated(store, lambda query: [passage])[id]
    assert (ruling.kind, ruling.reason) == ("habit", "what nothing shown before it said, keep.md says now")


def test_what_accepted_answers_say_anyway_is_a_way_of_speaking(store: Store) -> None:
    done(store, "a", "Lend it to me.", look("lent"), Step(ToolCall("answer", {"text": "No."})))
    id = correct(store, "a", "answer", 1, text="Enjoy reading!", citations=[])
    assert arbitrated(store)[id].kind == "fact"
    for run in ("b", "c"):
        accepted(store, run, f"Lend {run} to me.", look("lent"), Step(ToolCall("answer", {"text": "Enjoy reading!"})))
    assert arbitrated(store)[id].kind == "habit"


# -- habits and exceptions -----------------------------------------------------------------------------------


def refunded(store: Store, many: int = LEAST_CLOSE) -> None:
    """Tasks of which people say that a broken lamp is refunded."""
    for number in range(many):
        text = BROKEN[number % 4].format(f"{number + 1}1111")
        accepted(store, f"r{number}", text, Step(ToolCall("refund", {"order": f"{number + 1}1111"})))


def exchanged(store: Store, run: str, text: str = "the old lamp 77777 that came today is broken") -> str:
    done(store, run, text, look())
    return correct(store, run, "exchange", order="77777", size="other")


def test_a_correction_that_nearly_all_tasks_close_to_it_contradict_is_an_exception(store: Store) -> None:
    refunded(store)
    id = exchanged(store, "a")
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.is_trained, ruling.is_recalled) == ("exception", False, True)
    assert ruling.reason == "4 of the 4 judged tasks closest to it were done otherwise: refund(order=…)"


def test_few_close_tasks_make_no_exception(store: Store) -> None:
    refunded(store, LEAST_CLOSE - 1)
    accepted(store, "far", "when do you open on sunday", Step(ToolCall("refund", {"order": "12345"})))
    id = exchanged(store, "a")
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.by) == ("habit", "rule")
    assert "only 3 other judged tasks are close to it" in ruling.reason


def test_tasks_that_are_not_of_one_mind_make_no_exception(store: Store) -> None:
    refunded(store, 3)
    for number, text in enumerate(
        ("the own lamp 1234 that came today is broken", "the new lamp 1234 that came today is broken")
    ):
        accepted(store, f"o{number}", text, Step(ToolCall("hand_over", {"reason": "It is not ours."})))
    id = exchanged(store, "a")
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.reason) == ("habit", "the 5 judged tasks closest to it are not of one mind")


def test_a_correction_that_recurs_is_a_habit_whatever_others_do(store: Store) -> None:
    refunded(store, 8)
    texts = [
        "the old lamp 77777 that came today is broken",
        "the big lamp 77777 that came today is broken",
        "the small lamp 77777 that came today is broken",
    ]
    ids = [exchanged(store, f"a{number}", text) for number, text in enumerate(texts[: RECURS - 1])]
    assert kinds(arbitrated(store), ids) == ["exception", "exception"]
    ids.append(exchanged(store, "a2", texts[2]))
    ruled = arbitrated(store)
    assert kinds(ruled, ids) == ["habit"] * RECURS
    assert ruled[ids[0]].reason == "done so in 3 tasks like it"
    assert len(store.arbitrations()) == 5


def test_what_most_others_do_is_a_habit(store: Store) -> None:
    refunded(store)
    done(store, "a", "the old lamp 77777 that came today is broken", look())
    id = correct(store, "a", "refund", order="77777")
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.reason) == ("habit", "done so in 5 tasks like it")


def test_an_argument_chosen_otherwise_contradicts_and_a_copied_one_does_not(store: Store) -> None:
    for number in range(4):
        arguments = {"order": f"{number + 1}1111", "why": "damaged"}
        accepted(store, f"r{number}", BROKEN[number].format(f"{number + 1}1111"), Step(ToolCall("back", arguments)))
    done(store, "a", "the old lamp 77777 that came today is broken", look())
    done(store, "b", "the odd lamp 88888 that came today is broken", look())
    same = correct(store, "a", "back", order="77777", why="damaged")
    other = correct(store, "b", "back", order="88888", why="unwanted")
    assert kinds(arbitrated(store), [same, other]) == ["habit", "exception"]


def test_a_step_is_held_against_runs_that_were_shown_the_same(store: Store) -> None:
    for number in range(5):
        text, order = BROKEN[number % 4], f"{number + 1}1111"
        steps = look(f"Order {order} is open."), Step(ToolCall("cancel", {"order": order}))
        accepted(store, f"r{number}", text.format(order), *steps)
    for run, told in (("shipped", "Order 77777 has left."), ("open", "Order 77777 is open.")):
        done(store, run, f"the {run} lamp 77777 that came today is broken", look(told), look())
    ids = [correct(store, run, "hand_over", 1, reason="Not ours.") for run in ("shipped", "open")]
    assert kinds(arbitrated(store), ids) == ["habit", "exception"]


def test_a_reviewer_has_the_last_word_and_a_reviewers_exception_is_no_example_for_others(store: Store) -> None:
    refunded(store)
    id = exchanged(store, "a")
    arbitrated(store)
    word = make_arbitration(store.correction(id), "habit", scrubber=None, reviewer="bob", id="w", at=AT)
    store.arbitrate(word)
    ruling = arbitrated(store)[id]
    assert (ruling.kind, ruling.by) == ("habit", "bob")
    store.arbitrate(replace(word, id="x", kind="exception"))
    assert arbitrated(store)[id].kind == "exception"


def test_what_was_said_already_is_not_said_again(store: Store) -> None:
    refunded(store)
    exchanged(store, "a")
    arbitrated(store)
    before = store.arbitrations()
    arbitrated(store)
    assert store.arbitrations() == before
    assert len(before) == 1


# -- superseding ---------------------------------------------------------------------------------------------


def test_a_fact_that_changed_is_superseded_and_not_averaged(store: Store) -> None:
    for run, days in (("old", 30), ("new", 60)):
        done(store, run, "How long may I keep it?", Step(ToolCall("answer", {"text": "Long."})))
        correct(store, run, "answer", text=f"You have {days} days.", citations=[])
    ruled = arbitrated(store)
    assert {id: one.superseded_by for id, one in ruled.items()} == {"c-old-0": "c-new-1", "c-new-1": None}
    assert not ruled["c-old-0"].is_recalled


def test_a_fact_is_superseded_by_an_answer_that_the_documents_gave_later(store: Store) -> None:
    done(store, "old", "How long may I keep it?", Step(ToolCall("answer", {"text": "Long."})))
    correct(store, "old", "answer", text="You have 30 days.", citations=[])
    done(store, "new", "How long may I keep it?", look("Sixty days."), Step(ToolCall("answer", {"text": "Long."})))
    correct(store, "new", "answer", 1, text="You have 60 days.", citations=[1])
    ruled = arbitrated(store)
    assert [one.superseded_by for one in ruled.values()] == ["c-new-1", None]
    assert ruled["c-new-1"].kind == "habit"


def test_another_order_or_another_observation_is_no_contradiction(store: Store) -> None:
    for run, order, told in (("a", "11111", "is open"), ("b", "22222", "has left"), ("c", "33333", "is open")):
        done(store, run, f"cancel {order}", look(f"Order {order} {told}."), look(), look())
    ids = [correct(store, "a", "look", order="11111"), correct(store, "b", "look", order="22222")]
    ids.append(correct(store, "a", "cancel", 1, order="11111"))
    ids.append(correct(store, "b", "hand_over", 1, reason="It has left."))
    ids.append(correct(store, "c", "cancel", 1, order="33333"))
    ruled = arbitrated(store)
    assert [ruled[id].superseded_by for id in ids] == [None] * 5


def test_another_sender_is_another_request_but_another_number_of_theirs_is_not(store: Store) -> None:
    for run, tier, customer in (("a", "normal", "C1"), ("b", "gold", "C2"), ("c", "normal", "C3")):
        done(store, run, "send it back", look(), facts={"tier": tier, "customer": customer})
    ids = [correct(store, run, tool) for run, tool in (("a", "refuse"), ("b", "refund"), ("c", "exchange"))]
    ruled = arbitrated(store)
    assert [ruled[id].superseded_by for id in ids] == [ids[2], None, None]


def test_a_policy_that_went_back_and_forth_ends_as_it_was_said_last(store: Store) -> None:
    ids = []
    for run, tool in (("a", "refund"), ("b", "refuse"), ("c", "refund")):
        done(store, run, "send it back", look())
        ids.append(correct(store, run, tool))
    ruled = arbitrated(store)
    assert [ruled[id].superseded_by for id in ids] == [None, ids[2], None]


def test_long_texts_that_only_begin_alike_are_not_the_same(store: Store) -> None:
    for run, end in (("a", "refund me"), ("b", "exchange it")):
        done(store, run, f"{'good day to all of you ' * 12}{end}", look())
    ids = [correct(store, run, tool) for run, tool in (("a", "refund"), ("b", "exchange"))]
    ruled = arbitrated(store)
    assert [ruled[id].superseded_by for id in ids] == [None, None]


def test_without_an_encoder_only_equal_wordings_are_alike() -> None:
    vectors = by_wording(["one", "two", "one"])
    assert (vectors @ vectors.T).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
