"""What every method makes of a model, and how an adapter's folder is read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agent.errors import TuningError
from agent.registry.artifact import WEIGHTS
from tuner.settings import TrainSettings
from tuner.tree.attention import KeysAndValues

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[torch.nn.Parameter]
    rate: float
    """Times the learning rate of the settings."""


class Tunable(Protocol):
    """A model made ready by a method: what of it is trained, and how that is kept."""

    model: Any
    groups: list[Group]

    def before(self, precision: str) -> KeysAndValues:
        """What stands before every sequence, with the gradient to what is trained."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the trained tensors, under the names they are saved by."""
        ...

    def start_from(self, folder: Path) -> None:
        """Take the tensors of an adapter of the same shape. Raises TuningError for another."""
        ...

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write these tensors as a PEFT folder."""
        ...

    def take_off(self) -> None:
        """Leave the model as it was, but for the precision of its layers."""
        ...


def tuned_layers(model: Any, settings: TrainSettings) -> range:
    """Which layers are trained, from the bottom. Raises TuningError where there are not so many."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    if settings.top_layers > layers:
        raise TuningError(f"tuning.top_layers is {settings.top_layers} and the model has {layers} layers; lower it")
    return range(layers - settings.top_layers if settings.top_layers else 0, layers)


def tensors_of(folder: Path, ours: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter whose configuration says the same under `names`. Raises TuningError for another."""
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


def write(config: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """A PEFT folder of this configuration and these tensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {name: one.contiguous() for name, one in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
