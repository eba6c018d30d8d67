"""Full fine-tuning: the weights themselves are trained, of all layers or of the top ones.

Kept as PEFT keeps a copy of whole modules that acts in place of the base's, so it is a folder like any adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.methods.base import Group, tensors_of, tuned_layers, write
from tuner.settings import TrainSettings
from tuner.tree.attention import NOTHING, KeysAndValues

if TYPE_CHECKING:
    import torch


class FullWeights:
    """A model whose weights are trained: all, or those of the top layers and the norm behind them."""

    def __init__(self, model: Any, settings: TrainSettings) -> None:
        from peft import LNTuningConfig

        self.model = model
        tuned = tuned_layers(model, settings)
        every = dict(model.named_parameters(remove_duplicate=False))
        self._trained = {name: one for name, one in every.items() if not settings.top_layers or _is_above(name, tuned)}
        """By name; a tied parameter has two."""
        self._base = {name: one.detach().clone() for name, one in self._trained.items()}
        for one in self._trained.values():
            one.requires_grad_()
        unique = list({id(one): one for one in self._trained.values()}.values())
        self.groups = [Group(unique, 1.0)]
        modules = sorted({name.rpartition(".")[0] for name in self._trained})
        self._config = LNTuningConfig(target_modules=modules, task_type="CAUSAL_LM", inference_mode=True)

    def before(self, precision: str) -> KeysAndValues:
        return NOTHING

    def state(self) -> dict[str, torch.Tensor]:
        return {_saved(name): one.detach().clone() for name, one in self._trained.items()}

    def start_from(self, folder: Path) -> None:
        import torch

        tensors = tensors_of(folder, self._config, ("target_modules",))
        with torch.no_grad():
            for name, one in self._trained.items():
                one.copy_(tensors[_saved(name)])

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        import torch

        with torch.no_grad():
            for name, one in self._trained.items():
                one.copy_(state[_saved(name)])
        write(self._config, state, folder)

    def take_off(self) -> None:
        import torch

        with torch.no_grad():
            for name, one in self._trained.items():
                one.copy_(self._base[name])
                one.requires_grad_(False)


def _is_above(name: str, tuned: range) -> bool:
    """Whether a parameter lies in one of these layers, or in the norm behind the last."""
    parts = name.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1]) in tuned
    return parts[-2].endswith("norm")


def _saved(name: str) -> str:
    """The name by which PEFT saves the copy of a module's parameter."""
    module, _, last = name.rpartition(".")
    return f"base_model.model.{module}.ln_tuning_layers.{last}"
