"""The local model as a langchain-core chat model, and as the thing that proposes steps to the loop.

A `LocalModel` is a light view of a shared engine: base weights are loaded once, and `on_adapter` gives a view
of the same engine under another adapter. Text only: images and sound in messages are refused.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages import ToolCall as MessageToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from agent.errors import ModelError, PromptError
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Generation, Request
from agent.llm.engine.speculation import KEYS
from agent.llm.prompt.first_call_prior import prior_of
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.langchain_messages import from_langchain
from agent.llm.prompt.render import Frame, Message, Renderer, messages, step_message
from agent.llm.prompt.step_grammar import ToolSpec, call_grammar, parse_step, step_grammar
from agent.llm.prompt.truncation import fitted, prompt_limit
from agent.llm.step_model import Proposal
from agent.llm.streaming import _decode, _Speaker, _until
from agent.records.run import Provenance, Step, Trajectory, Usage

_CUT_OFF = {
    "cancelled": "cancelled",
    "length": "cut off by the token budget",
    "late": "cut off by the budget of seconds",
}


class LocalModel(BaseChatModel):
    """A model on this machine. Build it with `LocalModel.load`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    engine: Engine = Field(exclude=True, repr=False)
    renderer: Renderer = Field(exclude=True, repr=False)
    base: str
    """Name of the base model."""
    revision: str
    """SHA-256 of its source weights."""
    adapter: str | None = None
    adapter_hash: str | None = None
    """Hash of the adapter's tensors, as trained and as served."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    stop: list[str] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        models: Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        threads: int = 0,
        max_sessions: int = 16,
        cache_tokens: int = 32768,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> LocalModel:
        """Load a base by name, folder or hub id; see `weights.resolve_model`. Options are fields."""
        from agent.llm.weights import load as weights

        folder = weights.resolve_model(name, models, progress=progress)
        tokenizer = weights.load_tokenizer(folder)
        model = weights.load_model(folder, device=device, dtype=dtype, threads=threads)
        engine = Engine(model, tokenizer, max_sessions=max_sessions, cache_tokens=cache_tokens)
        return cls(engine=engine, renderer=Renderer(tokenizer), base=folder.name, revision=folder.revision, **options)

    def on_adapter(
        self, key: str | None, *, folder: Path | None = None, tensors_sha256: str | None = None
    ) -> LocalModel:
        """The same engine under an adapter, loaded from `folder` if it is not there; None for the base."""
        if key is None:
            return self.model_copy(update={"adapter": None, "adapter_hash": None})
        if folder is not None:
            self.engine.load_adapter(key, folder, tensors_sha256=tensors_sha256)
        found = self.engine.adapters.hash(key)
        return self.model_copy(update={"adapter": key, "adapter_hash": found})

    def remember(self, steps: Iterable[Step]) -> None:
        """Guess from steps that were taken before, or should have been; the newest last."""
        before = self.renderer.header("assistant")[-max(KEYS) :]
        ends = (self.renderer.end_of_turn,)
        bodies = (step.token_ids or (*self.renderer.encode(step_message(step).text), *ends) for step in steps)
        self.engine.remember(self.adapter, [(*before, *body) for body in bodies])

    def close(self) -> None:
        """End the engine that this view shares."""
        self.engine.close()

    # -- steps for the loop ------------------------------------------------------------------------------

    def provenance(self) -> Provenance:
        return Provenance(
            base=self.base, base_revision=self.revision, adapter=self.adapter, adapter_hash=self.adapter_hash
        )

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
        """The next step of a run: one generation under the step's grammar.

        What outgrows the context is shortened, see `overflow`; where that is not enough, there is no step. Raises
        PromptError for a task that is too long by itself.
        """
        spoken = _Speaker(self.renderer, on_text)
        shown = fitted(messages(trajectory, frame), prompt_limit(self.engine.context), self.renderer)
        request = Request(
            ids=self.renderer.prompt(shown),
            end=self.renderer.end_of_turn,
            max_new=max_tokens,
            grammar=step_grammar(frame.shape(trajectory.task, trajectory.steps)),
            temperature=temperature,
            seed=seed,
            adapter=self.adapter,
            on_tokens=spoken.hear if on_text is not None else None,
            max_seconds=max_seconds,
            prior=prior_of(trajectory.provenance.recalled) if not trajectory.steps else None,
        )
        try:
            made = self.engine.generate(request, cancelled)
        except PromptError as fault:
            if not trajectory.steps:
                raise
            return Proposal(None, error=str(fault), end="length")
        usage = Usage(made.prompt, made.cached, made.forced, made.sampled, made.guessed)
        said = _decode(self.renderer, made)
        if made.end != "stop":
            return Proposal(
                None,
                said=said,
                error=_CUT_OFF[made.end],
                end=made.end,
                token_ids=made.ids,
                usage=usage,
                seconds=made.seconds,
            )
        step = parse_step(said)
        return Proposal(step.call, step.thought, step.plan, token_ids=made.ids, usage=usage, seconds=made.seconds)

    # -- langchain-core ----------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "ratchet-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "revision": self.revision,
            "adapter": self.adapter,
            "temperature": self.temperature,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "ratchet"
        params["ls_model_name"] = kwargs.get("model") or self.base
        params["ls_temperature"] = kwargs.get("temperature", self.temperature)
        params["ls_max_tokens"] = kwargs.get("max_tokens", self.max_tokens)
        if stop := stop or self.stop:
            params["ls_stop"] = list(stop)
        return params

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | dict[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        """Tools the model may call. `tool_choice`: "auto", "none", "any", "required", True or a name."""
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        if isinstance(tool_choice, dict):
            tool_choice = tool_choice["function"]["name"]
        names = [tool["function"]["name"] for tool in formatted]
        if isinstance(tool_choice, str) and tool_choice not in ("auto", "none", "any", "required", *names):
            raise ValueError(f"tool_choice {tool_choice!r} is no tool; expected auto, none, any, or one of {names}")
        return super().bind(tools=formatted, tool_choice=tool_choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prepared = _Prepared(self, messages, stop, kwargs)
        made = self.engine.generate(prepared.request(prepared.listener.hear), kwargs.get("cancelled"))
        text, calls = prepared.read(made)
        message = AIMessage(
            content=text,
            tool_calls=calls,
            usage_metadata=_usage(made),
            response_metadata=self._metadata(made),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        prepared = _Prepared(self, messages, stop, kwargs)
        pieces: SimpleQueue[str | Generation | BaseException] = SimpleQueue()
        cancelled: threading.Event | None = kwargs.get("cancelled")
        gone = threading.Event()
        prepared.listener.on_text = None if prepared.tools else pieces.put

        def hear(ids: Sequence[int]) -> bool:
            return prepared.listener.hear(ids) and not gone.is_set()

        def work() -> None:
            try:
                # A caller's own event is only read: it may stand for more than this one answer.
                pieces.put(self.engine.generate(prepared.request(hear), cancelled or gone))
            except BaseException as fault:
                pieces.put(fault)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                chunk = (
                    self._last_chunk(prepared, piece)
                    if isinstance(piece, Generation)
                    else AIMessageChunk(content=piece)
                )
                generation = ChatGenerationChunk(message=chunk)
                if run_manager is not None:
                    run_manager.on_llm_new_token(str(chunk.content), chunk=generation)
                yield generation
                if isinstance(piece, Generation):
                    return
        finally:
            # A reader that goes away frees its place.
            gone.set()
            worker.join()

    def _last_chunk(self, prepared: _Prepared, made: Generation) -> AIMessageChunk:
        text, calls = prepared.read(made)
        rest = text if prepared.tools else text[len(prepared.listener.given) :]
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=place)
            for place, call in enumerate(calls)
        ]
        return AIMessageChunk(
            content=rest,
            tool_call_chunks=chunks,
            usage_metadata=_usage(made),
            response_metadata=self._metadata(made),
            chunk_position="last",
        )

    def _metadata(self, made: Generation) -> dict[str, Any]:
        return {
            "model_name": self.base,
            "model_provider": "ratchet",
            "adapter": self.adapter,
            "adapter_hash": self.adapter_hash,
            "finish_reason": made.end,
        }


class _Prepared:
    """A conversation of langchain messages made ready for the engine."""

    def __init__(
        self,
        model: LocalModel,
        conversation: Sequence[BaseMessage],
        stop: list[str] | None,
        options: Mapping[str, Any],
    ) -> None:
        if options.get("model") not in (None, model.base):
            raise ModelError(
                f"asked for model {options['model']!r}, but this engine holds {model.base!r}; load the other one"
            )
        self.model = model
        choice = options.get("tool_choice")
        self.tools = () if choice == "none" else tuple(_spec(tool) for tool in options.get("tools") or ())
        self.must_call = bool(choice) and choice not in ("auto", "none")
        if self.must_call and choice not in (True, "any", "required"):
            self.tools = tuple(tool for tool in self.tools if tool.name == choice)
        self.stops = [one for one in stop or model.stop or () if one]
        self.options = options
        self.shown = _with_tools(from_langchain(conversation), self.tools, self.must_call)
        self.listener = _Speaker(model.renderer, None, self.stops)

    def request(self, hear: Callable[[Sequence[int]], bool]) -> Request:
        model, options = self.model, self.options
        return Request(
            ids=model.renderer.prompt(self.shown),
            end=model.renderer.end_of_turn,
            max_new=int(options.get("max_tokens") or model.max_tokens),
            grammar=call_grammar(self.tools, text=not self.must_call) if self.tools else None,
            temperature=float(options.get("temperature", model.temperature)),
            top_p=float(options.get("top_p", model.top_p)),
            seed=int(options.get("seed", model.seed)),
            adapter=model.adapter,
            on_tokens=hear,
            max_seconds=None if options.get("timeout") is None else float(options["timeout"]),
        )

    def read(self, made: Generation) -> tuple[str, list[MessageToolCall]]:
        """The text of the answer, and the tool calls in it."""
        text = _until(_decode(self.model.renderer, made), self.stops)[0]
        if not self.tools or not text.startswith('{"tool":') or made.end != "stop":
            return text, []
        try:
            call = parse_step(text).call
        except ValueError:
            return text, []
        return "", [
            MessageToolCall(
                name=call.name,
                args=dict(call.arguments),
                id=f"call_{uuid.uuid4().hex[:12]}",
                type="tool_call",
            )
        ]


def _spec(tool: Mapping[str, Any]) -> ToolSpec:
    function = tool["function"]
    empty = {"type": "object", "properties": {}}
    return ToolSpec(function["name"], function.get("description", ""), function.get("parameters") or empty)


def _with_tools(shown: list[Message], tools: Sequence[ToolSpec], must_call: bool) -> list[Message]:
    """The system message, with the tools told in it."""
    if not tools:
        return shown
    how = "Call a tool" if must_call else "Answer in plain text, or call a tool"
    told = "\n".join(
        [f'{how} by writing {{"tool":"name","args":{{...}}}}. Tools:']
        + [
            canonical({"name": tool.name, "description": tool.description, "parameters": tool.parameters})
            for tool in tools
        ]
    )
    if shown and shown[0].role == "system":
        return [Message("system", f"{shown[0].text}\n\n{told}"), *shown[1:]]
    return [Message("system", told), *shown]


def _usage(made: Generation) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=made.prompt,
        output_tokens=len(made.ids),
        total_tokens=made.prompt + len(made.ids),
        input_token_details={"cache_read": made.cached},
    )
