"""What of a model is trained: one table of methods, each saved as a plain PEFT folder.

Source: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu et al., 2024), LoRA+ (Hayou et al., 2024),
QLoRA (Dettmers et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuner.methods.base import Tunable
from tuner.methods.lora import _Lora, _round, prepare_model
from tuner.settings import TrainSettings

if TYPE_CHECKING:
    pass


def make_tunable(model: Any, settings: TrainSettings, precision: str, prompt: Sequence[int]) -> Tunable:
    """Make a model ready to be trained by the method of the settings. Raises TuningError.

    `prompt` are ids that examples begin with; virtual tokens start as a copy of them.
    """
    if settings.method == "full":
        from tuner.methods.full import FullWeights

        return FullWeights(model, settings)
    if settings.method in ("prompt", "prefix"):
        from tuner.methods.soft_prompts import VirtualTokens

        if precision == "mixed":
            _round(model)
        return VirtualTokens(model, settings, precision, prompt)
    return _Lora(*prepare_model(model, settings, precision))
