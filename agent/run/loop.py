"""The plan-act loop: propose a step, perform it, record it, until an answer or another outcome.

Synchronous; the service runs it in a thread. The model's mistakes (a step that cannot be parsed, wrong arguments, a
call that a tool refuses) and all exceptions of tools are recorded in the step and shown to the model, and the run goes
on. Only failures of our own (model, renderer, store) end the run as crashed, with the error in the record.
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
from agent.run.answers import check_grounding, citation_fault, ending_outcome, quote_fault, without_answer
from agent.run.limits import REPEATED, count_repeats, exceeded_budget, has_failed
from agent.run.state import Event, Options, Recorder, Run, Unrecorded
from agent.run.tools import (
    call_tool,
    describe_exception,
    effect_of,
    is_ctrl_c,
    make_frame,
    replace_surrogates,
    truncate_observation,
)
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
    """Do a task, until an answer or another outcome. Mistakes of the model raise nothing.

    Args:
        task: what is to be done.
        model: proposes the steps.
        tools: one of them must end the run, as `tools.basics.answer` does.
        options: the budget and the form of a step.
        run_id: None for a new id.
        recorder: receives each step before the next begins; None records nothing.
        scrubber: masks secrets and personal data in the record; None masks nothing.
        recall: called once, with the masked task; returns the solved tasks for the prompt.
        cancelled: ends the run within a step.
        on_event: called in this thread, and for the model's text in that of the engine. Where `options.grounded` is
            "withhold", an answer is in no event before it was checked.
        encoder: called when an answer is checked.

    Raises:
        ValueError: answers are to be checked and there is no encoder.
    """
    options = options or Options()
    if options.grounded != "off" and encoder is None:
        raise ValueError(
            f"answers are to be checked (grounded = {options.grounded!r}) and there is no encoder; give one"
        )
    stepper = as_stepper(model)
    frame = make_frame(tools, options)
    masked = task if scrubber is None else _masked_task(task, scrubber)
    provenance = provenance_of(stepper, frame, options)
    if recall is not None:
        provenance = replace(provenance, recalled=tuple(recall(masked)))
    trajectory = Trajectory(run_id or new_id(), masked, provenance, started_at=timestamp())
    state = Run(
        trajectory=trajectory,
        stepper=stepper,
        tools={tool.name: tool for tool in tools},
        frame=frame,
        options=options,
        recorder=recorder or Unrecorded(),
        scrubber=scrubber,
        cancelled=cancelled or threading.Event(),
        on_event=on_event or (lambda event: None),
        encoder=encoder,
    )
    state.recorder.begin(trajectory)
    state.notify("started")
    return advance(state)


def stream(task: Task, model: BaseChatModel | Stepper, tools: Sequence[BaseTool], **rest: Any) -> Iterator[Event]:
    """Run a task and yield its events, the last of which is `ended`. Closing the iterator cancels the run."""
    cancelled: threading.Event = rest.pop("cancelled", None) or threading.Event()
    yield from stream_events(
        lambda on_event: run(task, model, tools, on_event=on_event, cancelled=cancelled, **rest), cancelled
    )


def stream_events(work: Callable[[Callable[[Event], None]], object], cancelled: threading.Event) -> Iterator[Event]:
    """Yield the events that `work` passes to its argument, from a thread of its own.

    Args:
        work: Does a run; what it raises is raised here.
        cancelled: Set when the iterator is closed; the thread is then waited for.
    """
    events: SimpleQueue[Event | BaseException | None] = SimpleQueue()

    def produce() -> None:
        try:
            work(events.put)
            events.put(None)
        except BaseException as fault:
            events.put(fault)

    worker = threading.Thread(target=produce, name="ratchet-run", daemon=True)
    worker.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        cancelled.set()
        worker.join()


def advance(state: Run, first: Step | None = None) -> Trajectory:
    """Take steps until the run ends, beginning with the proposed step `first` if it is given."""
    outcome: Outcome | None = None
    error = None
    try:
        outcome = outcome_of_last_step(state) if first is None else perform(state, first)
        while outcome is None:
            outcome = exceeded_budget(state.trajectory, state.options.budget, time.monotonic() - state.started)
            if state.cancelled.is_set():
                outcome = Outcome.CANCELLED
            if outcome is None:
                outcome = take_step(state)
    except Exception:
        outcome, error = Outcome.CRASHED, state.mask(traceback.format_exc(limit=-6))
    ended_at = timestamp()
    state.recorder.end(state.trajectory.id, outcome, ended_at, error)
    state.trajectory = replace(state.trajectory, outcome=outcome, ended_at=ended_at, error=error)
    state.notify("ended")
    return state.trajectory


def take_step(state: Run) -> Outcome | None:
    """Propose, perform and record a step. Returns the outcome if the run ends with it."""
    trajectory = state.trajectory
    budget = state.options.budget
    proposal = state.stepper.propose(
        trajectory,
        state.frame,
        temperature=state.options.temperature,
        seed=state.options.seed + len(trajectory.steps),
        max_tokens=max(1, budget.tokens - trajectory.tokens),
        max_seconds=budget.seconds - (time.monotonic() - state.started),
        cancelled=state.cancelled,
        on_text=None if state.withholds else lambda text: state.notify("text", text=text),
    )
    if proposal.finish_reason == "cancelled":
        return Outcome.CANCELLED
    if proposal.finish_reason == "length":
        return Outcome.OUT_OF_TOKENS
    if proposal.finish_reason == "timeout":
        return Outcome.OUT_OF_TIME
    return perform(state, _as_step(state, proposal))


def perform(state: Run, step: Step) -> Outcome | None:
    """Perform and record a proposed step. Before a tool with an effect runs, the intent is durable."""
    index = len(state.trajectory.steps)
    if step.call is None:
        _record(state, index, step)
        return outcome_of_last_step(state)
    if effect_of(state.tools.get(step.call.name)) != "read":
        state.recorder.intend(state.trajectory.id, index, step)
    state.notify("proposed", step=without_answer(state, step))
    observed = _observe(state, step)
    if count_repeats(state.trajectory.steps, observed) and (
        ending_outcome(state, step.call) is None or observed.error is not None
    ):
        observed = replace(observed, notice=REPEATED)
    _record(state, index, observed)
    return outcome_of_last_step(state)


def outcome_of_last_step(state: Run) -> Outcome | None:
    """Return the outcome that the last recorded step brings; None where the run goes on.

    A run may be interrupted between that step and its end.
    """
    if not state.trajectory.steps:
        return None
    *before, last = state.trajectory.steps
    if last.call is None:
        return Outcome.FAILED if has_failed(state.trajectory.steps) else None
    ends = ending_outcome(state, last.call)
    if ends is not None and last.error is None:
        return Outcome(ends)
    return Outcome.LOOPING if count_repeats(before, last) >= 2 else None


def provenance_of(stepper: Stepper, frame: Frame, options: Options) -> Provenance:
    """Return what produces a run, without recalled tasks."""
    return replace(
        stepper.provenance(),
        prompt_version=frame.version,
        tools={tool.name: tool_version(tool) for tool in frame.tools},
        seed=options.seed,
        temperature=options.temperature,
    )


def _as_step(state: Run, proposal: Proposal) -> Step:
    return Step(
        proposal.call,
        thought=proposal.thought,
        plan=proposal.plan,
        error=proposal.error,
        said=proposal.text,
        token_ids=proposal.token_ids,
        usage=proposal.usage,
        model_seconds=proposal.seconds,
    )


def _observe(state: Run, step: Step) -> Step:
    """Return the step with the result of its tool, or with the error."""
    assert step.call is not None
    started = time.perf_counter()
    tool = state.tools.get(step.call.name)
    passages: tuple[Passage, ...] = ()
    observation, error, effect_unknown = "", None, False
    if tool is None:
        error = f"There is no tool {step.call.name!r}. Tools: {', '.join(state.tools)}."
    elif (error := citation_fault(state, step.call) or quote_fault(state, step.call)) is None:
        arguments = step.call.arguments if state.scrubber is None else state.scrubber.unmask(dict(step.call.arguments))
        try:
            observation, passages = call_tool(tool, ToolCall(step.call.name, arguments))
        # Whatever a tool raises is the tool's fault: sys.exit and the cancellation of its own tasks as well.
        except BaseException as fault:
            if is_ctrl_c(fault):
                raise
            error, effect_unknown = describe_exception(state, tool, fault)
            if _log.isEnabledFor(logging.DEBUG):
                trace = state.mask(traceback.format_exc())
                _log.debug("run %s, step %d: %s", state.trajectory.id, len(state.trajectory.steps), trace)
    observation = state.mask(truncate_observation(replace_surrogates(observation)))
    if state.scrubber is not None:
        passages = tuple(replace(passage, text=state.scrubber.mask(passage.text)) for passage in passages)
    seconds = time.perf_counter() - started
    return replace(
        step,
        observation=observation,
        error=None if error is None else state.mask(truncate_observation(replace_surrogates(error))),
        passages=passages,
        tool_seconds=seconds,
        effect_unknown=effect_unknown,
        grounding=None if error is not None else check_grounding(state, step),
    )


def _record(state: Run, index: int, step: Step) -> None:
    state.recorder.add_step(state.trajectory.id, index, step)
    state.trajectory = state.trajectory.with_step(step)
    state.notify("observed", step=step)


def _masked_task(task: Task, scrubber: Scrubber) -> Task:
    facts = {name: scrubber.mask(value) for name, value in task.facts.items()}
    return replace(task, text=scrubber.mask(task.text), facts=facts)
