"""The interface of a tuning method, and how an adapter folder is read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.registry.artifact import WEIGHTS
from tuner.tree.attention import KeysAndValues

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[torch.nn.Parameter]
    rate: float
    """Times the learning rate of the settings."""


class TunableModel(Protocol):
    """A model that a method has prepared: which parameters are trained, and how they are saved."""

    model: Any
    groups: list[Group]
    has_prefix: bool
    """Whether the method trains a prefix of every sequence, and nothing in the model."""

    def prefix(self, precision: str) -> KeysAndValues:
        """Return the keys and values of the prefix, with gradients; empty for a method without one."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trained tensors, by the names they are saved under."""
        ...

    def start_from(self, folder: Path) -> None:
        """Load the tensors of an adapter of the same shape. Raises TuningError for another shape."""
        ...

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write tensors as a PEFT folder."""
        ...

    def remove(self) -> None:
        """Restore the model, except for the precision of its layers."""
        ...


def tuned_layers(model: Any, settings: TuningSettings) -> range:
    """Return the indices of the layers that are trained. Raises TuningError where the model has too few."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    if settings.top_layers > layers:
        raise TuningError(f"tuning.top_layers is {settings.top_layers} and the model has {layers} layers; lower it")
    return range(layers - settings.top_layers if settings.top_layers else 0, layers)


def read_tensors(folder: Path, ours: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read the tensors of an adapter.

    Args:
        folder: A PEFT folder.
        ours: The configuration of the settings.
        names: The keys in which both configurations must agree.

    Raises:
        TuningError: The configurations differ.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    theirs = PeftConfig.from_pretrained(str(folder))
    for name in ("peft_type", *names):
        was, now = getattr(theirs, name, None), getattr(ours, name)
        if was != now:
            raise TuningError(
                f"the adapter in {folder} has {name} {was}, the settings give {now}; set them alike, or set "
                'tuning.start to "base"'
            )
    return load_file(folder / WEIGHTS)


def write_peft_folder(config: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a PEFT folder with a configuration and tensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
