"""The forward pass of a Llama-like decoder, fused to about a third of the operations.

For one token of a small model, launching some thousands of operations costs more than their arithmetic. Here linear
layers with the same input are one product, a LoRA adapter adds two small products to it, and rotary positions are
applied in place. Support does not depend on the model's name: its modules are inspected, and then the fused forward is
compared with the model's own on a short input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import Layout, OneSequence

if TYPE_CHECKING:
    import torch

_PRODUCTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The linear layers that are fused to one product, by its name here."""
_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_EMBEDDED = "lora_embedding_A"
"""Where PEFT keeps a LoRA of the embeddings, which the fused forward does not support."""
_PROBE = 24
"""Tokens of the input on which the two forwards are compared."""
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-4, 0.1
"""The largest difference allowed, relative to the norm of the logits; the second for products not in float32."""

_PACKED_ROWS = 32
"""The number of rows that packed weights are laid out for; they work with any number."""
_BUCKETS = ((32, 1), (128, 8), (4096, 32))
"""Pairs (rows, step): up to so many rows, a packed product is padded to a multiple of the step. oneDNN compiles and
keeps code for each number of rows: all up to 512 took 350 MB."""
_CANDIDATES = 64
"""So many tokens, the likeliest by rounded logits, get their logits computed again in float32."""

Delta = tuple["torch.Tensor", "torch.Tensor"]
"""What a LoRA adds to one product, x @ down.T @ up; down is [R, in], up [R, out]. Both stay float32: they are small,
and to round what they read costs more than it saves."""


@dataclass(frozen=True)
class LoraDeltas:
    """A LoRA adapter for the fused forward: for each layer, its delta by product."""

    deltas: Sequence[dict[str, Delta]]


