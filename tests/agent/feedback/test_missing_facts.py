"""An answer out of the reviewer's own head is told from one that only says what was shown."""

from __future__ import annotations

import pytest

from agent.feedback.cases import Case, case_of
from agent.feedback.missing_facts import Lacking, addition, held_by, lacking
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory
from agent.text.normalise import content, masked, wording
from tools.context import Passage

RETURNS = Passage(1, "p1", "returns.md", "Returns", "A tent can be sent back within thirty days.")
PHONE = Passage(2, "p2", "phone.md", "Phone", "The phone is answered from 9 to 17.")
SEARCH = Step(ToolCall("search_knowledge", {"query": "back"}), "[1] returns.md", passages=(PHONE, RETURNS))


def answered(text: str, *before: Step, asked: str = "How long may I keep a tent?", tool: str = "answer") -> Case:
    trajectory = Trajectory("r", Task("t", asked), Provenance(), "now", (*before, Step(ToolCall("answer", {}))))
    step = Step(ToolCall(tool, {"text": text, "citations": []}), author="correction")
    return case_of(trajectory, len(before), step, None)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("A tent can be sent back within 60 days.", ("60",)),
        ("A tent can be sent back within sixty days.", ("60",)),
        ("A tent can be sent back within thirty days. Ask Marlene in the warehouse.", ("ask", "marlen", "warehous")),
        ("Refunds take a week.", ("refund", "tak", "week")),
    ],
)
def test_what_was_not_shown_is_new(text: str, new: tuple[str, ...]) -> None:
    lack = lacking(answered(text, SEARCH))
    assert lack is not None
    assert lack.terms == new


@pytest.mark.parametrize(
    "text",
    [
        "A tent can be sent back within thirty days.",
        "You can send the tent back within 30 days.",
        "The tents can be sent back, thirty days long.",
        "Hello, how can I help you?",
        "Did you mean the warehouse in Malmo?",
        "I am sorry, we cannot do that.",
        "The phone is answered from 9 to 17, gladly.",
    ],
)
def test_what_was_shown_is_not_new_in_other_words_either(text: str) -> None:
    assert lacking(answered(text, SEARCH)) is None


def test_what_the_task_and_an_error_said_was_shown() -> None:
    assert (
        lacking(answered("Order 4711 costs 1,200 euros.", asked="Is 1200 euros right for order 4711? It costs!"))
        is None
    )
    refused = Step(ToolCall("look", {}), error="Order 4711 belongs to Ada.")
    assert lacking(answered("Order 4711 belongs to Ada.", refused)) is None
    assert lacking(answered("Order 4711 belongs to Ada.")) is not None


def test_only_answers_say_facts() -> None:
    assert lacking(answered("Refunds take a week.", tool="note")) is None


def test_a_way_of_speaking_is_not_new_but_a_number_always_is() -> None:
    said = answered("Enjoy camping!", SEARCH)
    assert lacking(said) is not None
    assert lacking(said, {"enjoy", "camp"}) is None
    assert lacking(answered("It is 61.", SEARCH), {"61"}) is not None


def test_a_fact_is_held_when_one_passage_says_all_of_it() -> None:
    lack = lacking(answered("A tent can be sent back within 60 days.", SEARCH))
    assert lack is not None
    asked: list[str] = []

    def search(query: str) -> list[Passage]:
        asked.append(query)
        return [PHONE, RETURNS]

    assert held_by(lack, search) is None
    assert asked == ["A tent can be sent back within 60 days."]
    newer = Passage(3, "p3", "returns.md", "Returns", "Since May you have sixty days.")
    assert held_by(lack, lambda query: [PHONE, newer]) == "returns.md"
    assert held_by(Lacking(lack.sentences, ("60", "euro")), lambda query: [newer]) is None


def test_an_addition_is_suggested_to_the_passage_that_is_about_it() -> None:
    case = answered("A tent can be sent back within 60 days. Thanks!", SEARCH)
    lack = lacking(case)
    assert lack is not None
    made = addition(case, lack, [SEARCH])
    assert (made.document, made.heading) == ("returns.md", "Returns")
    assert made.text == "A tent can be sent back within 60 days."
    assert addition(case, lack, []).document == ""


def test_texts_are_compared_by_what_their_words_say() -> None:
    assert content("The tents, and the 1,200 days of 2026!") == ["tent", "1200", "day", "2026"]
    assert content("返品は六十日です") == ["返品", "品は", "は六", "六十", "十日", "日で", "です"]
    assert wording("order 12345,\n 2 pieces") == "order #, 2 pieces"
    assert masked("order 12345,\n 2 pieces") == "order #, # pieces"
