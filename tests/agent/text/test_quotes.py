"""Quotes are whole sentences of observations, with the label of the passage that contains them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.records.run import Step, ToolCall
from agent.text.quotes import MAX_QUOTES, Quote, cited_labels, collect_quotes, match_quotes
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


def test_sentences_of_passages_and_observations_can_be_quoted() -> None:
    assert collect_quotes(STEPS) == (
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
def test_markers_of_lists_and_headings_are_not_part_of_a_quote(line: str) -> None:
    (quote,) = collect_quotes((Step(ToolCall("look", {}), line),))
    assert quote.text == "Fee: 9 euros"


def test_passages_listed_again_are_quoted_under_their_first_label_and_without_their_headings() -> None:
    again = replace(SEARCH, observation="[1] dogs.md > Dogs\nDogs are welcome on a lead.", passages=())
    assert collect_quotes((SEARCH, again)) == collect_quotes((SEARCH,))
    numbered = Step(ToolCall("list", {}), "[7] is the number.")
    assert collect_quotes((SEARCH, numbered))[-1] == Quote("[7] is the number.")


def test_a_step_that_could_not_be_parsed_has_no_quotes() -> None:
    assert collect_quotes((Step(None, said="{", error="Not one JSON object."),)) == ()


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
def test_an_answer_of_quotes_cites_the_passages_that_contain_them(text: str, labels: list[int]) -> None:
    quotes = match_quotes(text, collect_quotes(STEPS))
    assert quotes is not None
    assert cited_labels(quotes) == labels


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
def test_a_text_with_anything_else_does_not_match(text: str) -> None:
    assert match_quotes(text, collect_quotes(STEPS)) is None
