"""The contestants of `bench-inference`. Each does tasks with the same weights, greedily, and says what each step took.

`ratchet` is the product as its users have it, log and recall included. `langgraph` is LangGraph's prebuilt agent over
`generate` of transformers; it is given our prompts and our grammar, without which the tuned model ends no step.
`smolagents` is its `ToolCallingAgent` over `TransformersModel` with the prompts it comes with; it is only told by which
keys a call goes. llama.cpp and vLLM stand in for our engine in our own loop, under our grammar. Everything is loaded,
and has computed something, before the clock of the first task starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from agent.llm.engine.sampling import Sampler
from agent.llm.engine.session import Request
from agent.llm.prompt.render import Frame, Message, Renderer, system_text, task_text
from agent.llm.prompt.step_grammar import parse_step, step_grammar
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.runtime import Runtime
from tests.bench.inference_tasks import VLLM_PACKAGES, Work, gguf_of, unlike_anything
from tools.context import ToolContext
from tuner.evaluation.checks import score
from tuner.evaluation.suite import SuiteTask

MOST_WRITTEN = 64
"""Tokens that a contestant without a grammar may write in a step."""
MOST_MASKED = 256
"""Under a grammar, which ends a step."""
WARM = 64
NEVER = -1
"""An end of turn that no token is."""


@dataclass
class StepRow:
    """One step: what it took, and of which tokens it was made."""

    seconds: float
    prompt: int
    """Tokens in front of it."""
    read: int
    """Of these, those that were computed and not taken from a cache."""
    written: int
    """Tokens that the step is made of."""
    sampled: int
    """Of these, those that were chosen and not forced by a grammar."""
    guessed: int = 0
    parsed: bool = True
    """Whether a call came of it."""


@dataclass
class TaskRow:
    """One task of one contestant."""

    task: str
    seconds: float
    """From the task's arrival to its end, tools and log included."""
    outcome: str
    solved: bool
    steps: list[StepRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Say = Callable[[str], None]


def ratchet(work: Work, dtype: str) -> list[TaskRow]:
    """Our engine, with the settings that every project begins with."""
    return _in_our_loop(work, Runtime(work.project))


def langgraph(work: Work, dtype: str) -> list[TaskRow]:
    """LangGraph's prebuilt agent."""
    from langgraph.prebuilt import create_react_agent  # type: ignore[import-not-found]

    with Runtime(work.project) as runtime:
        frame = runtime.frame()
        model = TransformersChat(work.merged, dtype, frame, work.project.settings.agent.max_steps)
        runtime.recalled(work.tasks[0].task)
        rows = []
        for task in work.tasks:
            model.begin(task)
            started = time.perf_counter()
            tools = _tools(runtime, task)
            for tool in tools:
                tool.return_direct = (tool.metadata or {}).get("ends") is not None
                tool.handle_tool_error = tool.handle_validation_error = True
            agent = create_react_agent(model, tools, prompt=system_text(frame))
            asked = HumanMessage(task_text(task.task, runtime.recalled(task.task)))
            state = agent.invoke({"messages": [asked]}, {"recursion_limit": 100})
            seconds = time.perf_counter() - started
            done = _as_trajectory(task, state["messages"])
            rows.append(_row(work, runtime, task, done, seconds, model.steps))
        return rows


def smolagents(work: Work, dtype: str) -> list[TaskRow]:
    """smolagents' agent for models that call tools."""
    import torch
    from smolagents import Tool, ToolCallingAgent, TransformersModel  # type: ignore[import-not-found]

    steps: list[StepRow] = []

    class Timed(TransformersModel):  # type: ignore[misc]
        def generate(self, messages: Any, **options: Any) -> Any:
            started = time.perf_counter()
            with torch.inference_mode():
                made = super().generate(messages, **options)
            read, written = made.token_usage.input_tokens, made.token_usage.output_tokens
            steps.append(StepRow(time.perf_counter() - started, read, read, written, written, parsed=False))
            return made

    model = Timed(
        str(work.merged),
        torch_dtype=dtype,
        max_new_tokens=MOST_WRITTEN,
        do_sample=False,
        tool_name_key="tool",
        tool_arguments_key="args",
    )
    _warm(model.model)
    most = work.project.settings.agent.max_steps
    rows = []
    with Runtime(work.project) as runtime:
        runtime.recalled(work.tasks[0].task)
        for task in work.tasks:
            steps.clear()
            started = time.perf_counter()
            tools = [tool for tool in _tools(runtime, task) if tool.name != "answer"]  # it has its own
            agent = ToolCallingAgent([Tool.from_langchain(tool) for tool in tools], model, verbosity_level=-1)
            answer = agent.run(
                task_text(task.task, runtime.recalled(task.task)),
                max_steps=most,
                return_full_result=True,
            )
            seconds = time.perf_counter() - started
            # When its steps are used up it asks once more for an answer in plain text.
            for row, step in zip(steps, agent.memory.steps[1:], strict=False):
                row.parsed = bool(getattr(step, "tool_calls", None))
            ended = answer.state == "success"
            calls = [
                Step(ToolCall(call.name, call.arguments if isinstance(call.arguments, dict) else {}))
                for step in agent.memory.steps
                for call in getattr(step, "tool_calls", None) or ()
                if getattr(step, "error", None) is None and call.name != "final_answer"
            ]
            last = Step(ToolCall("answer", {"text": str(answer.output), "citations": []}))
            outcome = Outcome.ANSWERED if ended else Outcome.OUT_OF_STEPS
            done = Trajectory(task.id, task.task, Provenance(), "", (*calls, last), outcome)
            rows.append(_row(work, runtime, task, done, seconds, steps))
    return rows


def llamacpp(work: Work, dtype: str) -> list[TaskRow]:
    """llama.cpp in our loop, with its cache of prompts, on four bits."""
    return _llamacpp(work, "Q4_1")


def llamacpp_q8(work: Work, dtype: str) -> list[TaskRow]:
    """The same on eight bits, in which more of an adapter is left."""
    return _llamacpp(work, "Q8_0")


def vllm(work: Work, dtype: str) -> list[TaskRow]:
    """vLLM's CPU build in our loop, with its cache of prompts."""
    from tests.bench.vllm_side import Settings, VllmStepper

    settings = Settings(dtype=dtype, runs=1)
    stepper = VllmStepper(work.merged, _renderer(work.merged), packages=VLLM_PACKAGES, settings=settings)
    try:
        return _in_our_loop(work, Runtime(work.project, model=stepper))
    finally:
        stepper.close()


SIDES: dict[str, Callable[[Work, str], list[TaskRow]]] = {
    "ratchet": ratchet,
    "smolagents": smolagents,
    "langgraph": langgraph,
    "llamacpp": llamacpp,
    "llamacpp_q8": llamacpp_q8,
    "vllm": vllm,
}


class TransformersChat(BaseChatModel):
    """A chat model over `generate` of transformers, which reads the whole prompt at each step and samples each token.

    It renders as our engine does and masks by the same grammar, so that a tuned model sees what it was tuned on.
    """

    _model: Any = PrivateAttr()
    _renderer: Renderer = PrivateAttr()
    _sampler: Sampler = PrivateAttr()
    _frame: Frame = PrivateAttr()
    _most: int = PrivateAttr()
    _task: SuiteTask = PrivateAttr()
    _steps: list[StepRow] = PrivateAttr(default_factory=list)

    def __init__(self, folder: Path, dtype: str, frame: Frame, most: int) -> None:
        """`most` steps are taken of a task."""
        super().__init__()
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype)).eval()
        self._renderer = _renderer(folder)
        self._sampler = Sampler(self._renderer.tokenizer, int(self._model.config.vocab_size), None)
        self._frame = frame
        self._most = most
        _warm(self._model)

    @property
    def steps(self) -> list[StepRow]:
        return self._steps

    def begin(self, task: SuiteTask) -> None:
        """A new task."""
        self._task = task
        self._steps = []

    @property
    def _llm_type(self) -> str:
        return "transformers-generate"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """The tools are told in the system prompt."""
        return super().bind()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if len(self._steps) >= self._most:
            return ChatResult(generations=[ChatGeneration(message=AIMessage("The end."))])
        started = time.perf_counter()
        done = _as_trajectory(self._task, messages)
        grammar = step_grammar(self._frame.shape(done.task, done.steps))
        end = self._renderer.end_of_turn
        ids = self._renderer.prompt([self._shown(message) for message in messages])
        said = continue_greedily(self._model, ids, MOST_MASKED, end, self._sampler.make_matcher(grammar, end))
        text = self._renderer.decode(said)
        row = StepRow(time.perf_counter() - started, len(ids), len(ids), len(said), len(said))
        self._steps.append(row)
        calls = []
        try:
            call = parse_step(text).call
            calls = [{"name": call.name, "args": dict(call.arguments), "id": str(len(messages))}]
        except ValueError:
            row.parsed = False
        message = AIMessage(text, tool_calls=calls, additional_kwargs={"ids": list(said)})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _shown(self, message: BaseMessage) -> Message:
        if isinstance(message, AIMessage):
            return Message("assistant", str(message.content), tuple(message.additional_kwargs["ids"]))
        if isinstance(message, ToolMessage):
            return Message("tool", str(message.content))
        return Message("user" if isinstance(message, HumanMessage) else "system", str(message.content))


