"""`ScriptedModel`: a chat model that replies from a script, for tests and experiments."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from agent.errors import ModelError


class ScriptedModel(BaseChatModel):
    """Returns its replies one by one, whatever the prompt. Raises ModelError after the last one."""

    replies: list[AIMessage]
    _conversations: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, replies: Sequence[AIMessage | str], **options: Any) -> None:
        super().__init__(
            replies=[AIMessage(reply) if isinstance(reply, str) else reply for reply in replies], **options
        )

    @property
    def conversations(self) -> list[list[BaseMessage]]:
        """The messages of each call so far."""
        return self._conversations

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Return the model itself: tools do not change the script."""
        return super().bind()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._lock:
            place = len(self._conversations)
            self._conversations.append(list(messages))
        if place >= len(self.replies):
            raise ModelError(f"the script has {len(self.replies)} replies and was called once more; add a reply")
        return ChatResult(generations=[ChatGeneration(message=self.replies[place])])


def call(tool: str, /, *, thought: str = "", plan: Sequence[str] = (), **arguments: Any) -> AIMessage:
    """Return a reply that calls a tool."""
    text = "\n".join([f"Plan: {'; '.join(plan)}"] * bool(plan) + [thought] * bool(thought))
    return AIMessage(
        content=text, tool_calls=[{"name": tool, "args": arguments, "id": "scripted", "type": "tool_call"}]
    )


def answer(text: str, *citations: int, thought: str = "") -> AIMessage:
    """Return a reply that ends the run with an answer."""
    return call("answer", thought=thought, text=text, citations=list(citations))
