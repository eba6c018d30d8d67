"""Runs of a project: started, resumed after an interruption, or branched at a corrected step.

The loop itself is `agent.run.loop`. A call with an effect on the world is not repeated, neither when a run is resumed
nor when it is branched.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from langchain_core.tools import BaseTool

from agent.config.project import Home
from agent.encoders.encoder import Encoder
from agent.errors import AdapterError, StoreError, ToolsError
from agent.llm.served import ACTIVE
from agent.llm.step_model import Stepper
from agent.privacy.redaction import Scrubber
from agent.records.feedback import Correction
from agent.records.run import Branch, Recalled, Task, ToolCall, Trajectory
from agent.run.loop import advance, provenance_of, run
from agent.run.masking import RunScrubbers
from agent.run.state import Event, Options, Recorder, Run
from agent.run.tools import call_tool, effect_of, make_frame
from agent.storage.store import Store
from agent.util.ids import new_id, timestamp
from tools.context import Passage, ToolContext

INTERRUPTED = "The program was stopped during this call; whether it was done is not known. Check before trying again."

OnEvent = Callable[[Event], None]


class RunParts(Protocol):
    """What a run needs of its project. `agent.runtime.Runtime` implements it."""

    @property
    def home(self) -> Home: ...
    @property
    def store(self) -> Store: ...
    @property
    def encoder(self) -> Encoder: ...
    @property
    def options(self) -> Options: ...
    @property
    def scrubbers(self) -> RunScrubbers | None: ...
    def stepper(self, adapter: str | None = ACTIVE) -> Stepper: ...
    def recalled(self, task: Task) -> tuple[Recalled, ...]: ...
    def tool_context(self, task: Task, workspace: Path, seen: Sequence[Passage] = ()) -> ToolContext: ...
    def tools(self, context: ToolContext, names: Sequence[str] | None = None) -> list[BaseTool]: ...


def start_run(
    parts: RunParts,
    task: Task,
    *,
    adapter: str | None = ACTIVE,
    tools: Sequence[str] | None = None,
    workspace: Path | None = None,
    run_id: str | None = None,
    recorder: Recorder | None = None,
    cancelled: threading.Event | None = None,
    on_event: OnEvent | None = None,
    options: Options | None = None,
    recall: bool = True,
) -> Trajectory:
    """Do a task; see `agent.runtime.Runtime.run`."""
    run_id = run_id or new_id()
    # Tools first: an error in a tool file is reported before a model is loaded.
    project_tools = parts.tools(_context(parts, run_id, task, workspace), tools)
    return run(
        task,
        parts.stepper(adapter),
        project_tools,
        options=options or parts.options,
        run_id=run_id,
        recorder=parts.store if recorder is None else recorder,
        scrubber=_scrubber(parts, run_id),
        recall=parts.recalled if recall else None,
        cancelled=cancelled,
        on_event=on_event,
        encoder=lambda: parts.encoder,
    )


def resume_run(
    parts: RunParts,
    run_id: str,
    *,
    cancelled: threading.Event | None = None,
    on_event: OnEvent | None = None,
) -> Trajectory:
    """Continue an interrupted run, or branch a run at its first corrected step; see `agent.runtime.Runtime.resume`."""
    trajectory = parts.store.get(run_id)
    corrections = parts.store.feedback.newest_corrections(trajectory.id)
    if corrections:
        return branch_run(parts, trajectory, corrections[min(corrections)], cancelled=cancelled, on_event=on_event)
    if trajectory.outcome is not None:
        how = "correct one of its steps to take it up from there" if trajectory.steps else "start the task again"
        raise StoreError(f"run {trajectory.id} has ended ({trajectory.outcome}): {trajectory.outcome.meaning}; {how}")
    if parts.scrubbers is not None:
        parts.scrubbers.for_record(trajectory, parts.store)
    state = _restore(parts, trajectory, cancelled, on_event)
    intent = parts.store.open_intent(trajectory.id)
    if intent is not None and intent.call is not None:
        if _effect(state, intent.call) != "world":
            return advance(state, intent)
        interrupted = replace(intent, error=INTERRUPTED, effect_unknown=True)
        parts.store.add_step(trajectory.id, len(trajectory.steps), interrupted)
        state.trajectory = trajectory.with_step(interrupted)
        state.notify("observed", step=interrupted)
    return advance(state)


def branch_run(
    parts: RunParts,
    parent: Trajectory,
    correction: Correction,
    *,
    cancelled: threading.Event | None = None,
    on_event: OnEvent | None = None,
) -> Trajectory:
    """Begin a run that shares the parent's steps before the corrected one, make the corrected call, and continue.

    Raises:
        ToolsError: a shared call that succeeded in the parent fails when it is repeated in the new workspace.
    """
    run_id = new_id()
    if parts.scrubbers is not None:
        parts.scrubbers.share(run_id, parts.scrubbers.for_record(parent, parts.store))
    shared = replace(
        parent,
        id=run_id,
        steps=parent.steps[: correction.step],
        started_at=timestamp(),
        outcome=None,
        error=None,
        ended_at=None,
        branch=Branch(parent.id, correction.step),
    )
    state = _restore(parts, shared, cancelled, on_event)
    provenance = provenance_of(state.stepper, state.frame, state.options)
    provenance = replace(provenance, recalled=parent.provenance.recalled)
    state.trajectory = shared = replace(shared, provenance=provenance)
    _replay(state)
    parts.store.begin(shared)
    state.notify("started")
    return advance(state, correction.without_copies(parent.steps[correction.step]).as_step())


def _restore(
    parts: RunParts, trajectory: Trajectory, cancelled: threading.Event | None, on_event: OnEvent | None
) -> Run:
    """The state of a recorded run, with the tools that it had where the project still has them."""
    names = set(trajectory.provenance.tools)
    every = parts.tools(_context(parts, trajectory.id, trajectory.task, None, trajectory.passages))
    tools = [tool for tool in every if tool.name in names] or every
    return Run(
        trajectory=trajectory,
        stepper=_stepper(parts, trajectory),
        tools={tool.name: tool for tool in tools},
        frame=make_frame(tools, parts.options),
        options=parts.options,
        recorder=parts.store,
        scrubber=_scrubber(parts, trajectory.id),
        cancelled=cancelled or threading.Event(),
        on_event=on_event or (lambda event: None),
        encoder=lambda: parts.encoder,
    )


def _replay(state: Run) -> None:
    """Bring a new workspace to where the shared steps had left the parent's."""
    for index, step in enumerate(state.trajectory.steps):
        if step.call is None or step.error is not None or _effect(state, step.call) != "workspace":
            continue
        arguments = dict(step.call.arguments)
        if state.scrubber is not None:
            arguments = state.scrubber.unmask(arguments)
        try:
            call_tool(state.tools[step.call.name], ToolCall(step.call.name, arguments))
        except (Exception, SystemExit, asyncio.CancelledError) as fault:
            raise ToolsError(
                f"step {index} ({step.call.name}) succeeded in the run and fails when it is repeated for its "
                f"branch ({type(fault).__name__}: {fault}); correct the tool, or this step"
            ) from fault


def _stepper(parts: RunParts, trajectory: Trajectory) -> Stepper:
    """A resumed run stays on the adapter it began with, as long as that exists."""
    if trajectory.branch is None and trajectory.provenance.adapter is not None:
        with suppress(AdapterError):
            return parts.stepper(trajectory.provenance.adapter)
    return parts.stepper(None if trajectory.branch is None and trajectory.steps else ACTIVE)


def _effect(state: Run, call: ToolCall) -> str:
    return effect_of(state.tools.get(call.name))


def _scrubber(parts: RunParts, run_id: str) -> Scrubber | None:
    return None if parts.scrubbers is None else parts.scrubbers.get(run_id)


def _context(
    parts: RunParts, run_id: str, task: Task, workspace: Path | None, seen: Sequence[Passage] = ()
) -> ToolContext:
    folder = workspace or parts.home.workspaces / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return parts.tool_context(task, folder, seen)
