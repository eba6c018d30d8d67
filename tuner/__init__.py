"""Training: from feedback to a gated adapter, the sentence encoder, and classic tasks from a file.

Holds nothing that serves: what was trained goes to the registries of `agent`. `agent.Agent` calls all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.api import open_runtime
    from tuner.evaluation.suite import Suite, load_suite
    from tuner.pipeline.pipeline import Tuning, tune
    from tuner.pipeline.promote import GateResult, evaluate_adapter, promote
    from tuner.tasks.api import load, train
    from tuner.training.results import Progress

__all__ = [
    "GateResult",
    "Progress",
    "Suite",
    "Tuning",
    "evaluate_adapter",
    "load",
    "load_suite",
    "open_runtime",
    "promote",
    "train",
    "tune",
]

_MODULES = {
    "GateResult": "tuner.pipeline.promote",
    "Progress": "tuner.training.results",
    "Suite": "tuner.evaluation.suite",
    "Tuning": "tuner.pipeline.pipeline",
    "evaluate_adapter": "tuner.pipeline.promote",
    "load": "tuner.tasks.api",
    "load_suite": "tuner.evaluation.suite",
    "open_runtime": "tuner.api",
    "promote": "tuner.pipeline.promote",
    "train": "tuner.tasks.api",
    "tune": "tuner.pipeline.pipeline",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
