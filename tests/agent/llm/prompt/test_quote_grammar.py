"""The grammar of a tool that quotes admits quotes alone, with the citations that belong to them."""

from __future__ import annotations

from typing import Any

import pytest

from agent.llm.prompt.step_grammar import ParsedStep, StepShape, step_grammar, write_step
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import ToolCall
from agent.text.quotes import MAX_QUOTES, Quote

QUOTES = (
    Quote("Dogs are welcome on a lead.", 1),
    Quote("They drink 4.5 litres!", 1),
    Quote("Can birds come in?", 2),
    Quote("不可以。", 2),
    Quote("It cost 9 euros."),
    Quote("Order 7 has shipped."),
)

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


def written(text: str, *citations: int, name: str = "answer") -> str:
    return write_step(ParsedStep(ToolCall(name, {"text": text, "citations": list(citations)})))


def grammar(quotes: tuple[Quote, ...], tool: ToolSpec = TOOL) -> str:
    return step_grammar(StepShape((tool, HAND_OVER), False, False, (1, 2), "", quotes))


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
def test_an_answer_of_quotes_cites_the_passages_that_contain_them(admits: Any, text: str, labels: list[int]) -> None:
    for citations in ([], [1], [2], [1, 2], [2, 1]):
        assert admits(grammar(QUOTES), written(text, *citations)) == (citations == labels)


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
def test_a_text_with_anything_else_is_not_admitted(admits: Any, text: str) -> None:
    assert not admits(grammar(QUOTES), written(text))


def test_without_anything_to_quote_there_is_no_answer(admits: Any) -> None:
    assert not admits(grammar(()), written("Yes."))
    assert admits(grammar(()), '{"tool":"hand_over","args":{}}')
    too_long = Quote("x" * 241)
    assert not admits(grammar((too_long,)), written(too_long.text))


def test_quotes_with_marks_of_json_are_written_canonically(admits: Any) -> None:
    quote = Quote('He said "4\\5" | (a) [b] /c/.')
    assert admits(grammar((quote,)), written(quote.text))


def test_a_tool_that_answers_nothing_quotes_without_citing(admits: Any) -> None:
    parameters = {**ANSWER, "properties": {"text": ANSWER["properties"]["text"]}}
    note = ToolSpec("note", "", parameters, quoted="text")
    both = '{"tool":"note","args":{"text":"It cost 9 euros. Dogs are welcome on a lead."}}'
    assert admits(grammar(QUOTES, note), both)
    assert not admits(grammar(QUOTES, note), both.replace("9", "8"))