class _FusedLinear:
    """One or more linear layers with the same input: y = x W' + b, in the precision of the weights."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, pack: bool) -> None:
        import torch

        self.dtype = weight.dtype
        self._weight = weight
        self._bias = bias
        # Weights in the order in which the matrix units read them; else they are reordered for each product.
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS) if pack else None

    def __call__(self, inputs: torch.Tensor, deltas: Sequence[tuple[slice, Delta]] = ()) -> torch.Tensor:
        """Map float32 [T, in] to float32 [T, out]; each delta is added to its rows only."""
        import torch
        from torch.nn.functional import linear

        rows = inputs.to(self.dtype)
        if self._packed is not None:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        else:
            out = linear(rows, self._weight, self._bias)
        out = out.float()
        for part, (down, up) in deltas:
            out[part].addmm_(linear(inputs[part].float(), down), up)
        return out


@dataclass(frozen=True)
class _FusedLayer:
    products: dict[str, _FusedLinear]
    before_attention: Any
    before_mlp: Any
    """The RMS norms, as modules."""
    activation: Any
    scale: float
    window: int | None


class FusedForward:
    """The fused forward of one model, on its own weights. Adapters are passed to each call; active ones are ignored."""

    def __init__(self, model: Any, layers: Sequence[_FusedLayer], *, pack: bool) -> None:
        self._embeddings = model.get_input_embeddings()
        self._rotary = model.model.rotary_emb
        self._norm = model.model.norm
        self._output = model.get_output_embeddings()
        self._layers = layers
        self._is_rounded = layers[0].products["qkv"].dtype != self._output.weight.dtype
        """Whether logits are computed with weights rounded below their own precision."""
        head = self._output.weight.detach().to(layers[0].products["qkv"].dtype)
        bias = None if self._output.bias is None else self._output.bias.detach().to(head.dtype)
        self._head = _FusedLinear(head, bias, pack=pack)
        self._is_packed = pack
        self.dtype = head.dtype
        """The type of the products and of the layers' weights."""
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._groups = int(config.num_key_value_heads)

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor,
        layout: Layout,
        loras: Sequence[tuple[slice, LoraDeltas]] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the tokens of one pass.

        Args:
            ids: int64 [T].
            positions: int64 [T].
            keep: int64 [B], the indices of the tokens whose logits are wanted.
            layout: which keys each token sees.
            loras: which rows go through which LoRA.

        Returns: The logits [B, V], and the final hidden states [B, hidden] that they were computed from; see `refine`.
        """
        from torch.nn.functional import pad

        count = len(ids)
        padding = _padding_rows(count) if self._is_packed else 0
        hidden = self._embeddings(pad(ids, (0, padding)))
        cos, sin = (part[0, :, None] for part in self._rotary(hidden, pad(positions, (0, padding))[None]))
        half, rotated_heads = cos.shape[-1] // 2, self._heads + self._groups
        first, second = -sin[..., :half], sin[..., half:]
        for number, layer in enumerate(self._layers):
            deltas = _by_product(loras, number)
            rows = _rms_norm(layer.before_attention, hidden)
            heads = layer.products["qkv"](rows, deltas["qkv"]).view(count + padding, rotated_heads + self._groups, -1)
            flat = heads[:, :rotated_heads]
            rotated = flat * cos
            rotated[..., :half].addcmul_(flat[..., half:], first)
            rotated[..., half:].addcmul_(flat[..., :half], second)
            query, key = rotated[:count, : self._heads].transpose(0, 1), rotated[:count, self._heads :].transpose(0, 1)
            value = heads[:count, rotated_heads:].transpose(0, 1)
            attended = layout.attend(number, query, key, value, layer.scale, layer.window)
            hidden += layer.products["out"](pad(attended.reshape(count, -1), (0, 0, 0, padding)), deltas["out"])
            rows = _rms_norm(layer.before_mlp, hidden)
            gate, up = layer.products["gate_up"](rows, deltas["gate_up"]).chunk(2, -1)
            hidden += layer.products["down"](layer.activation(gate) * up, deltas["down"])
        last = self._norm(hidden[keep])
        return self._head(last), last

    def refine(self, scores: torch.Tensor, ids: torch.Tensor | None, last: torch.Tensor) -> torch.Tensor:
        """Compute the highest logits of one token again in float32, where products are rounded.

        Rounded, the likeliest tokens often have equal logits, and the first of them would always be sampled.

        Args:
            scores: logits of `ids`, or of all ids; changed in place.
            ids: int64, the ids of `scores`; None for all.
            last: the final hidden state, [hidden].
        """
        from torch.nn.functional import linear

        if not self._is_rounded or len(scores) == 1:
            return scores
        top = scores.topk(min(_CANDIDATES, len(scores))).indices
        candidates = top if ids is None else ids[top]
        bias = None if self._output.bias is None else self._output.bias[candidates]
        scores[top] = linear(last, self._output.weight[candidates], bias)
        return scores


def _padding_rows(count: int) -> int:
    """Return how many rows to pad `count` rows with, to the next bucket."""
    step = next((step for most, step in _BUCKETS if count <= most), 1)
    return -count % step


def _by_product(loras: Sequence[tuple[slice, LoraDeltas]], number: int) -> dict[str, list[tuple[slice, Delta]]]:
    """Return the deltas of each product of a layer, each with its rows."""
    return {
        name: [(rows, lora.deltas[number][name]) for rows, lora in loras if name in lora.deltas[number]]
        for name in _PRODUCTS
    }


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import rms_norm

    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def fuse_forward(model: Any, *, pack: bool | None = None) -> FusedForward | None:
    """Return the fused forward of a model with ragged attention, or None where the model does not support it.

    The weights of fused layers are moved into one tensor; the layers keep views of it.

    Args:
        pack: whether to keep a second copy of the weights, packed for oneDNN; None decides by device and free memory.
    """
    import torch

    try:
        decoders = model.model.layers
        fits = all(_is_supported(layer) for layer in decoders)
        fits = fits and model.get_input_embeddings().weight.dtype == torch.float32
    except AttributeError:
        return None
    if not fits:
        return None
    size = min(_PROBE, int(model.config.vocab_size))
    ids = torch.arange(size, device=model.device)
    probe = OneSequence()
    with torch.inference_mode():
        expected = model(input_ids=ids[None], position_ids=ids[None], use_cache=False, layout=probe).logits[0]
    pack = _can_pack(model) if pack is None else pack
    layers = [_fuse_layer(layer, *probe.settings[number], pack=pack) for number, layer in enumerate(decoders)]
    fused = FusedForward(model, layers, pack=pack)
    with torch.inference_mode():
        logits, _ = fused(ids, ids, ids, OneSequence())
    tolerance = _TOLERANCE if layers[0].products["qkv"].dtype == torch.float32 else _ROUNDED_TOLERANCE
    is_equal = float((logits - expected).norm()) <= tolerance * float(expected.norm())
    return fused if is_equal else None


def fuse_lora(model: Any, name: str) -> LoraDeltas | None:
    """Return the LoRA that PEFT added to a model as `name`; None where it does more than the fused forward supports."""
    fused_count = 0
    layers = []
    for layer in model.model.layers:
        deltas = {}
        for product, members in _PRODUCTS.items():
            modules = [layer.get_submodule(member) for member in members]
            has_lora = [name in getattr(module, "lora_A", ()) for module in modules]
            if any(has_lora):
                delta = _fuse_delta(modules, has_lora, name)
                if delta is None:
                    return None
                deltas[product] = delta
            fused_count += sum(has_lora)
        layers.append(deltas)
    total = sum(name in getattr(module, kind, ()) for module in model.modules() for kind in ("lora_A", _EMBEDDED))
    return LoraDeltas(layers) if fused_count == total else None


def _fuse_delta(modules: Sequence[Any], has_lora: Sequence[bool], name: str) -> Delta | None:
    """Return the LoRA of layers that are one product; None for DoRA, biases and other variants."""
    import torch

    downs, ups = [], []
    start = 0
    out = sum(_base_layer(module).weight.shape[0] for module in modules)
    for module, has in zip(modules, has_lora, strict=True):
        weight = _base_layer(module).weight
        if has:
            a, b = module.lora_A[name], module.lora_B[name]
            if module.use_dora.get(name) or b.bias is not None or not isinstance(a, torch.nn.Linear):
                return None
            up = torch.zeros(a.weight.shape[0], out, device=weight.device)
            up[:, start : start + weight.shape[0]] = (b.weight * module.scaling[name]).t()
            downs.append(a.weight)
            ups.append(up)
        start += weight.shape[0]
    return torch.cat(downs), torch.cat(ups)


def _can_pack(model: Any) -> bool:
    """Whether weights can be packed here, and memory has room for two more copies of them."""
    import psutil  # type: ignore[import-untyped]
    import torch

    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    can_pack = model.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return can_pack and hasattr(torch.ops.mkldnn, "_linear_pointwise") and psutil.virtual_memory().available > 2 * size


def _fuse_layer(layer: Any, scale: float, window: int | None, *, pack: bool) -> _FusedLayer:
    products = {
        name: _fuse_linear([layer.get_submodule(member) for member in members], pack=pack)
        for name, members in _PRODUCTS.items()
    }
    return _FusedLayer(products, layer.input_layernorm, layer.post_attention_layernorm, layer.mlp.act_fn, scale, window)


def _fuse_linear(modules: Sequence[Any], *, pack: bool) -> _FusedLinear:
    """Concatenate the weights of linear layers; each layer keeps its part, as a view."""
    import torch

    bias = None
    if modules[0].bias is not None:
        bias = torch.cat([module.bias.detach() for module in modules]).to(modules[0].weight.dtype)
    if len(modules) == 1:
        return _FusedLinear(modules[0].weight.detach(), bias, pack=pack)
    weight = torch.cat([module.weight.detach() for module in modules])
    start = 0
    for module in modules:
        end = start + module.weight.shape[0]
        module.weight.data = weight[start:end]
        start = end
    return _FusedLinear(weight, bias, pack=pack)


def _is_supported(layer: Any) -> bool:
    """Whether a decoder layer has the modules of Llama and nothing else."""
    import torch

    for place, names in _PARTS.items():
        if {name for name, _ in layer.get_submodule(place).named_children()} != names:
            return False
    if not all(hasattr(norm, "variance_epsilon") for norm in (layer.input_layernorm, layer.post_attention_layernorm)):
        return False
    for members in _PRODUCTS.values():
        modules = [layer.get_submodule(member) for member in members]
        if not all(isinstance(module, torch.nn.Linear) for module in modules):
            return False
        if len({module.weight.dtype for module in modules}) > 1 or len({module.bias is None for module in modules}) > 1:
            return False
    return True


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
