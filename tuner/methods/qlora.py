"""QLoRA: the frozen layers in 4 bits (NF4), by bitsandbytes, where that runs. Source: Dettmers et al., 2023."""

from __future__ import annotations

from typing import Any

from agent.errors import TuningError


def quantise(model: Any, precision: str) -> None:
    """Give every linear layer but the output 4-bit weights, in place. Raises TuningError where that cannot be."""
    import torch

    try:
        from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]
    except (ImportError, RuntimeError, OSError) as fault:
        raise TuningError(
            f'method "qlora" needs bitsandbytes ({fault}); install it with `pip install "ratchet-loop[qlora]"`, or set '
            'tuning.method to "lora"'
        ) from fault
    output = model.get_output_embeddings()
    product = torch.bfloat16 if precision == "mixed" else torch.float32
    linear = [(name, one) for name, one in model.named_modules() if type(one) is torch.nn.Linear and one is not output]
    try:
        for name, module in linear:
            small = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=product)
            small.weight = Params4bit(module.weight.detach(), quant_type="nf4", module=small)
            small.bias = module.bias
            # Its packing for inference on a CPU is not undone for the training step behind an evaluation.
            small.support_avx512bf16_for_cpu = False
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, small.to(module.weight.device))
    except (RuntimeError, NotImplementedError, ValueError) as fault:
        raise TuningError(
            f'method "qlora": bitsandbytes does not run on {model.device} ({fault}); set tuning.method to "lora"'
        ) from fault
    model.is_loaded_in_4bit = True
