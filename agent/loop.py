"""The plan-act loop: propose a step, do it, write it down, until an answer or a named outcome.

Synchronous; a service runs it in a thread. The model's mistakes (a step that cannot be read, wrong arguments,
a tool's refusal) go back to the model, and so does whatever a tool raises: the step is recorded with its error and the
run goes on. Only failures of our own (model, renderer, store) end the run as crashed, with the error in the record.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Literal, Protocol
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError

from agent.llm.grammar import ToolSpec
from agent.llm.quotes import MAX_QUOTES, quotable, quoted
from agent.llm.render import Frame, tool_version
from agent.llm.stepper import Proposal, Stepper, as_stepper
from agent.memory.encoder import Encoder
from agent.memory.grounding import Mode, check_answer
from agent.planner import REPEATED, Budget, has_failed, repeats, used_up
from agent.scrub import Scrubber
from agent.trajectory import Grounding, Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from tools.context import Passage

MAX_OBSERVATION = 2400
"""Characters of a tool's result that the model is shown; the rest is cut, saying so."""

MAX_EXCEPTION = 300
"""Characters of an exception's message that the model is shown."""

EFFECT_UNKNOWN = "Whether it took effect is not known; check before you call it again."
"""What the model is told when a tool that has an effect raised an exception."""

DEFAULT_INSTRUCTIONS = "You are a helpful agent. Use the tools to do the task, then answer."


