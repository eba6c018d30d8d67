"""Training with matrix products in bfloat16 and everything else in float32.

Fuses a linear layer with its LoRA, and attention with its backward pass, so that activations are read two or three
times and not a dozen. Imports torch; import this module where it is needed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import linear, silu


def attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute attention with products in bfloat16.

    Args:
        query: float32 [heads, T, d].
        keys: bfloat16 [kv_heads, S, d].
        values: bfloat16 [kv_heads, S, d].
        bias: bfloat16 [T, S], added to the scores.
        scale: Of the scores.

    Returns:
        float32 [heads, T, d].
    """
    heads, count, width = query.shape
    # Heads that share keys become rows of one query, so the keys are not repeated.
    folded = query.reshape(keys.shape[0], -1, width).to(torch.bfloat16)
    apply: Any = _Attention.apply
    out: torch.Tensor = apply(folded, keys, values, bias, scale)
    return out.view(heads, count, width).float()


class _Attention(torch.autograd.Function):
    """softmax(Q K' scale + bias) V; saves only the probabilities for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Any, keys: Any, values: Any, bias: Any, scale: float) -> Any:
        groups, rows, _ = query.shape
        scores = torch.bmm(query, keys.transpose(1, 2)).view(groups, -1, *bias.shape)
        shares = torch.add(bias, scores, alpha=scale).softmax(-1).to(query.dtype).view(groups, rows, -1)
        ctx.save_for_backward(query, keys, values, shares)
        ctx.scale = scale
        return torch.bmm(shares, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        query, keys, values, shares = ctx.saved_tensors
        to_values = torch.bmm(shares.transpose(1, 2), gradient)
        to_shares = torch.bmm(gradient, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype).mul_(ctx.scale)
        return torch.bmm(to_scores, keys), torch.bmm(to_scores.transpose(1, 2), query), to_values, None, None


class _LoraLinear(torch.autograd.Function):
    """x W' + scale (x A') B', from bfloat16 x; W is frozen."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
        rows = inputs.view(-1, inputs.shape[-1])
        down, up = down.to(weight.dtype), (up * scale).to(weight.dtype)
        inner = linear(rows, down)
        out = linear(rows, weight, bias).addmm_(inner, up.t())
        ctx.save_for_backward(rows, weight, inner, down, up)
        ctx.scale, ctx.shape = scale, inputs.shape
        return out.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, weight, inner, down, up = ctx.saved_tensors
        gradient = gradients[0].reshape(len(rows), -1).to(weight.dtype)
        to_inner = gradient @ up
        to_inputs = (gradient @ weight).addmm_(to_inner, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        to_down = (to_inner.t() @ rows).float()
        to_up = (gradient.t() @ inner).float() * ctx.scale
        return to_inputs, None, None, to_down, to_up, None


class FusedGate(torch.autograd.Function):
    """silu(gate) * up in bfloat16; the backward pass computes the activation again."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


class FusedRmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x x) + eps) * weight in float32; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any, eps: float) -> Any:
        sizes = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
        scale = (sizes.square_() / inputs.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        return (inputs * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs, weight, scale = ctx.saved_tensors
        gradient = gradients[0] * weight
        along = (gradient * inputs).sum(-1, keepdim=True) * scale.pow(3) / -inputs.shape[-1]
        return gradient.mul_(scale).addcmul_(inputs, along), None, None


class _RoundingCache:
    """Keeps the last rounded activations, which neighbouring layers share."""

    def __init__(self) -> None:
        self._from: torch.Tensor | None = None
        self._to: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._from is not inputs or self._to is None:
            self._from, self._to = inputs, inputs.to(torch.bfloat16)
        return self._to


_rounded = _RoundingCache()


def round_output(model: Any) -> None:
    """Give the output layer bfloat16 weights of its own; tied input embeddings do not change."""
    head = model.get_output_embeddings()
    rounded = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    rounded.weight = torch.nn.Parameter(head.weight.detach().to(torch.bfloat16), requires_grad=False)
    if head.bias is not None:
        rounded.bias = torch.nn.Parameter(head.bias.detach().to(torch.bfloat16), requires_grad=False)
    model.set_output_embeddings(rounded)


def fuse(model: Any) -> None:
    """Fuse the parts of a PEFT model on bfloat16 weights that can be fused.

    These are linear layers with plain LoRA, the gate of an MLP of such layers, and frozen RMS norms.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and module.get_base_layer().weight.dtype == torch.bfloat16 and _is_plain(module):
            module.__class__ = _fused_lora()
    for module in model.modules():
        kind: Any = type(module)
        if _is_gated(module):
            module.__class__ = _fused_like(kind, _gated_forward)
        elif _is_frozen_norm(module):
            module.__class__ = _fused_like(kind, _norm_forward)


@functools.cache
def _fused_lora() -> Any:
    from peft.tuners.lora import Linear

    apply: Any = _LoraLinear.apply

    class FusedLora(Linear):
        """A linear layer fused with its only LoRA."""

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not _is_fused(self):
                return super().forward(x, *args, **kwargs)
            return self.rounded(x).float()

        def rounded(self, x: torch.Tensor) -> torch.Tensor:
            """Return the output in bfloat16."""
            (name,) = self.active_adapters
            base = self.get_base_layer()
            with torch.autocast(x.device.type, enabled=False):
                out: torch.Tensor = apply(
                    _rounded(x),
                    base.weight,
                    base.bias,
                    self.lora_A[name].weight,
                    self.lora_B[name].weight,
                    self.scaling[name],
                )
            return out

    return FusedLora


def _is_fused(layer: Any) -> bool:
    """Return whether a layer is fused now: its adapter may be disabled or removed."""
    return type(layer) is _fused_lora() and not layer.disable_adapters and len(layer.active_adapters) == 1


@functools.cache
def _fused_like(kind: Any, forward: Any) -> Any:
    """Return a subclass with another forward; the original is `plain_forward`."""
    return type(f"Fused{kind.__name__}", (kind,), {"forward": forward, "plain_forward": kind.forward})


def _gated_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    if not all(_is_fused(layer) for layer in (self.gate_proj, self.up_proj, self.down_proj)):
        plain: torch.Tensor = self.plain_forward(x)
        return plain
    apply: Any = FusedGate.apply
    out: torch.Tensor = self.down_proj(apply(self.gate_proj.rounded(x), self.up_proj.rounded(x)))
    return out


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    apply: Any = FusedRmsNorm.apply
    out: torch.Tensor = apply(hidden_states, self.weight, self.variance_epsilon)
    return out


def _is_gated(module: Any) -> bool:
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    silus = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return silus and len(list(module.children())) == 4 and all(type(layer) is _fused_lora() for layer in layers)


def _is_frozen_norm(module: Any) -> bool:
    names = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
    return type(module).__name__ in names and not module.weight.requires_grad and module.weight.dtype == torch.float32


def _is_plain(layer: Any) -> bool:
    """Return whether a layer's LoRA has no dropout, no DoRA and no bias."""
    dropouts = all(isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())
    biases = any(matrix.bias is not None for matrix in layer.lora_B.values())
    return dropouts and not biases and not any(layer.use_dora.values())
