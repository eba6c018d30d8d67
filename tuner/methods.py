"""What of a model is trained: one table of methods, each made by PEFT, each saved as a plain PEFT folder.

Source: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu et al., 2024), LoRA+ (Hayou et al., 2024).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import TuningError
from agent.llm.precision import use_bfloat16_products
from tuner.train_settings import TrainSettings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[torch.nn.Parameter]
    rate: float
    """Times the learning rate of the settings."""


def with_adapter(model: Any, settings: TrainSettings) -> tuple[Any, list[Group]]:
    """The model with a fresh adapter on it, and what of it is trained. Raises TuningError."""
    from peft import LoraConfig, get_peft_model

    names = settings.targets
    if settings.top_layers and names == ("all-linear",):
        names = _linear_layers(model)  # PEFT takes the short name for all layers only.
    layers = int(model.config.get_text_config().num_hidden_layers)
    if settings.top_layers > layers:
        raise TuningError(f"tuning.top_layers is {settings.top_layers} and the model has {layers} layers; lower it")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=names[0] if names == ("all-linear",) else list(names),
        layers_to_transform=list(range(layers - settings.top_layers, layers)) if settings.top_layers else None,
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
    if precision != "mixed":
        return with_adapter(model, settings)
    from tuner import mixed

    use_bfloat16_products(model)
    mixed.round_output(model)
    peft_model, groups = with_adapter(model, settings)
    mixed.fuse_lora(peft_model)
    return peft_model, groups


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


def start_from(model: Any, folder: Path) -> None:
    """Load the tensors of an adapter of the same shape. Raises TuningError for another."""
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, ours = LoraConfig.from_pretrained(str(folder)), model.peft_config["default"]
    for name in ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "layers_to_transform"):
        if getattr(theirs, name) != getattr(ours, name):
            raise TuningError(
                f"the adapter in {folder} has {name} {getattr(theirs, name)}, the settings give "
                f'{getattr(ours, name)}; set them alike, or set tuning.start to "base"'
            )
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's tensors, under the names that PEFT saves them by."""
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def save(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter with these tensors as a PEFT folder."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, state)
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
