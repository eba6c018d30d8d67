"""LoRA and its variants, by PEFT: low-rank matrices beside the linear layers of a frozen model.

Source: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu et al., 2024), LoRA+ (Hayou et al., 2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.llm.weights.precision import use_bfloat16_products
from tuner.methods.base import Group, read_tensors, tuned_layers
from tuner.tree.attention import NOTHING, KeysAndValues

if TYPE_CHECKING:
    import torch


class LoraAdapter:
    """A model with a LoRA adapter from PEFT."""

    has_prefix = False

    def __init__(self, model: Any, groups: list[Group]) -> None:
        self.model = model
        self.groups = groups

    def prefix(self, precision: str) -> KeysAndValues:
        return NOTHING

    def state(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(self.model).items()}

    def start_from(self, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        ours = self.model.peft_config["default"]
        names = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "layers_to_transform")
        set_peft_model_state_dict(self.model, read_tensors(folder, ours, names))

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, dict(state))
        self.model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)

    def remove(self) -> None:
        self.model.unload()


def with_adapter(model: Any, settings: TuningSettings) -> tuple[Any, list[Group]]:
    """Add a new LoRA adapter to a model; returns both and the trained parameters. Raises TuningError."""
    from peft import LoraConfig, get_peft_model

    names = settings.targets
    if settings.top_layers and names == ("all-linear",):
        names = _linear_layers(model)  # PEFT takes the short name for all layers only.
    tuned = tuned_layers(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=names[0] if names == ("all-linear",) else list(names),
        layers_to_transform=list(tuned) if settings.top_layers else None,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 uses a deprecated name of transformers.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise TuningError(
            f"tuning.targets {list(names)} do not fit this model ({error}); "
            'set tuning.targets to names of its linear layers, or to ["all-linear"]'
        ) from error
    return peft_model, _groups(peft_model, settings)


def prepare_model(model: Any, settings: TuningSettings, precision: str) -> tuple[Any, list[Group]]:
    """Add a LoRA adapter, with matrix products in `precision`.

    Layers are quantised or rounded before the adapter is added, and fused with it afterwards.
    """
    if settings.method == "qlora":
        from tuner.methods.qlora import quantise

        quantise(model, precision)
        return with_adapter(model, settings)
    if precision != "mixed":
        return with_adapter(model, settings)
    from tuner.tree.mixed_precision import fuse

    round_products(model)
    peft_model, groups = with_adapter(model, settings)
    fuse(peft_model)
    return peft_model, groups


def round_products(model: Any) -> None:
    """Make the model compute matrix products in bfloat16, those of the output layer included."""
    from tuner.tree.mixed_precision import round_output

    use_bfloat16_products(model)
    round_output(model)


def _linear_layers(model: Any) -> tuple[str, ...]:
    """Return the last part of the names of all linear layers except the output."""
    import torch

    output = model.get_output_embeddings()
    modules = model.named_modules()
    linear = [name for name, module in modules if isinstance(module, torch.nn.Linear) and module is not output]
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in linear}))


def _groups(model: Any, settings: TuningSettings) -> list[Group]:
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    if settings.method != "lora+":
        return [Group([value for _, value in trained], 1.0)]
    return [
        Group([value for name, value in trained if "lora_B" not in name], 1.0),
        Group([value for name, value in trained if "lora_B" in name], settings.rate_ratio),
    ]