def _llamacpp(work: Work, kind: str) -> list[TaskRow]:
    from tests.bench.llamacpp import LlamaCppStepper

    stepper = LlamaCppStepper(gguf_of(work, kind), _renderer(work.merged))
    return _in_our_loop(work, Runtime(work.project, model=stepper))


def _in_our_loop(work: Work, runtime: Runtime) -> list[TaskRow]:
    rows = []
    with runtime:
        engine = getattr(runtime.stepper(), "engine", None)
        if engine is not None:
            engine.generate(Request(tuple(unlike_anything(WARM, 1000, 0)), NEVER, max_new=4))
        else:
            # Of another engine: a task that is none of those measured.
            runtime.run(Task("warm", "Say hello."))
        runtime.recalled(work.tasks[0].task)
        for task in work.tasks:
            started = time.perf_counter()
            done = runtime.run(task.task, tools=task.tools)
            seconds = time.perf_counter() - started
            rows.append(_row(work, runtime, task, runtime.reveal(done), seconds, _steps_of(done)))
    return rows


def _steps_of(done: Trajectory) -> list[StepRow]:
    return [
        StepRow(
            step.model_seconds,
            step.usage.prompt,
            step.usage.prompt - step.usage.cached,
            step.usage.forced + step.usage.sampled,
            step.usage.sampled,
            step.usage.guessed,
            step.call is not None,
        )
        for step in done.steps
    ]


