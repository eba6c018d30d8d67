"""TODO: tuner/methods/lora.py"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import TuningError
from agent.llm.weights.precision import use_bfloat16_products
from tuner.methods.base import Group, tensors_of, tuned_layers
from tuner.settings import TrainSettings
from tuner.tree.attention import NOTHING, KeysAndValues

if TYPE_CHECKING:
    import torch


class _Lora:
    """Two small matrices beside each linear layer."""

    def __init__(self, model: Any, groups: list[Group]) -> None:
        self.model = model
        self.groups = groups

    def before(self, precision: str) -> KeysAndValues:
        return NOTHING

    def state(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(self.model).items()}

    def start_from(self, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        ours = self.model.peft_config["default"]
        names = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "layers_to_transform")
        set_peft_model_state_dict(self.model, tensors_of(folder, ours, names))

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, dict(state))
        self.model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)

    def take_off(self) -> None:
        self.model.unload()


def with_adapter(model: Any, settings: TrainSettings) -> tuple[Any, list[Group]]:
    """The model with a fresh LoRA adapter on it, and what of it is trained. Raises TuningError."""
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
            # peft 0.21 asks transformers by a name that is going away.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            peft_model = get_peft_model(model, config)
    except ValueError as fault:
        raise TuningError(
            f"tuning.targets {list(names)} do not fit this model ({fault}); "
            'set tuning.targets to names of its linear layers, or to ["all-linear"]'
        ) from fault
    return peft_model, _groups(peft_model, settings)


def prepare_model(model: Any, settings: TrainSettings, precision: str) -> tuple[Any, list[Group]]:
    """As `with_adapter`, with products in `precision`: layers are rounded before the adapter comes, and fused after."""
    if settings.method == "qlora":
        from tuner.methods.qlora import quantise

        quantise(model, precision)
        return with_adapter(model, settings)
    if precision != "mixed":
        return with_adapter(model, settings)
    from tuner.tree import mixed_precision as mixed

    _round(model)
    peft_model, groups = with_adapter(model, settings)
    mixed.fuse(peft_model)
    return peft_model, groups


def _round(model: Any) -> None:
    from tuner.tree import mixed_precision as mixed

    use_bfloat16_products(model)
    mixed.round_output(model)


def _linear_layers(model: Any) -> tuple[str, ...]:
    """Last names of all linear layers but the output."""
    import torch

    output = model.get_output_embeddings()
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and one is not output]
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in linear}))


def _groups(model: Any, settings: TrainSettings) -> list[Group]:
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    if settings.method != "lora+":
        return [Group([one for _, one in trained], 1.0)]
    return [
        Group([one for name, one in trained if "lora_B" not in name], 1.0),
        Group([one for name, one in trained if "lora_B" in name], settings.rate_ratio),
    ]