_log = logging.getLogger("ratchet.run")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for whoever watches."""

    kind: Literal["started", "text", "proposed", "observed", "ended"]
    trajectory: Trajectory
    """The run so far."""
    text: str = ""
    """A piece of what the model is saying, for `text`."""
    step: Step | None = None
    """For `proposed`, before the tool ran, and `observed`, after it."""


class Recorder(Protocol):
    """Keeps a run as it goes. `agent.store.Store` is one; `Unrecorded` keeps nothing."""

    def begin(self, trajectory: Trajectory) -> None: ...
    def intend(self, run_id: str, index: int, step: Step) -> None: ...
    def add_step(self, run_id: str, index: int, step: Step) -> None: ...
    def end(self, run_id: str, outcome: Outcome, ended_at: str, error: str | None = None) -> None: ...


class Unrecorded:
    """A recorder that keeps nothing: the trajectory that `run` returns is all there is."""

    def begin(self, trajectory: Trajectory) -> None:
        pass

    def intend(self, run_id: str, index: int, step: Step) -> None:
        pass

    def add_step(self, run_id: str, index: int, step: Step) -> None:
        pass

    def end(self, run_id: str, outcome: Outcome, ended_at: str, error: str | None = None) -> None:
        pass


@dataclass(frozen=True)
class Options:
    """How a run is done."""

    budget: Budget = field(default_factory=Budget)
    temperature: float = 0.0
    seed: int = 0
    plan: bool = True
    thought: bool = True
    instructions: str = DEFAULT_INSTRUCTIONS
    grounded: Mode = "off"
    """Whether the sentences of an answer that nothing shown supports are marked, or withheld."""


@dataclass
class Run:
    """A run in the making: what it works with, and how far it is."""

    trajectory: Trajectory
    stepper: Stepper
    tools: dict[str, BaseTool]
    frame: Frame
    options: Options
    recorder: Recorder = field(default_factory=Unrecorded)
    scrubber: Scrubber | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    on_event: Callable[[Event], None] = lambda event: None
    encoder: Callable[[], Encoder] | None = None
    """Called when an answer is to be checked and words alone do not tell."""
    started: float = field(default_factory=time.monotonic)

    def tell(self, kind: Any, *, text: str = "", step: Step | None = None) -> None:
        self.on_event(Event(kind, self.trajectory, text, step))

    @property
    def withholds(self) -> bool:
        """Whether nobody may see an answer before it was checked."""
        return self.options.grounded == "withhold"


def run(
    task: Task,
    model: BaseChatModel | Stepper,
    tools: Sequence[BaseTool],
    *,
    options: Options | None = None,
    run_id: str | None = None,
    recorder: Recorder | None = None,
    scrubber: Scrubber | None = None,
    recall: Callable[[Task], Sequence[Recalled]] | None = None,
    cancelled: threading.Event | None = None,
    on_event: Callable[[Event], None] | None = None,
    encoder: Callable[[], Encoder] | None = None,
) -> Trajectory:
    """Do a task: plan, act, observe, until an answer or another outcome. Never raises on the model's account.

    `tools` must hold one whose call ends the run, such as `tools.basics.answer`. `cancelled` ends the run within a
    step. `recall` is asked once, with the task as it is logged. `on_event` is called in this thread, for the
    model's text in the engine's; where answers are withheld, neither text nor an answer comes before it was checked.
    Checking one asks for `encoder`.
    """
    options = options or Options()
    if options.grounded != "off" and encoder is None:
        raise ValueError(
            f"answers are to be checked (grounded = {options.grounded!r}) and there is no encoder; give one"
        )
    stepper = as_stepper(model)
    frame = make_frame(tools, options)
    masked = task if scrubber is None else _masked_task(task, scrubber)
    made_by = provenance_of(stepper, frame, options)
    if recall is not None:
        made_by = replace(made_by, recalled=tuple(recall(masked)))
    trajectory = Trajectory(run_id or new_id(), masked, made_by, started_at=timestamp())
    going = Run(
        trajectory,
        stepper,
        {tool.name: tool for tool in tools},
        frame,
        options,
        recorder or Unrecorded(),
        scrubber,
        cancelled or threading.Event(),
        on_event or (lambda event: None),
        encoder,
    )
    going.recorder.begin(trajectory)
    going.tell("started")
    return advance(going)


def stream(task: Task, model: BaseChatModel | Stepper, tools: Sequence[BaseTool], **rest: Any) -> Iterator[Event]:
    """`run` as a stream of its events, the last of them `ended`. A reader that stops early cancels it."""
    events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
    cancelled: threading.Event = rest.pop("cancelled", None) or threading.Event()

    def work() -> None:
        try:
            run(task, model, tools, on_event=events.put, cancelled=cancelled, **rest)
            events.put(None)
        except BaseException as fault:
            events.put(fault)

    worker = threading.Thread(target=work, name="ratchet-run", daemon=True)
    worker.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        cancelled.set()
        worker.join()


def advance(going: Run, first: Step | None = None) -> Trajectory:
    """Take steps until the run ends; it may hold steps already, and `first` is one to do before all else."""
    outcome: Outcome | None = None
    error = None
    try:
        outcome = ended_by_last(going) if first is None else perform(going, first)
        while outcome is None:
            outcome = used_up(going.trajectory, going.options.budget, time.monotonic() - going.started)
            if going.cancelled.is_set():
                outcome = Outcome.CANCELLED
            if outcome is None:
                outcome = take_step(going)
    except Exception:
        outcome, error = Outcome.CRASHED, _mask(going, traceback.format_exc(limit=-6))
    ended_at = timestamp()
    going.recorder.end(going.trajectory.id, outcome, ended_at, error)
    going.trajectory = replace(going.trajectory, outcome=outcome, ended_at=ended_at, error=error)
    going.tell("ended")
    return going.trajectory


def take_step(going: Run) -> Outcome | None:
    """One step: propose, do, write down. Returns the outcome if the run ends with it."""
    trajectory = going.trajectory
    budget = going.options.budget
    proposal = going.stepper.propose(
        trajectory,
        going.frame,
        temperature=going.options.temperature,
        seed=going.options.seed + len(trajectory.steps),
        max_tokens=max(1, budget.tokens - trajectory.tokens),
        max_seconds=budget.seconds - (time.monotonic() - going.started),
        cancelled=going.cancelled,
        on_text=None if going.withholds else lambda text: going.tell("text", text=text),
    )
    if proposal.end == "cancelled":
        return Outcome.CANCELLED
    if proposal.end == "length":
        return Outcome.OUT_OF_TOKENS
    if proposal.end == "late":
        return Outcome.OUT_OF_TIME
    return perform(going, _as_step(going, proposal))


def perform(going: Run, step: Step) -> Outcome | None:
    """Do a proposed step and write it down. Before a tool that has an effect runs, the intent is durable."""
    index = len(going.trajectory.steps)
    if step.call is None:
        _write(going, index, step)
        return ended_by_last(going)
    if effect_of(going.tools.get(step.call.name)) != "read":
        going.recorder.intend(going.trajectory.id, index, step)
    going.tell("proposed", step=_without_words(going, step))
    done = _observe(going, step)
    if repeats(going.trajectory.steps, done) and (_ends(going, step.call) is None or done.error is not None):
        done = replace(done, notice=REPEATED)
    _write(going, index, done)
    return ended_by_last(going)


def ended_by_last(going: Run) -> Outcome | None:
    """The outcome the last recorded step brings: a run may be cut off between that step and its end."""
    if not going.trajectory.steps:
        return None
    *before, last = going.trajectory.steps
    if last.call is None:
        return Outcome.FAILED if has_failed(going.trajectory.steps) else None
    ends = _ends(going, last.call)
    if ends is not None and last.error is None:
        return Outcome(ends)
    return Outcome.LOOPING if repeats(before, last) >= 2 else None


def make_frame(tools: Sequence[BaseTool], options: Options) -> Frame:
    """What the model is told of these tools, in their order."""
    return Frame(options.instructions, tuple(describe(tool) for tool in tools), options.plan, options.thought)


def describe(tool: BaseTool) -> ToolSpec:
    """What the model is told of a tool."""
    function = convert_to_openai_tool(tool)["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    marks = tool.metadata or {}
    return ToolSpec(
        tool.name,
        function.get("description", ""),
        parameters,
        marks.get("ends"),
        tuple(marks.get("copied", ())),
        marks.get("quoted"),
    )


def effect_of(tool: BaseTool | None) -> str:
    """What a call of this tool touches: `read` nothing, `workspace`, or `world`, also of a tool that does not say."""
    return "read" if tool is None else str((tool.metadata or {}).get("effect", "world"))


def provenance_of(stepper: Stepper, frame: Frame, options: Options) -> Provenance:
    return replace(
        stepper.provenance(),
        prompt_version=frame.version,
        tools={tool.name: tool_version(tool) for tool in frame.tools},
        seed=options.seed,
        temperature=options.temperature,
    )


def new_id() -> str:
    """A run id: sortable by time, unique enough for one store."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:8]}"


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class ResultError(ToolException):
    """A tool ran and returned what cannot be shown to the model."""


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
    found = message.artifact if isinstance(message.artifact, list) else []
    return message.text, tuple(one for one in found if isinstance(one, Passage))


