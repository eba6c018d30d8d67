"""Estimates how many tokens a pack may have, from the memory that training needs for a token and the free memory."""

from __future__ import annotations

import resource
from typing import Any

FEWEST, MOST = 512, 2048
"""Below, passes are too short to be fast; above, they are no faster."""
SHARE = 0.5
"""Share of the free memory for packs; the rest is for optimizer, logits and other processes."""
OVERHEAD = 2.0
"""Measured bytes divided by those that `_bytes_per_token` counts."""


def tokens_that_fit(model: Any, longest: int) -> int:
    """Return the tokens of a pack for this model on this machine, never fewer than `longest`."""
    room = int(SHARE * _free_bytes(model) / (OVERHEAD * _bytes_per_token(model)))
    return max(longest, min(MOST, max(FEWEST, room)))


def peak_bytes() -> int:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine or the GPU is out of memory."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _bytes_per_token(model: Any) -> float:
    """Return about how many bytes a decoder saves of a token for its backward pass."""
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
