"""Learning rates of the training methods, used where the settings name none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.config.methods import TuningMethod
from agent.config.settings import TuningSettings

RATES: Mapping[TuningMethod, float] = {
    "lora": 1e-3,
    "rslora": 3e-4,
    "dora": 1e-3,
    "lora+": 2e-4,
    "qlora": 1e-3,
    "prompt": 3e-2,
    "prefix": 1e-2,
    "full": 5e-5,
}
"""The highest learning rate of each method."""


def with_learning_rate(settings: TuningSettings) -> TuningSettings:
    """Return the settings with the learning rate of their method, where they leave it at 0."""
    return replace(settings, learning_rate=settings.learning_rate or RATES[settings.method])
