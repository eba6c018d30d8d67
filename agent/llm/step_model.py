"""The seam between the loop and a model: who proposes the next step.

`LocalModel` proposes by itself, under the grammar. `ChatStepper` lets any other langchain-core chat model
drive the agent: through its own tool calling where it has one, else by reading its text as a step.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from agent.llm.prompt.langchain_messages import plain_text, to_langchain
from agent.llm.prompt.render import Frame
from agent.llm.prompt.step_grammar import ParsedStep, ToolSpec, parse_step
from agent.records.run import Provenance, ToolCall, Trajectory, Usage


@dataclass(frozen=True)
class Proposal:
    """What a model wants to do next, or what it said instead."""

    call: ToolCall | None
    thought: str = ""
    plan: tuple[str, ...] = ()
    said: str = ""
    error: str | None = None
    """Why `said` could not be read as a step."""
    end: Literal["stop", "length", "late", "cancelled"] = "stop"
    token_ids: tuple[int, ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0


@runtime_checkable
class Stepper(Protocol):
    """Proposes steps. `ScriptedModel`, through `ChatStepper`, is the one for tests."""

    def provenance(self) -> Provenance: ...

    def propose(
        self,
        trajectory: Trajectory,
        frame: Frame,
        *,
        temperature: float,
        seed: int,
        max_tokens: int,
        max_seconds: float,
        cancelled: threading.Event,
        on_text: Callable[[str], None] | None = None,
    ) -> Proposal: ...


def as_stepper(model: BaseChatModel | Stepper) -> Stepper:
    """The model itself where it proposes steps, else a `ChatStepper` around it."""
    return model if isinstance(model, Stepper) else ChatStepper(model)


class ChatStepper:
    """Any langchain-core chat model as what drives the agent. Its text is checked, not constrained."""

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model

    def provenance(self) -> Provenance:
        params = self._model._get_ls_params()
        return Provenance(base=str(params.get("ls_model_name") or self._model._llm_type))

    def propose(
        self,
        trajectory: Trajectory,
        frame: Frame,
        *,
        temperature: float,
        seed: int,
        max_tokens: int,
        max_seconds: float,
        cancelled: threading.Event,
        on_text: Callable[[str], None] | None = None,
    ) -> Proposal:
        """Ask for the next step. How it samples, and how long it may take, are the chat model's own."""
        started = time.perf_counter()
        reply = cast(AIMessage, self._bound(frame).invoke(to_langchain(trajectory, frame)))
        seconds = time.perf_counter() - started
        used: Mapping[str, Any] = reply.usage_metadata or {}
        usage = Usage(prompt=int(used.get("input_tokens", 0)), sampled=int(used.get("output_tokens", 0)))
        text = plain_text(reply.content)
        if on_text is not None and text:
            on_text(text)
        try:
            step = _read(reply, text)
        except ValueError as fault:
            return Proposal(None, said=text, error=f"This is not a step: {fault}.", usage=usage, seconds=seconds)
        return Proposal(step.call, step.thought, step.plan, usage=usage, seconds=seconds)

    def _bound(self, frame: Frame) -> Any:
        try:
            return self._model.bind_tools([_openai_tool(tool) for tool in frame.tools])
        except NotImplementedError:
            return self._model


def read_plan(text: str) -> tuple[tuple[str, ...], str]:
    """Plan and thought out of a chat model's text; the plan is a first line `Plan: a; b; c`."""
    found = re.match(r"\s*Plan:\s*(.+?)(?:\n|$)", text)
    if found is None:
        return (), text.strip()
    items = tuple(item.strip() for item in found.group(1).split(";") if item.strip())
    return items, text[found.end() :].strip()


def _read(reply: AIMessage, text: str) -> ParsedStep:
    if reply.tool_calls:
        call = reply.tool_calls[0]
        plan, thought = read_plan(text)
        return ParsedStep(ToolCall(call["name"], call["args"]), thought, plan)
    return parse_step(text)


def _openai_tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
    }