def shortened(text: str) -> str:
    """What a tool said, as long as the model is shown of it."""
    if len(text) <= MAX_OBSERVATION:
        return text
    return f"{text[:MAX_OBSERVATION]} [cut: {len(text) - MAX_OBSERVATION} more characters]"


def _as_step(going: Run, proposal: Proposal) -> Step:
    return Step(
        proposal.call,
        thought=proposal.thought,
        plan=proposal.plan,
        error=proposal.error,
        said=proposal.said,
        token_ids=proposal.token_ids,
        usage=proposal.usage,
        model_seconds=proposal.seconds,
    )


def _ends(going: Run, call: ToolCall) -> str | None:
    """The outcome that this call's tool ends a run with, if it is one that does."""
    tool = going.tools.get(call.name)
    return None if tool is None else (tool.metadata or {}).get("ends")


def _not_shown(going: Run, call: ToolCall) -> str | None:
    """What is wrong with the passages an answer cites: a model without our grammar may name any."""
    cited = call.arguments.get("citations")
    shown = [passage.label for passage in going.trajectory.passages]
    if _ends(going, call) is None or not isinstance(cited, list) or all(label in shown for label in cited):
        return None
    wrong = ", ".join(str(label) for label in cited if label not in shown)
    return f"No passage {wrong} was shown; cite {', '.join(map(str, shown)) or 'none'}."


def _not_quoted(going: Run, call: ToolCall) -> str | None:
    """What is wrong with a text that is to quote the tools: a model without our grammar may say anything."""
    tool = going.tools.get(call.name)
    name = None if tool is None else (tool.metadata or {}).get("quoted")
    said = call.arguments.get(name) if name else None
    if not isinstance(said, str) or quoted(said, quotable(going.trajectory.steps)) is not None:
        return None
    return f"{name} must be one or {MAX_QUOTES} whole sentences that tools said, word for word."