def _row(
    work: Work, runtime: Runtime, task: SuiteTask, done: Trajectory, seconds: float, steps: Sequence[StepRow]
) -> TaskRow:
    workspace = runtime.home.workspaces / done.id
    found = score(task, done, workspace, pristine=work.project.folder)
    runtime.clear_workspace(done.id)
    return TaskRow(task.id, seconds, str(done.outcome), found.success, list(steps))


def _tools(runtime: Runtime, task: SuiteTask) -> list[Any]:
    """What a run of this task has, in a fresh workspace."""
    workspace = runtime.home.workspaces / task.id
    runtime.clear_workspace(task.id)
    workspace.mkdir(parents=True)
    memory = runtime.memory if runtime.home.index.exists() else None
    facts = dict(task.task.facts)
    context = ToolContext(workspace, runtime.project.folder, facts=facts, task=task.task.text, retriever=memory)
    return runtime.tools(context, task.tools)


def _as_trajectory(task: SuiteTask, messages: Sequence[BaseMessage]) -> Trajectory:
    """What a graph did, as our record."""
    results = {one.tool_call_id: one for one in messages if isinstance(one, ToolMessage)}
    steps = []
    for message in messages:
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            result = results.get(call["id"] or "")
            failed = result is None or result.status == "error"
            passages = () if result is None or not isinstance(result.artifact, list) else tuple(result.artifact)
            text = "" if result is None else str(result.content)
            step = Step(ToolCall(call["name"], call["args"]), "" if failed else text, passages=passages)
            steps.append(replace(step, error=text or "not called") if failed else step)
    last = steps[-1].call.name if steps and steps[-1].call and steps[-1].error is None else ""
    outcome = {"answer": Outcome.ANSWERED, "hand_over": Outcome.REFUSED}.get(last, Outcome.OUT_OF_STEPS)
    return Trajectory(task.id, task.task, Provenance(), "", tuple(steps), outcome)


def _renderer(folder: Path) -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(str(folder)))


def _warm(model: Any) -> None:
    continue_greedily(model, unlike_anything(WARM, 1000, 0), 4, NEVER)


def continue_greedily(model: Any, ids: Sequence[int], count: int, end: int, matcher: Any = None) -> tuple[int, ...]:
    """What `generate` says, greedily, of what a grammar admits."""
    import torch
    from transformers import LogitsProcessorList

    class Masked:
        """Behind the prompt: the ids that were said go through the matcher, and it says which may come next."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] > len(ids):
                matcher.consume_token(int(input_ids[0, -1]))
            if matcher.is_stopped():
                allowed = numpy.array([end])
            else:
                bits = numpy.zeros((1, (scores.shape[-1] + 31) // 32), dtype=numpy.int32)
                matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.size * bits.itemsize)
                allowed = numpy.nonzero(
                    numpy.unpackbits(bits.view(numpy.uint8), bitorder="little")[: scores.shape[-1]]
                )[0]
            masked = torch.full_like(scores, float("-inf"))
            masked[:, allowed] = scores[:, allowed]
            return masked

    with torch.inference_mode():
        made = model.generate(
            torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=max(0, end),
            logits_processor=LogitsProcessorList([Masked()] if matcher is not None else []),
        )
    return tuple(made[0, len(ids) :].tolist())
