"""The interface between the agent loop and a model: `Stepper` proposes the next step.

`LocalModel` implements it under a grammar. `ChatStepper` adapts any other langchain-core chat model: through its tool
calling where it has one, else by parsing its text as a step.
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
from agent.llm.prompt.step_grammar import ParsedStep, parse_step
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import Provenance, ToolCall, Trajectory, Usage


@dataclass(frozen=True)
class Proposal:
    """The next step that a model proposes, or its output where that is not a step."""

    call: ToolCall | None
    thought: str = ""
    plan: tuple[str, ...] = ()
    text: str = ""
    """The output that is not a step."""
    error: str | None = None
    """Why `text` is not a step."""
    finish_reason: Literal["stop", "length", "timeout", "cancelled"] = "stop"
    token_ids: tuple[int, ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0


@runtime_checkable
class Stepper(Protocol):
    """Proposes steps. For tests there is `ScriptedModel`, through `ChatStepper`."""

    def provenance(self) -> Provenance:
        """Return which model and adapter propose."""
        ...

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
        """Return the next step of a run.

        Args:
            trajectory: the run so far.
            frame: its instructions and tools.
            temperature: 0 decodes greedily.
            seed: of the sampling.
            max_tokens: the most tokens to generate.
            max_seconds: the time limit of the generation.
            cancelled: ends the generation when it is set.
            on_text: receives the text as it is generated.
        """
        ...


def as_stepper(model: BaseChatModel | Stepper) -> Stepper:
    """Return the model itself where it is a `Stepper`, else a `ChatStepper` around it."""
    return model if isinstance(model, Stepper) else ChatStepper(model)


class ChatStepper:
    """A stepper on any langchain-core chat model. Its output is checked, not constrained."""

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
        """Return the next step. Sampling and time limits are those of the chat model, not of the arguments."""
        started = time.perf_counter()
        reply = cast(AIMessage, self._bound(frame).invoke(to_langchain(trajectory, frame)))
        seconds = time.perf_counter() - started
        used: Mapping[str, Any] = reply.usage_metadata or {}
        usage = Usage(prompt=int(used.get("input_tokens", 0)), sampled=int(used.get("output_tokens", 0)))
        text = plain_text(reply.content)
        if on_text is not None and text:
            on_text(text)
        try:
            step = _parse_reply(reply, text)
        except ValueError as error:
            return Proposal(None, text=text, error=f"This is not a step: {error}.", usage=usage, seconds=seconds)
        return Proposal(step.call, step.thought, step.plan, usage=usage, seconds=seconds)

    def _bound(self, frame: Frame) -> Any:
        try:
            return self._model.bind_tools([_openai_tool(tool) for tool in frame.tools])
        except NotImplementedError:
            return self._model


def read_plan(text: str) -> tuple[tuple[str, ...], str]:
    """Split a chat model's text into plan and thought; the plan is a first line `Plan: a; b; c`."""
    match = re.match(r"\s*Plan:\s*(.+?)(?:\n|$)", text)
    if match is None:
        return (), text.strip()
    items = tuple(item.strip() for item in match.group(1).split(";") if item.strip())
    return items, text[match.end() :].strip()


def _parse_reply(reply: AIMessage, text: str) -> ParsedStep:
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
