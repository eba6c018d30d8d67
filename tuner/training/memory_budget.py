"""How many tokens a pack may have: what training keeps of each token, against the memory that is free."""

from __future__ import annotations

import resource
from typing import Any

FEWEST, MOST = 512, 2048
"""Below, passes are too short to be fast; above, they are not faster any more."""
SHARE = 0.5
"""Of the free memory that packs may fill; the rest is for optimizer, logits and everybody else."""
OVERHEAD = 2.0
"""Bytes that were seen to be held over those that `_bytes_per_token` counts."""


def tokens_that_fit(model: Any, longest: int) -> int:
    """Tokens of a pack for this model on this machine; never fewer than the longest example has."""
    room = int(SHARE * _free_bytes(model) / (OVERHEAD * _bytes_per_token(model)))
    return max(longest, min(MOST, max(FEWEST, room)))


def peak_bytes() -> int:
    """The most memory that this process held until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out, of the machine or of the GPU."""
    import torch

    return isinstance(fault, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(fault)


def _bytes_per_token(model: Any) -> float:
    """What a decoder keeps of a token for its backward pass: about so many float32 rows in each layer."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 4.0 * int(config.num_hidden_layers) * (12 * int(config.hidden_size) + 5 * int(inner))


def _free_bytes(model: Any) -> int:
    import psutil  # type: ignore[import-untyped]
    import torch

    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return int(free)
    return int(psutil.virtual_memory().available)
