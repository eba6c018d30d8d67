"""Conversations pass between langchain-core and us, as text."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from agent.errors import PromptError
from agent.llm.prompt.langchain_messages import from_langchain, plain_text, to_langchain
from agent.llm.prompt.render import Frame, Message, messages
from agent.llm.prompt.tool_spec import ToolSpec
from agent.llm.step_model import read_plan
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory

FRAME = Frame("You help.", (ToolSpec("look", "Look.", {"type": "object", "properties": {}}),))
RUN = Trajectory(
    "r",
    Task("t", "Where is it?", {"customer_id": "C1"}),
    Provenance(),
    "",
    (
        Step(ToolCall("look", {"id": "7"}), "There.", "I look first.", ("look", "answer")),
        Step(None, said="It is there", error="This is not a step."),
        Step(ToolCall("look", {}), error="Nothing."),
    ),
)


def test_a_conversation_is_told_in_our_roles() -> None:
    call: Any = {"name": "look", "args": {"id": "ä"}, "id": "1", "type": "tool_call"}
    shown = from_langchain(
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "Where "}, "is it?"]),
            AIMessage("I look.", tool_calls=[call]),
            ToolMessage("There.", tool_call_id="1"),
            AIMessage([{"type": "tool_use", "id": "2", "name": "look", "input": {}}], tool_calls=[call]),
            ChatMessage(content="Thanks.", role="user"),
        ]
    )
    written = '{"tool":"look","args":{"id":"ä"}}'
    assert shown == [
        Message("system", "Be brief."),
        Message("user", "Where is it?"),
        Message("assistant", f"I look.\n{written}"),
        Message("tool", "There."),
        Message("assistant", written),
        Message("user", "Thanks."),
    ]


@pytest.mark.parametrize("conversation", [[], [HumanMessage("Hello")]])
def test_there_is_always_a_system_message_first(conversation: list[BaseMessage]) -> None:
    shown = from_langchain(conversation)
    assert shown[0].role == "system"
    assert len(shown) == len(conversation) + 1


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}]), "a block of type 'image_url'"),
        (FunctionMessage(content="x", name="f"), "a FunctionMessage cannot be shown"),
        (ChatMessage(content="x", role="critic"), "a ChatMessage cannot be shown"),
    ],
)
def test_what_is_not_text_is_refused(message: BaseMessage, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        from_langchain([message])


def test_a_run_becomes_a_conversation_with_calls_and_their_results() -> None:
    conversation = to_langchain(RUN, FRAME)
    assert [message.type for message in conversation] == ["system", "human", "ai", "tool", "ai", "human", "ai", "tool"]
    first, result = conversation[2], conversation[3]
    assert isinstance(first, AIMessage)
    assert isinstance(result, ToolMessage)
    assert (first.tool_calls[0]["name"], first.tool_calls[0]["args"]) == ("look", {"id": "7"})
    assert first.tool_calls[0]["id"] == result.tool_call_id
    assert conversation[5].content == "Error: This is not a step."
    assert conversation[7].content == "Error: Nothing."


def test_plan_and_thought_are_read_back_from_what_was_written() -> None:
    said = to_langchain(RUN, FRAME)[2]
    assert read_plan(plain_text(said.content)) == (("look", "answer"), "I look first.")
    assert read_plan("Just a thought.") == ((), "Just a thought.")


def test_both_ways_show_the_same_prompt_and_observations() -> None:
    ours, theirs = messages(RUN, FRAME), to_langchain(RUN, FRAME)
    for mine, other in zip(ours, theirs, strict=True):
        if mine.role != "assistant":
            assert mine.text == other.content
