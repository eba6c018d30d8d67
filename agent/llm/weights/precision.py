"""Precision of a model's matrix products.

"mixed" stores the weights of the linear layers in bfloat16, which CPUs and GPUs with support for it read and multiply
several times as fast; everything else (residuals, norms, attention, adapters, the output layer) stays float32. Sums
inside a product are float32 either way. Does not guarantee the tokens of float32 where two are almost equally likely.
"""

from __future__ import annotations

import time
from typing import Any, Literal

Precision = Literal["float32", "mixed"]


def serving_dtype(setting: str, device: str) -> str:
    """Return the precision to serve in: the setting, or for "auto" bfloat16 on CUDA and the faster one elsewhere.

    Decoding on a GPU is limited by reading the weights, and bfloat16 halves them.
    """
    if setting != "auto":
        return setting
    return "bfloat16" if device.split(":")[0] == "cuda" else faster_precision(device)


def faster_precision(device: str) -> Precision:
    """Time a matrix product in both precisions; return "mixed" where bfloat16 is much faster for few and many rows."""
    import torch
    from torch.nn.functional import linear

    def seconds(rows: int, dtype: torch.dtype) -> float:
        inputs, weight = (torch.ones(size, 576, dtype=dtype, device=device) for size in (rows, 1536))
        times = []
        for _ in range(9):
            started = time.perf_counter()
            float(linear(inputs, weight)[0, 0])
            times.append(time.perf_counter() - started)
        return min(times)

    with torch.inference_mode():
        is_faster = all(seconds(rows, torch.bfloat16) * 1.3 < seconds(rows, torch.float32) for rows in (16, 512))
    return "mixed" if is_faster else "float32"


def use_bfloat16_products(model: Any) -> None:
    """Convert the weights of every linear layer except the output to bfloat16, in place. Idempotent."""
    import torch
    from torch.nn.functional import linear

    class MixedLinear(torch.nn.Linear):
        """A linear layer with bfloat16 weights between float32 activations."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            bias = None if self.bias is None else self.bias.to(self.weight.dtype)
            return linear(inputs.to(self.weight.dtype), self.weight, bias).to(inputs.dtype)

    output = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not output:
            module.weight = torch.nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
            module.__class__ = MixedLinear
