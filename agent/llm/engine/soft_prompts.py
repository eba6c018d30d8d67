"""Soft prompts: virtual tokens that an adapter puts before every sequence; the weights do not change.

Prompt tuning trains the embeddings of N virtual tokens, prefix tuning their keys and values in every layer. Both are
saved as PEFT saves them, as a tensor `prompt_embeddings` with N rows. Sources: Lester et al., 2021; Li and Liang, 2021.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import OneSequence

if TYPE_CHECKING:
    import torch

    LayerPairs = dict[int, tuple[torch.Tensor, torch.Tensor]]
    """By layer, keys and values [kv_heads, N, d]."""

TENSOR = "prompt_embeddings"
"""Name of the tensor in the file."""


def compute_pairs(model: Any, embeddings: torch.Tensor) -> LayerPairs:
    """Run N embeddings [N, hidden] through a model with ragged attention; return their keys and values by layer."""
    import torch

    layout = OneSequence()
    model(
        inputs_embeds=embeddings[None],
        position_ids=torch.arange(len(embeddings), device=embeddings.device)[None],
        logits_to_keep=torch.zeros(0, dtype=torch.long, device=embeddings.device),
        use_cache=False,
        layout=layout,
    )
    return layout.pairs


def pairs_to_rows(pairs: LayerPairs) -> torch.Tensor:
    """Return keys and values in the form of a prefix-tuning file, [N, layers * 2 * kv_heads * d]."""
    import torch

    parts = [tensor.transpose(0, 1).flatten(1) for layer in sorted(pairs) for tensor in pairs[layer]]
    return torch.cat(parts, 1)


def rows_to_pairs(rows: torch.Tensor, config: Any) -> LayerPairs:
    """Invert `pairs_to_rows`, for a model with this configuration."""
    layers, heads, width = cache_shape(config)
    parts = rows.view(len(rows), layers, 2, heads, width).permute(1, 2, 3, 0, 4)
    return {layer: (parts[layer, 0], parts[layer, 1]) for layer in range(layers)}


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Return layers, key-value heads and head width of a transformers configuration."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return int(text.num_hidden_layers), int(getattr(text, "num_key_value_heads", None) or heads), width


def pairs_of_adapter(model: Any, kind: str, rows: torch.Tensor) -> LayerPairs:
    """Return the keys and values of an adapter's tensor. Raises ValueError where it does not fit the model.

    Args:
        model: with ragged attention.
        kind: "PROMPT_TUNING" or "PREFIX_TUNING".
        rows: the tensor of the file, [N, width].
    """
    wanted = (
        int(model.config.get_text_config().hidden_size)
        if kind == "PROMPT_TUNING"
        else 2 * math.prod(cache_shape(model.config))
    )
    if rows.ndim != 2 or rows.shape[1] != wanted:
        raise ValueError(f"its {TENSOR} have shape {tuple(rows.shape)}; this base needs [N, {wanted}]")
    return compute_pairs(model, rows) if kind == "PROMPT_TUNING" else rows_to_pairs(rows, model.config)
