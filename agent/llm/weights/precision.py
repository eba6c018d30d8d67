"""In what precision the matrix products of a model are made.

"mixed" keeps the weights of the linear layers in bfloat16, of which CPUs and GPUs that know it read and multiply
several times as many a second; all between them (residuals, norms, attention, adapters) and the output layer stay
float32. Sums inside a product are float32 either way. Not promised: that "mixed" gives the ids that float32 gives
where two tokens are all but equally likely.
"""

from __future__ import annotations

import time
from typing import Any, Literal

Precision = Literal["float32", "mixed"]


def serving_dtype(wanted: str, device: str) -> str:
    """What the weights are loaded in: what is `wanted`; for "auto" bfloat16 on CUDA, elsewhere the faster precision.

    Decoding on a GPU waits for weights to be read, and bfloat16 is half as much to read.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.split(":")[0] == "cuda" else faster_precision(device)


def faster_precision(device: str) -> Precision:
    """Times a matrix product of this machine in both: "mixed" where bfloat16 wins clearly, for few rows as for many."""
    import torch
    from torch.nn.functional import linear

    def seconds(rows: int, dtype: torch.dtype) -> float:
        inputs, weight = (torch.ones(size, 576, dtype=dtype, device=device) for size in (rows, 1536))
        took = []
        for _ in range(9):
            started = time.perf_counter()
            float(linear(inputs, weight)[0, 0])
            took.append(time.perf_counter() - started)
        return min(took)

    with torch.inference_mode():
        wins = all(seconds(rows, torch.bfloat16) * 1.3 < seconds(rows, torch.float32) for rows in (16, 512))
    return "mixed" if wins else "float32"


def use_bfloat16_products(model: Any) -> None:
    """Give every linear layer but the output one bfloat16 weights, in place. A second time changes nothing."""
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
