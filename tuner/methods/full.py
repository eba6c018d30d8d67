"""Full fine-tuning: the weights themselves are trained, of all layers or of the top ones.

Saved as PEFT saves a copy of whole modules that replaces the base's, so the folder is like that of any adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.settings import TuningSettings
from tuner.methods.base import Group, read_tensors, tuned_layers, write_peft_folder
from tuner.tree.attention import NOTHING, KeysAndValues

if TYPE_CHECKING:
    import torch


class FullWeights:
    """A model whose weights are trained: all, or those of the top layers and the norm after them."""

    has_prefix = False

    def __init__(self, model: Any, settings: TuningSettings) -> None:
        from peft import LNTuningConfig

        self.model = model
        tuned = tuned_layers(model, settings)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._trained = {
            name: value for name, value in parameters.items() if not settings.top_layers or _is_tuned(name, tuned)
        }
        """By name; a tied parameter has two."""
        self._base = {name: value.detach().clone() for name, value in self._trained.items()}
        for value in self._trained.values():
            value.requires_grad_()
        unique = list({id(value): value for value in self._trained.values()}.values())
        self.groups = [Group(unique, 1.0)]
        modules = sorted({name.rpartition(".")[0] for name in self._trained})
        self._config = LNTuningConfig(target_modules=modules, task_type="CAUSAL_LM", inference_mode=True)

    def prefix(self, precision: str) -> KeysAndValues:
        return NOTHING

    def state(self) -> dict[str, torch.Tensor]:
        return {_saved_name(name): value.detach().clone() for name, value in self._trained.items()}

    def start_from(self, folder: Path) -> None:
        import torch

        tensors = read_tensors(folder, self._config, ("target_modules",))
        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(tensors[_saved_name(name)])

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        import torch

        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(state[_saved_name(name)])
        write_peft_folder(self._config, state, folder)

    def remove(self) -> None:
        import torch

        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(self._base[name])
                value.requires_grad_(False)


def _is_tuned(name: str, tuned: range) -> bool:
    """Return whether a parameter is in one of these layers, or in the norm after the last."""
    parts = name.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1]) in tuned
    return parts[-2].endswith("norm")


def _saved_name(name: str) -> str:
    """Return the name under which PEFT saves the copy of a module's parameter."""
    module, _, last = name.rpartition(".")
    return f"base_model.model.{module}.ln_tuning_layers.{last}"
