"""An encoder of transformers with the head of a task: one linear layer over the represented hidden states."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agent.errors import AdapterError, WeightsError
from agent.llm.weights.convert import hide_progress_bars
from agent.llm.weights.load import ModelFolder
from tuner.tasks.head.tasks import HeadTask
from tuner.tasks.head.windows import Window, WindowBatch, batch_windows
from tuner.tasks.settings import ADAPTERS, TaskSettings

HEAD = "head."
"""Prefix of the head's tensors in a saved folder."""


@dataclass(frozen=True)
class LoadedEncoder:
    """Weights and tokenizer of an encoder, ready for a task."""

    model: Any
    tokenizer: Any
    pooling: str
    """How hidden states become a text's vector: "mean", or "cls" for the first token."""

    @property
    def sizes(self) -> dict[str, int]:
        """Return `hidden` dimensions and `positions`, the tokens it reads at most."""
        positions = int(getattr(self.model.config, "max_position_embeddings", 512))
        # RoBERTa and its relatives count positions from after the padding token's id.
        offset = int(self.model.config.pad_token_id or 0) + 1 if self.model.config.model_type in _OFFSET_TYPES else 0
        return {"hidden": int(self.model.config.hidden_size), "positions": positions - offset}


_OFFSET_TYPES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})


def load_encoder(folder: ModelFolder, *, device: str = "cpu") -> LoadedEncoder:
    """Load an encoder from a checked folder. Raises WeightsError for another model, or without a fast tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    try:
        with hide_progress_bars():
            model: Any = AutoModel.from_pretrained(
                str(folder.folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder.folder), local_files_only=True, trust_remote_code=False, add_prefix_space=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder.folder} does not load as an encoder ({error}); name another folder") from error
    if not tokenizer.is_fast:
        raise WeightsError(
            f"the tokenizer of {folder.folder} has no tokenizer.json, which gives the offsets of tokens; name another"
        )
    if getattr(model.config, "is_decoder", False) or not hasattr(model.config, "hidden_size"):
        raise WeightsError(f"{folder.folder} holds a {model.config.model_type}; expected an encoder such as BERT")
    pooled = (folder.folder / "modules.json").is_file() and not _pools_first(folder)
    return LoadedEncoder(model.to(device).eval(), tokenizer, "mean" if pooled else "cls")


def _pools_first(folder: ModelFolder) -> bool:
    import json

    try:
        settings = json.loads((folder.folder / "1_Pooling" / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("pooling_mode_cls_token"))


class TaskModel(torch.nn.Module):
    """The encoder, its adapter if the method has one, and the head.

    Args:
        encoder: Its weights are changed in place.
        task: What the head is for; a task without outputs has no head.
        settings: `method` and `frozen_layers` decide what is trained.
    """

    def __init__(self, encoder: LoadedEncoder, task: HeadTask, settings: TaskSettings) -> None:
        super().__init__()
        self.task = task
        self.settings = settings
        self.tokenizer = encoder.tokenizer
        self.encoder = _make_trainable(encoder.model, settings)
        self.padding = int(encoder.tokenizer.pad_token_id or 0)
        self.drop: torch.nn.Module = torch.nn.Dropout(settings.dropout) if task.outputs else torch.nn.Identity()
        self.head: Any = _make_head(int(encoder.model.config.hidden_size) * task.width, task.outputs)
        self._typed = int(getattr(encoder.model.config, "type_vocab_size", 0) or 0) > 1
        self._typed &= "token_type_ids" in inspect.signature(encoder.model.forward).parameters
        self.to(encoder.model.device)

    @property
    def device(self) -> Any:
        return next(self.encoder.parameters()).device

    def represent(self, batch: WindowBatch, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Return the input of the head, [B, ..., width * H].

        Args:
            embeddings: [B, T, H], used in place of the embeddings of the tokens.
        """
        inputs: dict[str, Any] = {"attention_mask": batch.mask}
        inputs |= {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
        if self._typed:
            inputs["token_type_ids"] = batch.types
        with self._autocast():
            hidden = self.encoder(**inputs).last_hidden_state
        return self.task.represent(hidden.float(), batch)

    def forward(self, batch: WindowBatch, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.drop(self.represent(batch, embeddings)))
        return scores

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trained tensors by their saved names: PEFT's for the encoder, `head.` for the head."""
        head = {f"{HEAD}{name}": tensor.detach().clone() for name, tensor in self.head.state_dict().items()}
        if self.settings.method == "head":
            return head
        if self.settings.method in ADAPTERS:
            from peft import get_peft_model_state_dict

            tensors = get_peft_model_state_dict(self.encoder)
            return {**{name: tensor.detach().clone() for name, tensor in tensors.items()}, **head}
        full = {peft_name(name): parameter.detach().clone() for name, parameter in self._full().items()}
        return {**full, **head}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load tensors that `state` returned. Raises AdapterError where names or shapes are not those of this model."""
        check_tensors(self.state(), tensors)
        self.head.load_state_dict(
            {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
        )
        if self.settings.method in ADAPTERS:
            from peft import set_peft_model_state_dict

            rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
            set_peft_model_state_dict(self.encoder, rest)
        elif self.settings.method == "full":
            with torch.no_grad():
                for name, parameter in self._full().items():
                    parameter.copy_(tensors[peft_name(name)])

    def _full(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.training and self.settings.precision == "mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def check_tensors(own: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise AdapterError where names or shapes of tensors are not those of a model's own."""
    expected, present = ({name: tuple(one.shape) for name, one in some.items()} for some in (own, tensors))
    if expected != present:
        name, shape = sorted(set(expected.items()) ^ set(present.items()))[0]
        raise AdapterError(f"tensor {name} {list(shape)} does not fit; the folder is of another encoder or task")


def peft_name(name: str) -> str:
    """Return the name by which PEFT saves a module's parameter that replaces the original."""
    module, _, last = name.rpartition(".")
    return f"base_model.model.{module}.ln_tuning_layers.{last}"


def score_windows(model: TaskModel, windows: Sequence[Window], *, size: int = 64) -> list[Any]:
    """Return the head's scores of each window without its padding, numpy float32 [outputs] or [T, outputs].

    Args:
        size: Windows per batch.
    """
    model.eval()
    by_window: list[Any] = [None] * len(windows)
    with torch.inference_mode():
        for batch in batch_windows(windows, size, model.padding, device=model.device):
            scores = model(batch).cpu().numpy().astype(np.float32)
            for row, number in enumerate(batch.numbers):
                by_window[number] = scores[row, : len(batch.windows[row].ids)] if scores.ndim == 3 else scores[row]
    return by_window


def _make_head(size: int, outputs: int) -> torch.nn.Module:
    """A linear layer; for a task without outputs the identity."""
    if not outputs:
        return torch.nn.Identity()
    head = torch.nn.Linear(size, outputs)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    return head


def _make_trainable(model: Any, settings: TaskSettings) -> Any:
    """The encoder with gradients for the parameters that the method trains, and no others."""
    model.requires_grad_(False)
    if settings.method in ADAPTERS:
        return _with_lora(model, settings)
    if settings.method == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("pooler" not in name and _layer(name) >= settings.frozen_layers)
    return model


def _layer(name: str) -> int:
    """The number of a parameter's layer, from 1; 0 for the embeddings, and a large one after the layers."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if numbers:
        return numbers[0] + 1
    return 0 if "embed" in name else 10_000


def _with_lora(model: Any, settings: TaskSettings) -> Any:
    """A fresh adapter on all linear layers above the frozen ones but the pooler."""
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name and _layer(name) > settings.frozen_layers
    ]
    if not names:
        raise WeightsError(f"no linear layer is left above {settings.frozen_layers} frozen ones; freeze fewer")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=names,
        task_type="FEATURE_EXTRACTION",
        bias="none",
    )
    with warnings.catch_warnings():
        # peft 0.21 calls transformers by a deprecated name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(model, config)
