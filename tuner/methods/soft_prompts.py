"""Prompt tuning and prefix tuning: virtual tokens at the start of every sequence are trained, the model is not.

In the tree of examples they are one more trunk, which all examples share and which is computed once a step. Source:
Lester et al., 2021 (embeddings of the tokens); Li and Liang, 2021 (their keys and values in every layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.llm.engine import soft_prompts
from agent.llm.engine.attention import IMPLEMENTATION
from tuner.methods.base import Group, read_tensors, write_peft_folder
from tuner.tree.attention import KeysAndValues
from tuner.tree.loss import products_in

if TYPE_CHECKING:
    import torch


class VirtualTokens:
    """A frozen model with trained virtual tokens, which start as a copy of a prompt's tokens."""

    has_prefix = True

    def __init__(self, model: Any, settings: TuningSettings, precision: str, prompt: Sequence[int]) -> None:
        import torch
        from peft import PrefixTuningConfig, PromptTuningConfig

        if model.config._attn_implementation != IMPLEMENTATION:
            raise TuningError(
                f'method "{settings.method}" needs a model that uses the attention interface of transformers; '
                'use another base, or method "lora"'
            )
        self.model = model
        self._is_prefix = settings.method == "prefix"
        count = settings.virtual_tokens
        ids = (list(prompt) * -(-count // len(prompt)))[:count]
        with torch.no_grad(), products_in(precision, model.device.type):
            rows = model.get_input_embeddings()(torch.tensor(ids, device=model.device)).float()
            if self._is_prefix:
                rows = soft_prompts.pairs_to_rows(soft_prompts.compute_pairs(model, rows)).float()
        self._rows = torch.nn.Parameter(rows.clone())
        self.groups = [Group([self._rows], 1.0)]
        layers, heads, width = soft_prompts.cache_shape(model.config)
        shape: dict[str, Any] = {
            "num_virtual_tokens": count,
            "num_layers": layers,
            "num_attention_heads": heads,
            "token_dim": heads * width if self._is_prefix else rows.shape[1],
            "num_transformer_submodules": 1,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
        }
        self._config = (PrefixTuningConfig if self._is_prefix else PromptTuningConfig)(**shape)

    def prefix(self, precision: str) -> KeysAndValues:
        if self._is_prefix:
            return soft_prompts.rows_to_pairs(self._rows, self.model.config)
        with products_in(precision, self.model.device.type):
            return soft_prompts.compute_pairs(self.model, self._rows)

    def state(self) -> dict[str, torch.Tensor]:
        return {soft_prompts.TENSOR: self._rows.detach().clone()}

    def start_from(self, folder: Path) -> None:
        import torch

        tensors = read_tensors(folder, self._config, ("num_virtual_tokens", "token_dim"))
        with torch.no_grad():
            self._rows.copy_(tensors[soft_prompts.TENSOR])

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        import torch

        with torch.no_grad():
            self._rows.copy_(state[soft_prompts.TENSOR])
        write_peft_folder(self._config, state, folder)

    def remove(self) -> None:
        """Do nothing: the model was not changed."""
