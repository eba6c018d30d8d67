"""Virtual tokens: keys and values that an adapter puts before every sequence, in place of a change to the weights.

Prompt tuning learns the embeddings of N tokens, prefix tuning their keys and values in every layer. Both are kept in
the file as PEFT keeps them, a tensor `prompt_embeddings` of N rows. Source: Lester et al., 2021; Li and Liang, 2021.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import OneSequence

if TYPE_CHECKING:
    import torch

    Pairs = dict[int, tuple[torch.Tensor, torch.Tensor]]
    """By layer, keys and values [kv_heads, N, d]."""

TENSOR = "prompt_embeddings"


def read(model: Any, embeddings: torch.Tensor) -> Pairs:
    """What a model with ragged attention makes of N embeddings [N, hidden] at the start of a sequence."""
    import torch

    kept = OneSequence()
    model(
        inputs_embeds=embeddings[None],
        position_ids=torch.arange(len(embeddings), device=embeddings.device)[None],
        logits_to_keep=torch.zeros(0, dtype=torch.long, device=embeddings.device),
        use_cache=False,
        layout=kept,
    )
    return kept.pairs


def as_rows(pairs: Pairs) -> torch.Tensor:
    """Keys and values as a prefix adapter holds them: [N, layers * 2 * kv_heads * d]."""
    import torch

    every = [one.transpose(0, 1).flatten(1) for layer in sorted(pairs) for one in pairs[layer]]
    return torch.cat(every, 1)


def as_pairs(rows: torch.Tensor, config: Any) -> Pairs:
    """The inverse of `as_rows`, for a model of this configuration."""
    layers, heads, width = sizes(config)
    parts = rows.view(len(rows), layers, 2, heads, width).permute(1, 2, 3, 0, 4)
    return {layer: (parts[layer, 0], parts[layer, 1]) for layer in range(layers)}


def sizes(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and the width of a head, of a transformers configuration."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return int(text.num_hidden_layers), int(getattr(text, "num_key_value_heads", None) or heads), width


def pairs_of(model: Any, kind: str, rows: torch.Tensor) -> Pairs:
    """Keys and values of an adapter's tensor, of kind "PROMPT_TUNING" or "PREFIX_TUNING". Raises ValueError."""
    wanted = (
        int(model.config.get_text_config().hidden_size)
        if kind == "PROMPT_TUNING"
        else 2 * math.prod(sizes(model.config))
    )
    if rows.ndim != 2 or rows.shape[1] != wanted:
        raise ValueError(f"its {TENSOR} have shape {tuple(rows.shape)}; this base needs [N, {wanted}]")
    return read(model, rows) if kind == "PROMPT_TUNING" else as_pairs(rows, model.config)