def _observe(going: Run, step: Step) -> Step:
    """The step with what its tool gave back, or with why it refused."""
    assert step.call is not None
    started = time.perf_counter()
    tool = going.tools.get(step.call.name)
    passages: tuple[Passage, ...] = ()
    observation, error, effect_unknown = "", None, False
    if tool is None:
        error = f"There is no tool {step.call.name!r}. Tools: {', '.join(going.tools)}."
    elif (error := _not_shown(going, step.call) or _not_quoted(going, step.call)) is None:
        arguments = step.call.arguments if going.scrubber is None else going.scrubber.unmask(dict(step.call.arguments))
        try:
            observation, passages = call_tool(tool, ToolCall(step.call.name, arguments))
        # Whatever a tool raises is the tool's fault: sys.exit and the cancellation of its own tasks as well.
        except BaseException as fault:
            if _is_ctrl_c(fault):
                raise
            error, effect_unknown = _tool_error(going, tool, fault)
            if _log.isEnabledFor(logging.DEBUG):
                trace = _mask(going, traceback.format_exc())
                _log.debug("run %s, step %d: %s", going.trajectory.id, len(going.trajectory.steps), trace)
    observation = _mask(going, shortened(_without_surrogates(observation)))
    if going.scrubber is not None:
        passages = tuple(replace(one, text=going.scrubber.mask(one.text)) for one in passages)
    seconds = time.perf_counter() - started
    return replace(
        step,
        observation=observation,
        error=None if error is None else _mask(going, shortened(_without_surrogates(error))),
        passages=passages,
        tool_seconds=seconds,
        effect_unknown=effect_unknown,
        grounding=None if error is not None else _grounding(going, step),
    )


def _tool_error(going: Run, tool: BaseTool, fault: BaseException) -> tuple[str, bool]:
    """What the model is shown of an exception out of a tool, and whether the call may have taken effect."""
    has_effect = effect_of(tool) != "read"
    if isinstance(fault, ResultError):
        return f"{fault} {EFFECT_UNKNOWN}" if has_effect else str(fault), has_effect
    if isinstance(fault, ToolException):
        return str(fault).strip() or f"{tool.name} refused and did not say why.", False
    if isinstance(fault, ValidationError) and _is_of_arguments(tool, fault):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors()), False
    # Masked before it is cut: of half an address nothing would be masked.
    message = _mask(going, " ".join(str(fault).split()))
    if len(message) > MAX_EXCEPTION:
        message = f"{message[:MAX_EXCEPTION]}…"
    raised = f"{tool.name} raised {type(fault).__name__}" + (f": {message.rstrip('.')}." if message else ".")
    return f"{raised} {EFFECT_UNKNOWN}" if has_effect else raised, has_effect


def _is_of_arguments(tool: BaseTool, fault: ValidationError) -> bool:
    """Whether a validation failed for the call's arguments, and not for something inside the tool."""
    return fault.title == getattr(tool.get_input_schema(), "__name__", None)


def _is_ctrl_c(fault: BaseException) -> bool:
    """Whether the user interrupts the program; signals reach the main thread alone."""
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


def _without_surrogates(text: str) -> str:
    """The text with what cannot be written as UTF-8, such as half of a file name's character, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _grounding(going: Run, step: Step) -> Grounding | None:
    """What the check of an answer finds. What a person put in its place is not checked: they stand behind it."""
    words = _answer_of(going, step)
    mode = going.options.grounded
    if words is None or mode == "off" or step.author == "correction":
        return None
    assert going.encoder is not None
    return check_answer(going.trajectory.task.text, words, going.trajectory.steps, going.encoder, mode)


def _answer_of(going: Run, step: Step) -> str | None:
    """The text of a call that ends the run with an answer in words."""
    if step.call is None or _ends(going, step.call) != Outcome.ANSWERED:
        return None
    words = step.call.arguments.get("text")
    return words if isinstance(words, str) else None


def _without_words(going: Run, step: Step) -> Step:
    """The step as it may be told before its answer was checked."""
    if not going.withholds or step.call is None or _answer_of(going, step) is None:
        return step
    return replace(step, call=replace(step.call, arguments={**step.call.arguments, "text": ""}), token_ids=())


def _write(going: Run, index: int, step: Step) -> None:
    going.recorder.add_step(going.trajectory.id, index, step)
    going.trajectory = going.trajectory.with_step(step)
    going.tell("observed", step=step)


def _mask(going: Run, text: str) -> str:
    return text if going.scrubber is None else going.scrubber.mask(text)


def _masked_task(task: Task, scrubber: Scrubber) -> Task:
    facts = {name: scrubber.mask(value) for name, value in task.facts.items()}
    return replace(task, text=scrubber.mask(task.text), facts=facts)
