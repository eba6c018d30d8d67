"""A local agent that learns from corrections: the Python API, and below it the rooms that it is made of.

`Agent` is where a program starts; the rooms (run, feedback, llm, knowledge and the others) each say in their own
docstring what they hold. Training is in `tuner`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from agent.api.shadowing import check_not_hidden

if TYPE_CHECKING:
    from agent.api.adapters import Candidate, Promotion
    from agent.api.agent import Agent
    from agent.api.runs import RunHandle
    from agent.errors import RatchetError
    from agent.llm.scripted import ScriptedModel
    from agent.records.run import Outcome, Step, ToolCall, Trajectory
    from agent.run.state import Event
    from agent.runtime import Runtime

__all__ = [
    "Agent",
    "Candidate",
    "Event",
    "Outcome",
    "Promotion",
    "RatchetError",
    "RunHandle",
    "Runtime",
    "ScriptedModel",
    "Step",
    "ToolCall",
    "Trajectory",
]

_MODULES = {
    "Agent": "agent.api.agent",
    "Candidate": "agent.api.adapters",
    "Event": "agent.run.state",
    "Outcome": "agent.records.run",
    "Promotion": "agent.api.adapters",
    "RatchetError": "agent.errors",
    "RunHandle": "agent.api.runs",
    "Runtime": "agent.runtime",
    "ScriptedModel": "agent.llm.scripted",
    "Step": "agent.records.run",
    "ToolCall": "agent.records.run",
    "Trajectory": "agent.records.run",
}

# OpenMP threads wait for each other by sleeping, not by spinning. On a busy machine a spinning team takes the core
# that its own late thread needs, and everything is several times slower; on a quiet one sleeping costs a few percent.
# OpenMP reads this once, when torch is first imported, so it is set before anything of ours can import torch.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"

check_not_hidden("tools")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
