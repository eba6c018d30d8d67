"""The local model: a langchain-core chat model that also proposes the steps of the agent loop.

A `LocalModel` is a light view of a shared engine: base weights are loaded once, and `on_adapter` returns a view of the
same engine under another adapter. Text only: images and sound in messages raise PromptError.
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
from agent.llm.engine.speculation import NGRAM_SIZES
from agent.llm.prompt.first_call_prior import make_prior
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.langchain_messages import from_langchain
from agent.llm.prompt.render import Frame, Message, Renderer, messages, step_message
from agent.llm.prompt.step_grammar import call_grammar, parse_step, step_grammar
from agent.llm.prompt.tool_spec import ToolSpec
from agent.llm.prompt.truncation import fit_to_limit, prompt_limit
from agent.llm.step_model import Proposal
from agent.llm.streaming import StreamDecoder, decode_generation, text_before_stop
from agent.records.run import Provenance, Step, Trajectory, Usage

_CUT_OFF = {
    "cancelled": "cancelled",
    "length": "cut off by the token budget",
    "timeout": "cut off by the budget of seconds",
}


class LocalModel(BaseChatModel):
    """A model on this machine; create it with `LocalModel.load`."""

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
        """Load a base by name, folder or hub id (see `weights.load.resolve_model`).

        The arguments are those of `weights.load.load_model` and `Engine`; `options` are fields of this class.
        """
        from agent.llm.weights import load as weights

        folder = weights.resolve_model(name, models, progress=progress)
        tokenizer = weights.load_tokenizer(folder)
        model = weights.load_model(folder, device=device, dtype=dtype, threads=threads)
        engine = Engine(model, tokenizer, max_sessions=max_sessions, cache_tokens=cache_tokens)
        return cls(engine=engine, renderer=Renderer(tokenizer), base=folder.name, revision=folder.revision, **options)

    def on_adapter(
        self, key: str | None, *, folder: Path | None = None, tensors_sha256: str | None = None
    ) -> LocalModel:
        """Return a view of the same engine under an adapter, which `folder` loads if need be; None is the base.

        Raises AdapterError for an adapter that is not loaded or does not fit the base, LivenessError for a wrong hash.
        """
        if key is None:
            return self.model_copy(update={"adapter": None, "adapter_hash": None})
        if folder is not None:
            self.engine.load_adapter(key, folder, tensors_sha256=tensors_sha256)
        digest = self.engine.adapters.hash(key)
        return self.model_copy(update={"adapter": key, "adapter_hash": digest})

    def add_draft_steps(self, steps: Iterable[Step]) -> None:
        """Draft tokens from approved steps of earlier runs, the newest last."""
        before = self.renderer.header("assistant")[-max(NGRAM_SIZES) :]
        ends = (self.renderer.end_of_turn,)
        bodies = (step.token_ids or (*self.renderer.encode(step_message(step).text), *ends) for step in steps)
        self.engine.add_draft_texts(self.adapter, [(*before, *body) for body in bodies])

    def close(self) -> None:
        """Close the engine, which other views may share."""
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
        """Generate the next step of a run, under the step's grammar.

        A run that outgrows the context is truncated (see `prompt.truncation`); where that is not enough, the proposal
        has no call. Raises PromptError for a task that is too long by itself.
        """
        decoder = StreamDecoder(self.renderer, on_text)
        conversation = fit_to_limit(messages(trajectory, frame), prompt_limit(self.engine.context), self.renderer)
        request = Request(
            ids=self.renderer.prompt(conversation),
            end_of_turn=self.renderer.end_of_turn,
            max_new=max_tokens,
            grammar=step_grammar(frame.shape(trajectory.task, trajectory.steps)),
            temperature=temperature,
            seed=seed,
            adapter=self.adapter,
            on_tokens=decoder.add if on_text is not None else None,
            max_seconds=max_seconds,
            prior=make_prior(trajectory.provenance.recalled) if not trajectory.steps else None,
        )
        try:
            output = self.engine.generate(request, cancelled)
        except PromptError as error:
            if not trajectory.steps:
                raise
            return Proposal(None, error=str(error), finish_reason="length")
        usage = Usage(output.prompt, output.cached, output.forced, output.sampled, output.drafted)
        text = decode_generation(self.renderer, output)
        if output.finish_reason != "stop":
            return Proposal(
                None,
                text=text,
                error=_CUT_OFF[output.finish_reason],
                finish_reason=output.finish_reason,
                token_ids=output.ids,
                usage=usage,
                seconds=output.seconds,
            )
        step = parse_step(text)
        return Proposal(step.call, step.thought, step.plan, token_ids=output.ids, usage=usage, seconds=output.seconds)

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
        """Bind tools that the model may call. Raises ValueError for an unknown `tool_choice`.

        Args:
            tools: anything that langchain-core can convert to a tool.
            tool_choice: "auto", "none", "any", "required", True or the name of a tool.
        """
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
        chat = _ChatRequest(self, messages, stop, kwargs)
        output = self.engine.generate(chat.request(chat.decoder.add), kwargs.get("cancelled"))
        text, calls = chat.parse(output)
        message = AIMessage(
            content=text,
            tool_calls=calls,
            usage_metadata=_usage(output),
            response_metadata=self._metadata(output),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chat = _ChatRequest(self, messages, stop, kwargs)
        pieces: SimpleQueue[str | Generation | BaseException] = SimpleQueue()
        cancelled: threading.Event | None = kwargs.get("cancelled")
        abandoned = threading.Event()
        chat.decoder.on_text = None if chat.tools else pieces.put

        def on_tokens(ids: Sequence[int]) -> bool:
            return chat.decoder.add(ids) and not abandoned.is_set()

        def work() -> None:
            try:
                # The caller's event is never set here: it may belong to more than this one answer.
                pieces.put(self.engine.generate(chat.request(on_tokens), cancelled or abandoned))
            except BaseException as error:
                pieces.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                chunk = (
                    self._last_chunk(chat, piece) if isinstance(piece, Generation) else AIMessageChunk(content=piece)
                )
                generation = ChatGenerationChunk(message=chunk)
                if run_manager is not None:
                    run_manager.on_llm_new_token(str(chunk.content), chunk=generation)
                yield generation
                if isinstance(piece, Generation):
                    return
        finally:
            # A reader that stops early frees its place in the engine.
            abandoned.set()
            worker.join()

    def _last_chunk(self, chat: _ChatRequest, output: Generation) -> AIMessageChunk:
        text, calls = chat.parse(output)
        rest = text if chat.tools else text[len(chat.decoder.emitted) :]
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=place)
            for place, call in enumerate(calls)
        ]
        return AIMessageChunk(
            content=rest,
            tool_call_chunks=chunks,
            usage_metadata=_usage(output),
            response_metadata=self._metadata(output),
            chunk_position="last",
        )

    def _metadata(self, output: Generation) -> dict[str, Any]:
        return {
            "model_name": self.base,
            "model_provider": "ratchet",
            "adapter": self.adapter,
            "adapter_hash": self.adapter_hash,
            "finish_reason": output.finish_reason,
        }


class _ChatRequest:
    """A conversation of langchain messages, prepared for the engine."""

    def __init__(
        self,
        model: LocalModel,
        conversation: Sequence[BaseMessage],
        stop: list[str] | None,
        options: Mapping[str, Any],
    ) -> None:
        if options.get("model") not in (None, model.base):
            raise ModelError(
                f"model {options['model']!r} was requested, but this engine has {model.base!r}; load the other one"
            )
        self.model = model
        choice = options.get("tool_choice")
        self.tools = () if choice == "none" else tuple(_read_spec(tool) for tool in options.get("tools") or ())
        self.must_call = bool(choice) and choice not in ("auto", "none")
        if self.must_call and choice not in (True, "any", "required"):
            self.tools = tuple(tool for tool in self.tools if tool.name == choice)
        self.stops = [text for text in stop or model.stop or () if text]
        self.options = options
        self.messages = _add_tools(from_langchain(conversation), self.tools, self.must_call)
        self.decoder = StreamDecoder(model.renderer, None, self.stops)

    def request(self, on_tokens: Callable[[Sequence[int]], bool]) -> Request:
        model, options = self.model, self.options
        return Request(
            ids=model.renderer.prompt(self.messages),
            end_of_turn=model.renderer.end_of_turn,
            max_new=int(options.get("max_tokens") or model.max_tokens),
            grammar=call_grammar(self.tools, text=not self.must_call) if self.tools else None,
            temperature=float(options.get("temperature", model.temperature)),
            top_p=float(options.get("top_p", model.top_p)),
            seed=int(options.get("seed", model.seed)),
            adapter=model.adapter,
            on_tokens=on_tokens,
            max_seconds=None if options.get("timeout") is None else float(options["timeout"]),
        )

    def parse(self, output: Generation) -> tuple[str, list[MessageToolCall]]:
        """Return the text of the answer and its tool calls, one of them empty."""
        text = text_before_stop(decode_generation(self.model.renderer, output), self.stops)[0]
        if not self.tools or not text.startswith('{"tool":') or output.finish_reason != "stop":
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


def _read_spec(tool: Mapping[str, Any]) -> ToolSpec:
    function = tool["function"]
    empty = {"type": "object", "properties": {}}
    return ToolSpec(function["name"], function.get("description", ""), function.get("parameters") or empty)


def _add_tools(conversation: list[Message], tools: Sequence[ToolSpec], must_call: bool) -> list[Message]:
    """Describe the tools in the system message."""
    if not tools:
        return conversation
    how = "Call a tool" if must_call else "Answer in plain text, or call a tool"
    description = "\n".join(
        [f'{how} by writing {{"tool":"name","args":{{...}}}}. Tools:']
        + [
            canonical({"name": tool.name, "description": tool.description, "parameters": tool.parameters})
            for tool in tools
        ]
    )
    if conversation and conversation[0].role == "system":
        return [Message("system", f"{conversation[0].text}\n\n{description}"), *conversation[1:]]
    return [Message("system", description), *conversation]


def _usage(output: Generation) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=output.prompt,
        output_tokens=len(output.ids),
        total_tokens=output.prompt + len(output.ids),
        input_token_details={"cache_read": output.cached},
    )
