"""The forward pass of a decoder of the Llama kind in about a third of the operations.

A token of a small model costs less arithmetic than it costs to start some thousands of operations. Here layers that
read the same are one product, adapters are two more beside it, and positions are turned in place. Whether a model is of
this kind is not taken from its name: its parts are looked at, and then the pass is compared with the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import Layout, OneSequence

if TYPE_CHECKING:
    import torch

_TOGETHER = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The linear layers that are one product, by what that is called here."""
_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_EMBEDDED = "lora_embedding_A"
"""Where PEFT keeps what a LoRA adds to embeddings, which the lean pass does not."""
_PROBE = 24
"""Tokens of the pass by which the two are compared."""
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-4, 0.1
"""How far the two may be apart, of the size of the logits; the second where products are not in float32."""

_ROWS = 32
"""For how many rows the packed weights are laid out; they serve any number."""
_STEPS = ((32, 1), (128, 8), (4096, 32))
"""Up to so many rows, packed products are made of a number of rows that is a multiple of so many. For each number of
rows oneDNN makes code of its own and keeps it: all up to 512 came to 350 MB."""
_CANDIDATES = 64
"""Of so many tokens, the likeliest by rounded logits, the logits are taken anew in float32."""

Delta = tuple["torch.Tensor", "torch.Tensor"]
"""What a LoRA adds to one product, x @ down.T @ up; down is [R, in], up [R, out]. Both stay float32: they are small,
and to round what they read costs more than it saves."""


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter as the pass reads it: for each layer, what it adds to each product that it adds to."""

    deltas: Sequence[dict[str, Delta]]


class _Product:
    """One or more linear layers that read the same; y = x W' + b, in the precision of the weights."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, pack: bool) -> None:
        import torch

        self.dtype = weight.dtype
        self._weight = weight
        self._bias = bias
        # Weights in the order in which the processor's matrix units read them, which is otherwise made at each product.
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if pack else None

    def __call__(self, inputs: torch.Tensor, deltas: Sequence[tuple[slice, Delta]] = ()) -> torch.Tensor:
        """Float32 [T, in] -> float32 [T, out]; each delta is added to some of the rows."""
        import torch
        from torch.nn.functional import linear

        rows = inputs.to(self.dtype)
        if self._packed is not None:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        else:
            out = linear(rows, self._weight, self._bias)
        out = out.float()
        for those, (down, up) in deltas:
            out[those].addmm_(linear(inputs[those].float(), down), up)
        return out


@dataclass(frozen=True)
class _Layer:
    products: dict[str, _Product]
    before_attention: Any
    before_mlp: Any
    """The RMS norms, as modules."""
    activation: Any
    scale: float
    window: int | None


