"""TODO: agent/run/state.py"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from langchain_core.tools import BaseTool

from agent.encoders.encoder import Encoder
from agent.grounding.check import Mode
from agent.llm.prompt.render import Frame
from agent.llm.step_model import Stepper
from agent.privacy.redaction import Scrubber
from agent.records.run import Outcome, Step, Trajectory
from agent.run.limits import Budget

DEFAULT_INSTRUCTIONS = "You are a helpful agent. Use the tools to do the task, then answer."


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
    """Keeps a run as it goes. `agent.storage.store.Store` is one; `Unrecorded` keeps nothing."""

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


def _mask(going: Run, text: str) -> str:
    return text if going.scrubber is None else going.scrubber.mask(text)
