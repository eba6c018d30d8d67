"""Calls of tools: their effect, their result as text, and the message the model gets for an exception."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from pydantic import ValidationError

from agent.llm.prompt.render import Frame
from agent.llm.prompt.tool_spec import describe
from agent.records.run import ToolCall
from agent.run.state import Options, Run
from tools.context import Passage

MAX_OBSERVATION = 2400
"""Characters of a tool's result in the prompt; a note replaces the rest."""


def make_frame(tools: Sequence[BaseTool], options: Options) -> Frame:
    """Return the instructions and the specifications of these tools, in their order."""
    return Frame(options.instructions, tuple(describe(tool) for tool in tools), options.plan, options.thought)


def effect_of(tool: BaseTool | None) -> str:
    """Return what a call of this tool changes: "read" for nothing, "workspace", or "world".

    A tool without this metadata has the effect "world".
    """
    return "read" if tool is None else str((tool.metadata or {}).get("effect", "world"))


def call_tool(tool: BaseTool, call: ToolCall) -> tuple[str, tuple[Passage, ...]]:
    """Call a tool and return the text and the new passages of its result.

    A tool that has only a coroutine runs in an event loop of its own for each call.

    Raises:
        ToolException: the tool refuses; ResultError, one of these, where it ran and its result has no text.
        ValidationError: the arguments do not fit the tool's schema; or, as any other exception, out of the tool.
    """
    sent = {"name": call.name, "args": dict(call.arguments), "id": "step", "type": "tool_call"}
    message = _run_coroutine(tool, sent) if _is_async_only(tool) else tool.invoke(sent)
    if not isinstance(message, ToolMessage):
        raise ResultError(f"{call.name} returned a {type(message).__name__}, which cannot be shown; return a text.")
    if message.status == "error":
        raise ToolException(message.text)
    if _WITHOUT_TEXT.fullmatch(message.text):
        kind = message.text[1:].partition(" ")[0]
        raise ResultError(f"{call.name} returned a {kind} object, which has no text to show; return a text.")
    artifacts = message.artifact if isinstance(message.artifact, list) else []
    return message.text, tuple(artifact for artifact in artifacts if isinstance(artifact, Passage))


def truncate_observation(text: str) -> str:
    """Cut a result to `MAX_OBSERVATION` characters, with a note."""
    if len(text) <= MAX_OBSERVATION:
        return text
    return f"{text[:MAX_OBSERVATION]} [cut: {len(text) - MAX_OBSERVATION} more characters]"


MAX_EXCEPTION = 300
"""Characters of an exception's message in the prompt."""


EFFECT_UNKNOWN = "Whether it took effect is not known; check before you call it again."
"""Added to the error of a tool that has an effect and raised an exception."""


class ResultError(ToolException):
    """A tool ran, and its result has no text for the prompt."""


def describe_exception(state: Run, tool: BaseTool, fault: BaseException) -> tuple[str, bool]:
    """Return the error text for the model, and whether the call may have taken effect."""
    has_effect = effect_of(tool) != "read"
    if isinstance(fault, ResultError):
        return f"{fault} {EFFECT_UNKNOWN}" if has_effect else str(fault), has_effect
    if isinstance(fault, ToolException):
        return str(fault).strip() or f"{tool.name} refused and did not say why.", False
    if isinstance(fault, ValidationError) and _is_of_arguments(tool, fault):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors()), False
    # Masked before it is cut: of half an address nothing would be masked.
    message = state.mask(" ".join(str(fault).split()))
    if len(message) > MAX_EXCEPTION:
        message = f"{message[:MAX_EXCEPTION]}…"
    raised = f"{tool.name} raised {type(fault).__name__}" + (f": {message.rstrip('.')}." if message else ".")
    return f"{raised} {EFFECT_UNKNOWN}" if has_effect else raised, has_effect


def _is_of_arguments(tool: BaseTool, fault: ValidationError) -> bool:
    """Whether a validation failed for the call's arguments, and not for something inside the tool."""
    return fault.title == getattr(tool.get_input_schema(), "__name__", None)


def is_ctrl_c(fault: BaseException) -> bool:
    """Return whether the user interrupts the program; only the main thread receives signals."""
    return isinstance(fault, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _is_async_only(tool: BaseTool) -> bool:
    return getattr(tool, "coroutine", None) is not None and getattr(tool, "func", None) is None


def _run_coroutine(tool: BaseTool, sent: dict[str, Any]) -> Any:
    """Run a tool's coroutine to its end; in a thread of its own where this one has a running event loop."""

    async def work() -> Any:
        return await tool.ainvoke(sent)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work()).result()


_WITHOUT_TEXT = re.compile(r"<[^\n]{1,300} at 0x[0-9a-fA-F]+>")
"""How Python writes an object that has no text, such as a coroutine or a generator."""


def replace_surrogates(text: str) -> str:
    """Replace what cannot be encoded in UTF-8, such as half of a file name's character."""
    return text.encode("utf-8", "replace").decode("utf-8")
