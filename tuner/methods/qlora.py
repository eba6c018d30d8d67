"""QLoRA: frozen layers in 4 bits (NF4), by bitsandbytes where it is installed. Source: Dettmers et al., 2023."""

from __future__ import annotations

from typing import Any

from agent.errors import TuningError


def quantise(model: Any, precision: str) -> None:
    """Quantise every linear layer except the output to 4 bits, in place. Raises TuningError where that fails."""
    import torch

    try:
        from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]
    except (ImportError, RuntimeError, OSError) as error:
        raise TuningError(
            f'method "qlora" needs bitsandbytes ({error}); install it with `pip install "ratchet-loop[qlora]"`, or set '
            'tuning.method to "lora"'
        ) from error
    output = model.get_output_embeddings()
    product = torch.bfloat16 if precision == "mixed" else torch.float32
    modules = model.named_modules()
    linear = [(name, module) for name, module in modules if type(module) is torch.nn.Linear and module is not output]
    try:
        for name, module in linear:
            quantised = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=product)
            quantised.weight = Params4bit(module.weight.detach(), quant_type="nf4", module=quantised)
            quantised.bias = module.bias
            # Its packing for inference on a CPU is not undone for the training step after an evaluation.
            quantised.support_avx512bf16_for_cpu = False
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, quantised.to(module.weight.device))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise TuningError(
            f'method "qlora": bitsandbytes does not run on {model.device} ({error}); set tuning.method to "lora"'
        ) from error
    model.is_loaded_in_4bit = True
