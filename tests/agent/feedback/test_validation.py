"""Corrections: only a step the model could have said itself is taken, and the error says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, Field

from agent.errors import FeedbackError
from agent.feedback.validation import make_arbitration, make_correction, make_output_correction, make_rating
from agent.llm.prompt.render import Frame
from agent.llm.prompt.step_grammar import MAX_THOUGHT
from agent.llm.prompt.tool_spec import describe
from agent.privacy.redaction import Scrubber
from agent.records.feedback import Correction
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory
from agent.run.state import Options
from agent.run.tools import make_frame
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
    given = {"tools": TOOLS, "frame": frame, "scrubber": None, "reviewer": "ann", "id": "c-1", "at": "then", **given}
    return make_correction(given.pop("run", RUN), step, **given)


def test_a_call_that_is_left_out_is_taken_from_the_step_as_it_was() -> None:
    made = correct(0, thought="Look for tents.", reason="clearer")
    assert made == Correction(
        "c-1",
        "r-1",
        0,
        SEARCH.call or ToolCall("", {}),
        "Look for tents.",
        (),
        "ann",
        "clearer",
        "then",
        only_given=True,
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


def test_a_plan_or_a_thought_that_is_not_given_is_not_the_steps_own() -> None:
    made = correct(0, changes={"query": "tents"})
    assert (made.plan, made.thought) == ((), "")
    made = correct(0, thought="Search.", plan=["search", "answer"])
    assert (made.plan, made.thought) == (SEARCH.plan, SEARCH.thought), "given, if with the same words"
    assert made.without_copies(SEARCH) is made


def test_what_an_older_version_copied_from_the_step_is_told_by_its_words() -> None:
    assert SEARCH.call is not None
    old = Correction("c", "r-1", 0, SEARCH.call, "Search.", ("other",), "ann", "", "then")
    assert old.without_copies(SEARCH) == replace(old, thought="", only_given=True)
    assert old.without_copies(SAID) == replace(old, only_given=True)
    assert old.parts_not_given(SEARCH) == ("thought",)


def test_a_corrected_step_is_trained_behind_what_the_model_said_in_front_of_its_call() -> None:
    plan_only = correct(0, changes={"query": "tents"}, plan=["look it up"]).as_target(SEARCH)
    assert (plan_only.plan, plan_only.thought, plan_only.context_parts) == (("look it up",), "Search.", ("thought",))
    whole = correct(0, thought="Look.", plan=["look it up"])
    assert whole.as_target(SEARCH) == whole.as_step()
    assert correct(0, changes={"query": "tents"}).as_target(SEARCH).context_parts == ("plan", "thought")
    assert correct(0, changes={"query": "tents"}).as_target(Step(None)).context_parts == ()


def test_a_plan_is_kept_where_the_step_is_to_hold_one_and_nowhere_else() -> None:
    assert correct(2, plan=["say so"]).plan == ("say so",)  # the step before it failed
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
        (0, {"plan": []}, "a plan has 1 to 4 parts"),
        (0, {"plan": list("abcde")}, "a plan has 1 to 4 parts"),
        (0, {"thought": "a\ttab"}, "the model could not generate this step: it ends before"),
        (
            2,
            {"tool": "calculator", "arguments": {"expression": "1+1\x7f"}},
            "the model could not generate this step",
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
    given: dict[str, Any] = {"scrubber": None, "reviewer": "ann", "id": "1", "at": "then"}
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
    given = {"tools": tools, "frame": make_frame(tools, Options()), "scrubber": None, "tool": "order", "thought": "So."}
    run = Trajectory("r-1", Task("t", "A tent for 44000?"), Provenance(), "now", (SEARCH, REFUSED, SAID))

    def made(order_id: str) -> Correction:
        return make_correction(run, 1, arguments={"order_id": order_id}, reviewer="ann", id="c-1", at="then", **given)

    assert made("44000").call == ToolCall("order", {"order_id": "44000"})
    with pytest.raises(FeedbackError, match=r"could not generate this step.*copied from the task or an observation"):
        made("12345")


def test_what_a_reviewer_gives_is_masked_before_it_is_checked() -> None:
    class Mail(BaseModel):
        to: str
        text: str = ""

    mail = StructuredTool.from_function(
        _order, name="mail", description="Mail.", args_schema=Mail, metadata={"copied": ["to"]}
    )
    scrubber = Scrubber()
    run = Trajectory("r-1", Task("t", scrubber.mask("Write to jo@x.example.")), Provenance(), "now", (SEARCH,))
    tools = [mail, *TOOLS]
    given = {"run": run, "tools": tools, "frame": make_frame(tools, Options()), "scrubber": scrubber, "tool": "mail"}
    words = {"thought": "Mail jo@x.example.", "plan": ["mail jo@x.example"], "reason": "jo@x.example, not al@y.example"}
    arguments = {"to": "jo@x.example", "text": "Hello jo@x.example, this is al@y.example."}
    made = correct(0, **given, **words, arguments=arguments)
    assert made.call.arguments == {"to": "<email_1>", "text": "Hello <email_1>, this is <email_2>."}
    assert (made.thought, made.plan) == ("Mail <email_1>.", ("mail <email_1>",))
    assert made.reason == "<email_1>, not <email_2>"
    assert correct(0, **given, **words, changes=arguments).call == made.call
    assert correct(0, **given, **words, arguments={**arguments, "to": "<email_1>"}).call == made.call
    # An address that the run does not show cannot be copied from it, and is not in the error either.
    with pytest.raises(FeedbackError, match="could not generate this step") as caught:
        correct(0, **given, **words, arguments={"to": "bo@z.example"})
    assert "bo@z.example" not in str(caught.value)
    ended = {**given, "tool": None, "answer": "Ask jo@x.example.", "citations": []}
    assert correct(0, **ended, **words).call.arguments["text"] == "Ask <email_1>."


def test_ratings_arbitrations_and_outputs_are_masked_and_reviewers_are_kept() -> None:
    scrubber = Scrubber()
    given: dict[str, Any] = {"scrubber": scrubber, "reviewer": "al@y.example", "id": "1", "at": "then"}
    rating = make_rating(RUN, "down", reason="It named jo@x.example.", **given)
    assert (rating.reason, rating.reviewer) == ("It named <email_1>.", "al@y.example")
    arbitration = make_arbitration(correct(0, thought="x"), "habit", reason="as jo@x.example said", **given)
    assert arbitration.reason == "as <email_1> said"

    def right_output(tool: str, arguments: Mapping[str, Any], said: str) -> Mapping[str, Any]:
        return {"labels": [said]}

    made = make_output_correction(RUN, 0, "jo@x.example", right_output=right_output, reason="jo@x.example", **given)
    assert (made.output, made.reason) == ({"labels": ["<email_1>"]}, "<email_1>")


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
    with pytest.raises(FeedbackError, match=r"text: string .*one or 2 whole sentences of observations"):
        made("It costs 8 euros.")
