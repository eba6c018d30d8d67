"""The state of a run in progress, its options, its events, and the protocol of what records it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from langchain_core.tools import BaseTool

from agent.encoders.encoder import Encoder
from agent.grounding.check import Mode
from agent.llm.prompt.render import Frame
from agent.llm.step_model import Stepper
from agent.privacy.redaction import Scrubber
from agent.records.run import Outcome, Step, Trajectory
from agent.run.limits import Budget

DEFAULT_INSTRUCTIONS = "You are a helpful agent. Use the tools to do the task, then answer."

EventKind = Literal["started", "text", "proposed", "observed", "ended"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for an observer."""

    kind: EventKind
    trajectory: Trajectory
    """The run so far."""
    text: str = ""
    """A piece of the model's output, for `text`."""
    step: Step | None = None
    """For `proposed`, before the tool ran, and `observed`, after it."""


class Recorder(Protocol):
    """Records a run step by step. Implemented by `agent.storage.store.Store` and by `Unrecorded`."""

    def begin(self, trajectory: Trajectory) -> None: ...
    def intend(self, run_id: str, index: int, step: Step) -> None: ...
    def add_step(self, run_id: str, index: int, step: Step) -> None: ...
    def end(self, run_id: str, outcome: Outcome, ended_at: str, error: str | None = None) -> None: ...


class Unrecorded:
    """A recorder that keeps nothing; `run` still returns the trajectory."""

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
    """Whether sentences of an answer without support in the observations are marked, or withheld."""


@dataclass
class Run:
    """The state of a run in progress, and what it works with."""

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
    """Called when an answer is checked and its words alone do not decide."""
    started: float = field(default_factory=time.monotonic)

    def notify(self, kind: EventKind, *, text: str = "", step: Step | None = None) -> None:
        """Send an event of the run so far."""
        self.on_event(Event(kind, self.trajectory, text, step))

    def mask(self, text: str) -> str:
        """Replace secrets and personal data in a text by the run's placeholders."""
        return text if self.scrubber is None else self.scrubber.mask(text)

    @property
    def withholds(self) -> bool:
        """Whether an answer is hidden until it was checked."""
        return self.options.grounded == "withhold"
