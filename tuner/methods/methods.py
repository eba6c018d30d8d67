"""The table of tuning methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.config.settings import TuningSettings
from tuner.methods.base import TunableModel
from tuner.methods.lora import LoraAdapter, prepare_model, round_products


def make_tunable(model: Any, settings: TuningSettings, precision: str, prompt: Sequence[int]) -> TunableModel:
    """Prepare a model for training by the method of the settings.

    Args:
        model: The base; changed in place.
        settings: Of the training.
        precision: Of matrix products, "float32" or "mixed".
        prompt: Token ids that examples begin with; virtual tokens start as a copy of them.

    Raises:
        TuningError: The method does not fit the model or the machine.
    """
    if settings.method == "full":
        from tuner.methods.full import FullWeights

        return FullWeights(model, settings)
    if settings.method in ("prompt", "prefix"):
        from tuner.methods.soft_prompts import VirtualTokens

        if precision == "mixed":
            round_products(model)
        return VirtualTokens(model, settings, precision, prompt)
    return LoraAdapter(*prepare_model(model, settings, precision))
