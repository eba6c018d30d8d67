"""Corrections: only a step the model could have said itself is taken, and the error says what was expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, Field

from agent.errors import FeedbackError
from agent.feedback import make_correction, make_rating
from agent.llm.grammar import MAX_THOUGHT
from agent.llm.render import Frame
from agent.loop import Options, describe, make_frame
from agent.trajectory import Correction, Provenance, Step, Task, ToolCall, Trajectory
from tools.basics import answer, calculator, hand_over
from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge


class Item(BaseModel):
    sku: str
    count: int = 1


class OrderArguments(BaseModel):
    order_id: str = Field(pattern="^[0-9]{5}$")
    size: Literal["S", "M"] = "M"
    weight: float | None = None
    items: list[Item] = Field(default_factory=list, max_length=2)


def _order(**_: Any) -> str:
    return "ordered"


TOOLS: list[BaseTool] = [
    StructuredTool.from_function(_order, name="order", description="Order.", args_schema=OrderArguments),
    search_knowledge(ToolContext(Path("none"), Path("none"))),
    calculator(),
    answer(),
    hand_over(),
]
SEARCH = Step(
    ToolCall("search_knowledge", {"query": "tent"}),
    "[1] a.md\nText",
    thought="Search.",
    plan=("search", "answer"),
    passages=(Passage(1, "a", "a.md", "A", "Text"), Passage(2, "b", "b.md", "", "Text")),
)
REFUSED = Step(ToolCall("order", {"order_id": "11111"}), error="No such order.", thought="Order it.")
SAID = Step(ToolCall("answer", {"text": "Yes.", "citations": [1]}), "Yes.", thought="Answer.", plan=("answer",))
RUN = Trajectory("r-1", Task("t", "A tent?"), Provenance(), "now", (SEARCH, REFUSED, SAID))


def correct(step: int, **given: Any) -> Correction:
    frame: Frame = given.pop("frame", make_frame(TOOLS, Options()))
    given = {"tools": TOOLS, "frame": frame, "reviewer": "ann", "id": "c-1", "at": "then", **given}
    return make_correction(given.pop("run", RUN), step, **given)


def test_what_is_left_out_is_taken_from_the_step_as_it_was() -> None:
    made = correct(0, thought="Look for tents.", reason="clearer")
    assert made == Correction(
        "c-1",
        "r-1",
        0,
        SEARCH.call or ToolCall("", {}),
        "Look for tents.",
        SEARCH.plan,
        "ann",
        "clearer",
        "then",
    )
    assert correct(2, answer="No.").call == ToolCall("answer", {"text": "No.", "citations": [1]})
    assert correct(2, citations=[2, 1]).call == ToolCall("answer", {"text": "Yes.", "citations": [2, 1]})


def test_single_arguments_are_changed_and_take_the_types_and_the_order_of_the_schema() -> None:
    made = correct(1, changes={"items": '[{"count": 2, "sku": "T"}]', "weight": "1.5", "order_id": "48213"})
    assert list(made.call.arguments.items()) == [
        ("order_id", "48213"),
        ("weight", 1.5),
        ("items", [{"sku": "T", "count": 2}]),
    ]
    assert list(made.call.arguments["items"][0]) == ["sku", "count"]


def test_another_tool_keeps_only_the_arguments_it_knows() -> None:
    made = correct(1, tool="search_knowledge", changes={"query": "tents"})
    assert made.call == ToolCall("search_knowledge", {"query": "tents"})
    assert made.plan == ()


def test_a_plan_is_kept_where_the_step_is_to_hold_one_and_nowhere_else() -> None:
    assert correct(2, thought="Say so.").plan == ("answer",)  # the step before it failed
    assert correct(1, changes={"order_id": "22222"}, plan=["a plan"]).plan == ()
    plain = make_frame(TOOLS, Options(plan=False, thought=False))
    made = correct(0, changes={"query": "tents"}, frame=plain)
    assert (made.plan, made.thought) == ((), "")


@pytest.mark.parametrize(
    ("step", "given", "expected"),
    [
        (3, {"thought": "x"}, "has no step 3; it has steps 0 to 2"),
        (-1, {"thought": "x"}, "has no step -1"),
        (0, {"tool": "fly"}, "no tool 'fly' in this run; tools: order, search_knowledge"),
        (1, {"changes": {"colour": "red"}}, "order has no argument 'colour'; order takes order_id: string"),
        (1, {"arguments": {}}, "order lacks order_id; order takes order_id"),
        (1, {"changes": {"order_id": "seven"}}, "wrong arguments (order_id: String should match pattern"),
        (1, {"changes": {"size": "XL"}}, "wrong arguments (size: Input should be 'S' or 'M'"),
        (1, {"changes": {"items": "[1, 2, 3]"}}, "wrong arguments (items"),
        (0, {"changes": {"query": ""}}, "wrong arguments (query"),
        (2, {"citations": [3]}, "passage 3 was not shown before this step; shown were 1, 2"),
        (0, {"answer": "Yes.", "citations": [1]}, "passage 1 was not shown before this step; none was shown"),
        (0, {"citations": [1]}, "give --answer as well"),
        (0, {"answer": "Yes.", "tool": "order"}, "without --tool"),
        (0, {"thought": "x" * (MAX_THOUGHT + 1)}, f"the thought has {MAX_THOUGHT + 1} characters"),
        (0, {"thought": " "}, "the thought has 0 characters"),
        (0, {"plan": []}, "this step needs a plan of 1 to 4 parts"),
        (0, {"plan": list("abcde")}, "this step needs a plan of 1 to 4 parts"),
        (0, {"thought": "a\ttab"}, "the model could not say this step: it breaks off before"),
        (
            2,
            {"tool": "calculator", "arguments": {"expression": "1+1\x7f"}},
            "the model could not say this step",
        ),
        (0, {"thought": "x", "reviewer": " "}, "needs the name of who gives it"),
    ],
)
def test_what_would_not_be_a_step_is_refused(step: int, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(FeedbackError) as caught:
        correct(step, **given)
    assert expected in str(caught.value)


def test_a_step_that_could_not_be_read_needs_a_tool() -> None:
    unread = Trajectory("r-2", RUN.task, Provenance(), "now", (Step(None, said="hm", error="not a step"),))
    with pytest.raises(FeedbackError, match="name the tool"):
        correct(0, run=unread, thought="x")
    given = {"thought": "Look.", "plan": ["look"], "arguments": {"query": "tent"}}
    assert correct(0, run=unread, tool="search_knowledge", **given).call.name == "search_knowledge"


def test_only_tools_that_the_run_had_are_taken() -> None:
    run = Trajectory("r-3", RUN.task, Provenance(tools={"search_knowledge": "1", "answer": "1"}), "now", (SEARCH,))
    with pytest.raises(FeedbackError, match="no tool 'calculator' in this run; tools: search_knowledge, answer"):
        correct(0, run=run, tool="calculator", arguments={"expression": "1"})


def test_a_rating_is_up_or_down_and_has_a_reviewer() -> None:
    given: dict[str, Any] = {"reviewer": "ann", "id": "1", "at": "then"}
    assert make_rating(RUN, "up", **given).verdict == "up"
    with pytest.raises(FeedbackError, match="up or down, found 'fine'"):
        make_rating(RUN, "fine", **given)
    with pytest.raises(FeedbackError, match="--reviewer"):
        make_rating(RUN, "up", **{**given, "reviewer": ""})


def test_a_correction_copies_its_identifiers_from_what_the_run_was_shown() -> None:
    order = StructuredTool.from_function(
        _order, name="order", description="Order.", args_schema=OrderArguments, metadata={"copied": ["order_id"]}
    )
    tools = [order, *TOOLS[1:]]
    given = {"tools": tools, "frame": make_frame(tools, Options()), "tool": "order", "thought": "So."}
    run = Trajectory("r-1", Task("t", "A tent for 44000?"), Provenance(), "now", (SEARCH, REFUSED, SAID))

    def made(order_id: str) -> Correction:
        return make_correction(run, 1, arguments={"order_id": order_id}, reviewer="ann", id="c-1", at="then", **given)

    assert made("44000").call == ToolCall("order", {"order_id": "44000"})
    with pytest.raises(FeedbackError, match=r"could not say this step.*copied from what the run was shown"):
        made("12345")


def test_what_is_copied_is_told_beside_the_schema_and_not_in_it() -> None:
    plain = describe(TOOLS[0])
    order = StructuredTool.from_function(
        _order, name="order", description="Order.", args_schema=OrderArguments, metadata={"copied": ["order_id"]}
    )
    assert (plain.copied, describe(order).copied) == ((), ("order_id",))
    assert describe(order).parameters == plain.parameters


def test_a_quoted_answer_is_corrected_by_its_words_alone() -> None:
    tools = [answer(quoted=True) if tool.name == "answer" else tool for tool in TOOLS]
    found = Passage(1, "a", "a.md", "A", "It is dry. It costs 9 euros.")
    search = replace(SEARCH, passages=(found, Passage(2, "b", "b.md", "", "It is red.")))
    run = replace(RUN, steps=(search, REFUSED, SAID))

    def made(text: str) -> Correction:
        return correct(2, run=run, tools=tools, frame=make_frame(tools, Options()), answer=text)

    assert made("It costs 9 euros.").call.arguments == {"text": "It costs 9 euros.", "citations": [1]}
    assert made("No such order. It is red.").call.arguments["citations"] == [2]
    with pytest.raises(FeedbackError, match=r"text: string .*one or 2 whole sentences that tools said"):
        made("It costs 8 euros.")
