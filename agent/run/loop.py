"""The plan-act loop: propose a step, do it, write it down, until an answer or a named outcome.

Synchronous; a service runs it in a thread. The model's mistakes (a step that cannot be read, wrong arguments,
a tool's refusal) go back to the model, and so does whatever a tool raises: the step is recorded with its error and the
run goes on. Only failures of our own (model, renderer, store) end the run as crashed, with the error in the record.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from agent.encoders.encoder import Encoder
from agent.llm.prompt.render import Frame, tool_version
from agent.llm.step_model import Proposal, Stepper, as_stepper
from agent.privacy.redaction import Scrubber
from agent.records.run import Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from agent.run.answers import _ends, _grounding, _not_quoted, _not_shown, _without_words
from agent.run.limits import REPEATED, has_failed, repeats, used_up
from agent.run.state import Event, Options, Recorder, Run, Unrecorded, _mask
from agent.run.tools import _is_ctrl_c, _tool_error, _without_surrogates, call_tool, effect_of, make_frame, shortened
from agent.util.ids import new_id, timestamp
from tools.context import Passage

_log = logging.getLogger("ratchet.run")


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


def provenance_of(stepper: Stepper, frame: Frame, options: Options) -> Provenance:
    return replace(
        stepper.provenance(),
        prompt_version=frame.version,
        tools={tool.name: tool_version(tool) for tool in frame.tools},
        seed=options.seed,
        temperature=options.temperature,
    )


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


def _write(going: Run, index: int, step: Step) -> None:
    going.recorder.add_step(going.trajectory.id, index, step)
    going.trajectory = going.trajectory.with_step(step)
    going.tell("observed", step=step)


def _masked_task(task: Task, scrubber: Scrubber) -> Task:
    facts = {name: scrubber.mask(value) for name, value in task.facts.items()}
    return replace(task, text=scrubber.mask(task.text), facts=facts)
