"""Quoted texts: sentences that tools said and nothing else, with the passages they stand in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.llm.prompt.step_grammar import ParsedStep, StepShape, ToolSpec, step_grammar, write_step
from agent.records.run import Step, ToolCall
from agent.text.quotes import MAX_QUOTES, Quote, cited_by, quotable, quoted
from tools.context import Passage

DOGS = Passage(
    1, "a", "dogs.md", "Dogs", "Dogs are welcome\non a lead. They drink 4.5 litres!\n\n- No cats\n- No bears"
)
BIRDS = Passage(2, "b", "birds.md", "Birds", "Can birds come in? 不可以。谢谢\uff01")
SEARCH = Step(
    ToolCall("search_knowledge", {}), "[1] dogs.md > Dogs\nDogs ...\n\n[2] birds.md\n...", passages=(DOGS, BIRDS)
)
ORDER = Step(ToolCall("get_order", {}), "Order 7 holds a lamp. It cost 9 euros.\nIt is packing")
REFUSED = Step(ToolCall("cancel", {}), error="Order 7 has shipped.")
STEPS = (SEARCH, ORDER, REFUSED)

ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": 240},
        "citations": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["text"],
}
TOOL = ToolSpec("answer", "", ANSWER, "answered", quoted="text")
HAND_OVER = ToolSpec("hand_over", "", {"type": "object", "properties": {}}, "refused")


def said(text: str, *citations: int, name: str = "answer") -> str:
    return write_step(ParsedStep(ToolCall(name, {"text": text, "citations": list(citations)})))


def grammar(quotes: tuple[Quote, ...], tool: ToolSpec = TOOL) -> str:
    return step_grammar(StepShape((tool, HAND_OVER), False, False, (1, 2), "", quotes))


def test_what_can_be_quoted_is_sentences_of_passages_and_tools() -> None:
    assert quotable(STEPS) == (
        Quote("Dogs are welcome on a lead.", 1),
        Quote("They drink 4.5 litres!", 1),
        Quote("No cats", 1),
        Quote("No bears", 1),
        Quote("Can birds come in?", 2),
        Quote("不可以。", 2),
        Quote("谢谢\uff01", 2),
        Quote("Order 7 holds a lamp."),
        Quote("It cost 9 euros."),
        Quote("It is packing"),
        Quote("Order 7 has shipped."),
    )


@pytest.mark.parametrize("line", ["- Fee: 9 euros", "* Fee: 9 euros", "## Fee: 9 euros", "> Fee: 9 euros"])
def test_marks_of_lists_and_headings_are_not_quoted(line: str) -> None:
    (quote,) = quotable((Step(ToolCall("look", {}), line),))
    assert quote.text == "Fee: 9 euros"


def test_passages_listed_again_are_quoted_under_their_first_label_and_without_their_headings() -> None:
    again = replace(SEARCH, observation="[1] dogs.md > Dogs\nDogs are welcome on a lead.", passages=())
    assert quotable((SEARCH, again)) == quotable((SEARCH,))
    numbered = Step(ToolCall("list", {}), "[7] is the number.")
    assert quotable((SEARCH, numbered))[-1] == Quote("[7] is the number.")


def test_an_unreadable_step_says_nothing() -> None:
    assert quotable((Step(None, said="{", error="Not one JSON object."),)) == ()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Dogs are welcome on a lead.", [1]),
        ("It cost 9 euros.", []),
        ("It cost 9 euros. Dogs are welcome on a lead.", [1]),
        ("Can birds come in? Dogs are welcome on a lead.", [2, 1]),
        ("They drink 4.5 litres! Dogs are welcome on a lead.", [1]),
    ],
)
def test_a_quoted_answer_cites_where_its_sentences_stand(admits: Any, text: str, labels: list[int]) -> None:
    quotes = quotable(STEPS)
    made_of = quoted(text, quotes)
    assert made_of is not None
    assert cited_by(made_of) == labels
    assert admits(grammar(quotes), said(text, *labels))
    for others in ([], [1], [2], [1, 2], [2, 1]):
        assert admits(grammar(quotes), said(text, *others)) == (others == labels)


@pytest.mark.parametrize(
    "text",
    [
        "Dogs are welcome",
        "dogs are welcome on a lead.",
        "It cost 8 euros.",
        "It cost 9 euros.Order 7 has shipped.",
        "It cost 9 euros. Dogs",
        " ".join(["It cost 9 euros."] * (MAX_QUOTES + 1)),
        "",
    ],
)
def test_nothing_else_can_be_said(admits: Any, text: str) -> None:
    quotes = quotable(STEPS)
    assert quoted(text, quotes) is None
    assert not admits(grammar(quotes), said(text))


def test_without_anything_to_quote_there_is_no_answer(admits: Any) -> None:
    assert not admits(grammar(()), said("Yes."))
    assert admits(grammar(()), '{"tool":"hand_over","args":{}}')
    too_long = Quote("x" * 241)
    assert not admits(grammar((too_long,)), said(too_long.text))


def test_quotes_with_marks_of_json_are_written_canonically(admits: Any) -> None:
    quote = Quote('He said "4\\5" | (a) [b] /c/.')
    assert admits(grammar((quote,)), said(quote.text))


def test_a_tool_that_answers_nothing_quotes_without_citing(admits: Any) -> None:
    parameters = {**ANSWER, "properties": {"text": ANSWER["properties"]["text"]}}
    note = ToolSpec("note", "", parameters, quoted="text")
    both = '{"tool":"note","args":{"text":"It cost 9 euros. Dogs are welcome on a lead."}}'
    assert admits(grammar(quotable(STEPS), note), both)
    assert not admits(grammar(quotable(STEPS), note), both.replace("9", "8"))
