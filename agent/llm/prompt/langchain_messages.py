"""Conversion between langchain-core messages and ours. Text only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from agent.errors import PromptError
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.render import Frame, Message, Role, observation_text, system_text, task_text
from agent.records.run import Trajectory


def from_langchain(conversation: Sequence[BaseMessage]) -> list[Message]:
    """Convert langchain messages to ours, the first a system message. Raises PromptError for anything but text."""
    converted = [_message(message) for message in conversation]
    if not converted or converted[0].role != "system":
        converted.insert(0, Message("system", "You are a helpful assistant."))
    return converted


def to_langchain(trajectory: Trajectory, frame: Frame) -> list[BaseMessage]:
    """Convert a run to langchain messages, for a chat model with its own tool calling."""
    conversation: list[BaseMessage] = [
        SystemMessage(system_text(frame)),
        HumanMessage(task_text(trajectory.task)),
    ]
    for index, step in enumerate(trajectory.steps):
        if step.call is None:
            conversation += [AIMessage(step.said or "(nothing)"), HumanMessage(observation_text(step))]
            continue
        key = f"step_{index}"
        call = {"name": step.call.name, "args": dict(step.call.arguments), "id": key, "type": "tool_call"}
        conversation.append(AIMessage(content=_plan_and_thought(step.plan, step.thought), tool_calls=[call]))
        conversation.append(ToolMessage(content=observation_text(step), tool_call_id=key, name=step.call.name))
    return conversation


def plain_text(content: Any) -> str:
    """Return the text of a message's content, which may be a list of blocks. Raises PromptError for other content."""
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(block["text"])
        elif block.get("type") not in ("tool_use", "tool_call"):
            raise PromptError(
                f"a message has a block of type {block.get('type')!r}; this model reads only text, so leave it out"
            )
    return "".join(parts)


def _message(message: BaseMessage) -> Message:
    text = plain_text(message.content)
    if isinstance(message, AIMessage):
        calls = [canonical({"tool": call["name"], "args": call["args"]}) for call in message.tool_calls]
        return Message("assistant", "\n".join([text, *calls] if text else calls))
    if isinstance(message, SystemMessage):
        return Message("system", text)
    if isinstance(message, ToolMessage):
        return Message("tool", text)
    if isinstance(message, HumanMessage):
        return Message("user", text)
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant", "tool"):
        role: Role = message.role  # type: ignore[assignment]
        return Message(role, text)
    raise PromptError(f"a {type(message).__name__} cannot be shown to the model; expected system, human, ai or tool")


def _plan_and_thought(plan: Sequence[str], thought: str) -> str:
    """Return plan and thought as a chat model would write them; the inverse of `step_model.read_plan`."""
    return "\n".join([f"Plan: {'; '.join(plan)}"] * bool(plan) + [thought] * bool(thought))