class LeanPass:
    """Runs a model's own weights. Adapters are given to each pass; the model is not asked which are active."""

    def __init__(self, model: Any, layers: Sequence[_Layer], *, pack: bool) -> None:
        self._embeddings = model.get_input_embeddings()
        self._rotary = model.model.rotary_emb
        self._norm = model.model.norm
        self._output = model.get_output_embeddings()
        self._layers = layers
        self._coarse = layers[0].products["qkv"].dtype != self._output.weight.dtype
        """Whether the logits of all tokens are made of rounded weights."""
        head = self._output.weight.detach().to(layers[0].products["qkv"].dtype)
        bias = None if self._output.bias is None else self._output.bias.detach().to(head.dtype)
        self._head = _Product(head, bias, pack=pack)
        self._packed = pack
        self.dtype = head.dtype
        """Of the products; the weights of layers are kept in it."""
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._groups = int(config.num_key_value_heads)

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor,
        layout: Layout,
        loras: Sequence[tuple[slice, Lora]] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions are [T] of this pass, `keep` [B] names tokens of it; each LoRA acts on some of the tokens.

        Returns the logits [B, V] behind those, and what they are made of, [B, hidden]; see `refine`.
        """
        from torch.nn.functional import pad

        count = len(ids)
        spare = _spare_rows(count) if self._packed else 0
        hidden = self._embeddings(pad(ids, (0, spare)))
        cos, sin = (part[0, :, None] for part in self._rotary(hidden, pad(positions, (0, spare))[None]))
        half, turned = cos.shape[-1] // 2, self._heads + self._groups
        first, second = -sin[..., :half], sin[..., half:]
        for number, layer in enumerate(self._layers):
            deltas = _by_product(loras, number)
            rows = _normed(layer.before_attention, hidden)
            heads = layer.products["qkv"](rows, deltas["qkv"]).view(count + spare, turned + self._groups, -1)
            flat = heads[:, :turned]
            round_ = flat * cos
            round_[..., :half].addcmul_(flat[..., half:], first)
            round_[..., half:].addcmul_(flat[..., :half], second)
            query, key = round_[:count, : self._heads].transpose(0, 1), round_[:count, self._heads :].transpose(0, 1)
            value = heads[:count, turned:].transpose(0, 1)
            seen = layout.attend(number, query, key, value, layer.scale, layer.window)
            hidden += layer.products["out"](pad(seen.reshape(count, -1), (0, 0, 0, spare)), deltas["out"])
            rows = _normed(layer.before_mlp, hidden)
            gate, up = layer.products["gate_up"](rows, deltas["gate_up"]).chunk(2, -1)
            hidden += layer.products["down"](layer.activation(gate) * up, deltas["down"])
        last = self._norm(hidden[keep])
        return self._head(last), last

    def refine(self, scores: torch.Tensor, ids: torch.Tensor | None, last: torch.Tensor) -> torch.Tensor:
        """Logits of these ids, or of all, with the highest of them taken anew in float32 where they were rounded.

        Rounded, the likeliest tokens often have the same logit, and the first of them would be chosen.
        """
        from torch.nn.functional import linear

        if not self._coarse or len(scores) == 1:
            return scores
        top = scores.topk(min(_CANDIDATES, len(scores))).indices
        chosen = top if ids is None else ids[top]
        bias = None if self._output.bias is None else self._output.bias[chosen]
        scores[top] = linear(last, self._output.weight[chosen], bias)
        return scores


def _spare_rows(count: int) -> int:
    """How many idle rows are put behind `count`, so that there are few numbers of rows."""
    step = next((step for most, step in _STEPS if count <= most), 1)
    return -count % step


def _by_product(loras: Sequence[tuple[slice, Lora]], number: int) -> dict[str, list[tuple[slice, Delta]]]:
    """What is added to each product of a layer, and to which rows."""
    return {
        name: [(those, lora.deltas[number][name]) for those, lora in loras if name in lora.deltas[number]]
        for name in _TOGETHER
    }


def _normed(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import rms_norm

    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def lean_pass(model: Any) -> LeanPass | None:
    """The lean pass of a model with ragged attention, or None where it is of another kind.

    The weights of layers that are one product from now on lie behind each other; they are the model's own still.
    """
    import torch

    try:
        decoders = model.model.layers
        fits = all(_is_of_the_kind(layer) for layer in decoders)
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
    pack = _can_pack(model)
    layers = [_layer(layer, *probe.asked[number], pack=pack) for number, layer in enumerate(decoders)]
    lean = LeanPass(model, layers, pack=pack)
    with torch.inference_mode():
        logits, _ = lean(ids, ids, ids, OneSequence())
    tolerance = _TOLERANCE if layers[0].products["qkv"].dtype == torch.float32 else _ROUNDED_TOLERANCE
    near = float((logits - expected).norm()) <= tolerance * float(expected.norm())
    return lean if near else None


def lora_of(model: Any, name: str) -> Lora | None:
    """What PEFT put on a model under `name`, or None where that is more than LoRA on the layers of the lean pass."""
    known = 0
    layers = []
    for layer in model.model.layers:
        deltas = {}
        for product, members in _TOGETHER.items():
            modules = [layer.get_submodule(member) for member in members]
            held = [name in getattr(module, "lora_A", ()) for module in modules]
            if any(held):
                delta = _delta(modules, held, name)
                if delta is None:
                    return None
                deltas[product] = delta
            known += sum(held)
        layers.append(deltas)
    every = sum(name in getattr(module, kind, ()) for module in model.modules() for kind in ("lora_A", _EMBEDDED))
    return Lora(layers) if known == every else None


def _delta(modules: Sequence[Any], held: Sequence[bool], name: str) -> Delta | None:
    import torch

    downs, ups = [], []
    start = 0
    out = sum(_plain(module).weight.shape[0] for module in modules)
    for module, has in zip(modules, held, strict=True):
        weight = _plain(module).weight
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
    """Whether weights can be packed here, and memory holds them twice with as much again to spare."""
    import psutil  # type: ignore[import-untyped]
    import torch

    size = sum(one.numel() * one.element_size() for one in model.parameters())
    there = model.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and hasattr(torch.ops.mkldnn, "_linear_pointwise") and psutil.virtual_memory().available > 2 * size


def _layer(layer: Any, scale: float, window: int | None, *, pack: bool) -> _Layer:
    products = {
        name: _product([layer.get_submodule(one) for one in members], pack=pack) for name, members in _TOGETHER.items()
    }
    return _Layer(products, layer.input_layernorm, layer.post_attention_layernorm, layer.mlp.act_fn, scale, window)


def _product(modules: Sequence[Any], *, pack: bool) -> _Product:
    """Lays the weights of linear layers behind each other; each keeps its part, as a view."""
    import torch

    bias = None
    if modules[0].bias is not None:
        bias = torch.cat([module.bias.detach() for module in modules]).to(modules[0].weight.dtype)
    if len(modules) == 1:
        return _Product(modules[0].weight.detach(), bias, pack=pack)
    weight = torch.cat([module.weight.detach() for module in modules])
    start = 0
    for module in modules:
        end = start + module.weight.shape[0]
        module.weight.data = weight[start:end]
        start = end
    return _Product(weight, bias, pack=pack)


def _is_of_the_kind(layer: Any) -> bool:
    import torch

    for place, names in _PARTS.items():
        if {name for name, _ in layer.get_submodule(place).named_children()} != names:
            return False
    if not all(hasattr(norm, "variance_epsilon") for norm in (layer.input_layernorm, layer.post_attention_layernorm)):
        return False
    for members in _TOGETHER.values():
        modules = [layer.get_submodule(member) for member in members]
        if not all(isinstance(module, torch.nn.Linear) for module in modules):
            return False
        if len({module.weight.dtype for module in modules}) > 1 or len({module.bias is None for module in modules}) > 1:
            return False
    return True


def _plain(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
