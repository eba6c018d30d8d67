"""Training with products in bfloat16 and all else in float32, where the machine multiplies bfloat16 faster.

What a framework does in a dozen passes over the activations is done here in two or three: a linear layer together
with its LoRA, and attention with its own backward pass. Imports torch; import it where it is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear


def attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Float32 query [heads, T, d] over bfloat16 keys and values [kv_heads, S, d], with `bias` [T, S] on the scores.

    Returns float32 [heads, T, d].
    """
    heads, count, width = query.shape
    # The heads that share keys become more rows of one query, so the keys are read once and not repeated.
    folded = query.reshape(keys.shape[0], -1, width).to(torch.bfloat16)
    apply: Any = _Attention.apply
    out: torch.Tensor = apply(folded, keys, values, bias, scale)
    return out.view(heads, count, width).float()


class _Attention(torch.autograd.Function):
    """softmax(Q K' scale + bias) V; of its inner products only the probabilities are kept."""

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
        return out.view(*inputs.shape[:-1], -1).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, weight, inner, down, up = ctx.saved_tensors
        gradient = gradients[0].reshape(len(rows), -1).to(weight.dtype)
        to_inner = gradient @ up
        to_inputs = (gradient @ weight).addmm_(to_inner, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        to_down = (to_inner.t() @ rows).float()
        to_up = (gradient.t() @ inner).float() * ctx.scale
        return to_inputs, None, None, to_down, to_up, None


class _Rounded:
    """The last activations that were rounded: layers side by side read the same."""

    def __init__(self) -> None:
        self._from: torch.Tensor | None = None
        self._to: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._from is not inputs or self._to is None:
            self._from, self._to = inputs, inputs.to(torch.bfloat16)
        return self._to


_rounded = _Rounded()


def round_output(model: Any) -> None:
    """Give the output layer bfloat16 weights of its own; tied input embeddings stay as they are."""
    head = model.get_output_embeddings()
    rounded = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    rounded.weight = torch.nn.Parameter(head.weight.detach().to(torch.bfloat16), requires_grad=False)
    if head.bias is not None:
        rounded.bias = torch.nn.Parameter(head.bias.detach().to(torch.bfloat16), requires_grad=False)
    model.set_output_embeddings(rounded)


def fuse_lora(model: Any) -> None:
    """Let every plain LoRA layer of a PEFT model that is on bfloat16 weights make its products at once."""
    from peft.tuners.lora import Linear

    apply: Any = _LoraLinear.apply

    class FusedLora(Linear):
        """A linear layer and its one LoRA."""

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.disable_adapters or len(self.active_adapters) != 1:
                return super().forward(x, *args, **kwargs)
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

    for module in model.modules():
        if type(module) is Linear and module.get_base_layer().weight.dtype == torch.bfloat16 and _is_plain(module):
            module.__class__ = FusedLora


def _is_plain(layer: Any) -> bool:
    """No dropout, no DoRA, no bias of its own."""
    dropouts = all(isinstance(one, torch.nn.Identity) for one in layer.lora_dropout.values())
    biases = any(one.bias is not None for one in layer.lora_B.values())
    return dropouts and not biases and not any(layer.use_dora.values())
