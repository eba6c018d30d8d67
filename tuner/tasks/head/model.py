"""An encoder of transformers with the head of a task on it: one linear layer over what the task reads."""

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
from agent.llm.weights.convert import quiet
from agent.llm.weights.load import ModelFolder
from tuner.tasks.head.tasks import Task
from tuner.tasks.head.windows import Batch, Window, batches
from tuner.tasks.settings import ADAPTERS, TaskSettings

HEAD = "head."


@dataclass(frozen=True)
class Encoder:
    """Weights and tokenizer of an encoder."""

    model: Any
    tokenizer: Any
    pooling: str
    """How a text's vector is read: "mean", or "cls" for the first token."""

    @property
    def facts(self) -> dict[str, int]:
        """What settings are chosen by."""
        positions = int(getattr(self.model.config, "max_position_embeddings", 512))
        # RoBERTa and its kin count positions from behind the padding's.
        offset = int(self.model.config.pad_token_id or 0) + 1 if self.model.config.model_type in _SHIFTED else 0
        return {"hidden": int(self.model.config.hidden_size), "positions": positions - offset}


_SHIFTED = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})


def load_encoder(folder: ModelFolder, *, device: str = "cpu") -> Encoder:
    """An encoder from a checked folder. Raises WeightsError for one that is none, or whose tokenizer is a slow one."""
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet():
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
        raise WeightsError(f"the tokenizer of {folder.folder} has no tokenizer.json, which says where tokens stand")
    if getattr(model.config, "is_decoder", False) or not hasattr(model.config, "hidden_size"):
        raise WeightsError(f"{folder.folder} holds a {model.config.model_type}; expected an encoder such as BERT")
    pooled = (folder.folder / "modules.json").is_file() and not _pools_first(folder)
    return Encoder(model.to(device).eval(), tokenizer, "mean" if pooled else "cls")


def _pools_first(folder: ModelFolder) -> bool:
    import json

    try:
        settings = json.loads((folder.folder / "1_Pooling" / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("pooling_mode_cls_token"))


class TaskModel(torch.nn.Module):
    """The encoder, its adapter if the method has one, and the head."""

    def __init__(self, encoder: Encoder, task: Task, settings: TaskSettings) -> None:
        super().__init__()
        self.task = task
        self.settings = settings
        self.tokenizer = encoder.tokenizer
        self.encoder = _prepared(encoder.model, settings)
        self.padding = int(encoder.tokenizer.pad_token_id or 0)
        self.drop: torch.nn.Module = torch.nn.Dropout(settings.dropout) if task.outputs else torch.nn.Identity()
        self.head: Any = _head(int(encoder.model.config.hidden_size) * task.width, task.outputs)
        self._typed = int(getattr(encoder.model.config, "type_vocab_size", 0) or 0) > 1
        self._typed &= "token_type_ids" in inspect.signature(encoder.model.forward).parameters
        self.to(encoder.model.device)

    @property
    def device(self) -> Any:
        return next(self.encoder.parameters()).device

    def represent(self, batch: Batch, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """What the head reads, [B, ..., width * H]; `embeddings` [B, T, H] take the place of the tokens' own."""
        inputs: dict[str, Any] = {"attention_mask": batch.mask}
        inputs |= {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
        if self._typed:
            inputs["token_type_ids"] = batch.types
        with self._products():
            hidden = self.encoder(**inputs).last_hidden_state
        return self.task.represent(hidden.float(), batch)

    def forward(self, batch: Batch, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.drop(self.represent(batch, embeddings)))
        return scores

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return {name: one for name, one in self.named_parameters() if one.requires_grad}

    def state(self) -> dict[str, torch.Tensor]:
        """What was trained, under the names it is saved by: PEFT's for the encoder, and `head.` for the head."""
        head = {f"{HEAD}{name}": one.detach().clone() for name, one in self.head.state_dict().items()}
        if self.settings.method == "head":
            return head
        if self.settings.method in ADAPTERS:
            from peft import get_peft_model_state_dict

            tensors = get_peft_model_state_dict(self.encoder)
            return {**{name: one.detach().clone() for name, one in tensors.items()}, **head}
        found = {saved_name(name): one.detach().clone() for name, one in self._full().items()}
        return {**found, **head}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state` gave. Raises AdapterError where names or shapes are not those of this model."""
        check_fits(self.state(), tensors)
        self.head.load_state_dict(
            {name.removeprefix(HEAD): one for name, one in tensors.items() if name.startswith(HEAD)}
        )
        if self.settings.method in ADAPTERS:
            from peft import set_peft_model_state_dict

            rest = {name: one for name, one in tensors.items() if not name.startswith(HEAD)}
            set_peft_model_state_dict(self.encoder, rest)
        elif self.settings.method == "full":
            with torch.no_grad():
                for name, one in self._full().items():
                    one.copy_(tensors[saved_name(name)])

    def _full(self) -> dict[str, torch.nn.Parameter]:
        return {name: one for name, one in self.encoder.named_parameters() if one.requires_grad}

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        if self.training and self.settings.precision == "mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def check_fits(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise AdapterError where names or shapes of tensors are not those of a model's own."""
    wanted, found = ({name: tuple(one.shape) for name, one in some.items()} for some in (own, given))
    if wanted != found:
        name, shape = sorted(set(wanted.items()) ^ set(found.items()))[0]
        raise AdapterError(f"tensor {name} {list(shape)} does not fit; the folder is of another encoder or task")


def saved_name(name: str) -> str:
    """The name by which PEFT saves the copy of a module's parameter that acts in its place."""
    module, _, last = name.rpartition(".")
    return f"base_model.model.{module}.ln_tuning_layers.{last}"


def score(model: TaskModel, windows: Sequence[Window], *, size: int = 64) -> list[Any]:
    """The head's scores of each window without its padding, numpy float32 [..., outputs]."""
    model.eval()
    given: list[Any] = [None] * len(windows)
    with torch.inference_mode():
        for one in batches(windows, size, model.padding, device=model.device):
            scores = model(one).cpu().numpy().astype(np.float32)
            for row, number in enumerate(one.numbers):
                given[number] = scores[row, : len(one.windows[row].ids)] if scores.ndim == 3 else scores[row]
    return given


def _head(size: int, outputs: int) -> torch.nn.Module:
    """A linear layer; for a task without outputs nothing."""
    if not outputs:
        return torch.nn.Identity()
    made = torch.nn.Linear(size, outputs)
    torch.nn.init.normal_(made.weight, std=0.02)
    torch.nn.init.zeros_(made.bias)
    return made


def _prepared(model: Any, settings: TaskSettings) -> Any:
    """The encoder with what the method trains asking for gradients, and nothing else."""
    model.requires_grad_(False)
    if settings.method in ADAPTERS:
        return _with_lora(model, settings)
    if settings.method == "full":
        for name, one in model.named_parameters():
            one.requires_grad_("pooler" not in name and _layer(name) >= settings.frozen_layers)
    return model


def _layer(name: str) -> int:
    """The number of the layer a parameter is of, from 1; 0 for the embeddings, and above all for what comes behind."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if numbers:
        return numbers[0] + 1
    return 0 if "embed" in name else 10_000


def _with_lora(model: Any, settings: TaskSettings) -> Any:
    """A fresh adapter on all linear layers above the frozen ones but the pooler."""
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and "pooler" not in name and _layer(name) > settings.frozen_layers
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
        # peft 0.21 asks transformers by a name that is going away.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(model, config)
