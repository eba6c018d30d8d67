"""Which form of weights a small model decodes fastest with on this processor, and what each form does to its logits.

Products alone are timed, those of all layers of the base one after the other, so that weights come from memory and not
from a cache, as they do in a pass. What a form does to the logits is looked at with weights that are rounded to it and
products in float32, on the first things said about tickets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.llm.prompt.render import Renderer, messages
from agent.llm.weights import load as weights
from agent.records.run import Provenance, Trajectory
from agent.runtime import Runtime
from agent.util.threads import run_in_thread
from tests.bench import inference_tasks

ROWS = (1, 8, 32, 128)
REPEATS = 7
GROUP = 32
"""Weights that share a scale in four bits."""
COMPARED = 20

Product = Callable[[Any], Any]


def bits(home: Path) -> dict[str, Any]:
    """Milliseconds of all products of a pass, by form and rows, and the correlation of logits with float32."""
    work = inference_tasks.tickets(home, COMPARED)
    prompts = _prompts(work)
    folder = weights.resolve_model(work.project.named(work.project.settings.model.base), work.project.home.models)
    model = weights.load_model(folder, device="cpu", dtype="float32")
    return {"forms": run_in_thread(lambda: _measure(model, prompts)), "rows": list(ROWS)}


def _measure(model: Any, prompts: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    import torch

    layers = [one.weight.detach() for one in model.model.modules() if isinstance(one, torch.nn.Linear)]
    expected = _logits(model, prompts)
    found = []
    with torch.inference_mode():
        for name, (make, rounded) in FORMS.items():
            try:
                products = [make(weight) for weight in layers]
                took = {rows: _seconds(products, layers, rows, _INPUTS[name]) * 1000 for rows in ROWS}
            except (RuntimeError, AttributeError) as fault:
                found.append({"form": name, "fault": str(fault).splitlines()[0][:200]})
                continue
            del products
            row: dict[str, Any] = {"form": name, "milliseconds": took}
            if rounded is not None:
                row["logit_correlation"] = _correlation(model, prompts, expected, rounded)
            found.append(row)
    return found


def _seconds(products: list[Product], layers: list[Any], rows: int, dtype: str) -> float:
    import torch

    inputs = {size: torch.randn(rows, size).to(getattr(torch, dtype)) for size in {one.shape[1] for one in layers}}
    given = [inputs[one.shape[1]] for one in layers]
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for product, one in zip(products, given, strict=True):
            product(one)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def _correlation(model: Any, prompts: list[tuple[int, ...]], expected: list[Any], rounded: Product) -> float:
    """Of the logits with every linear layer's weights rounded, and those of float32; mean over the prompts."""
    import torch

    layers = [one for one in model.model.modules() if isinstance(one, torch.nn.Linear)]
    own = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = rounded(layer.weight.data)
    try:
        pairs = zip(_logits(model, prompts), expected, strict=True)
        return statistics.mean(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight.data = weight


def _logits(model: Any, prompts: list[tuple[int, ...]]) -> list[Any]:
    import torch

    with torch.inference_mode():
        return [model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float() for ids in prompts]


def _prompts(work: inference_tasks.Work) -> list[tuple[int, ...]]:
    with Runtime(work.project) as runtime:
        frame = runtime.frame()
        folder = weights.resolve_model(work.project.named(work.project.settings.model.base), work.project.home.models)
        renderer = Renderer(weights.load_tokenizer(folder))
        return [renderer.prompt(messages(Trajectory("t", task.task, Provenance(), ""), frame)) for task in work.tasks]


def _float32(weight: Any) -> Product:
    from torch.nn.functional import linear

    return lambda rows: linear(rows, weight)


def _bfloat16(weight: Any) -> Product:
    from torch.nn.functional import linear

    held = weight.bfloat16()
    return lambda rows: linear(rows, held)


def _packed(weight: Any) -> Product:
    import torch

    held = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), 32)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, held, None, "none", [], "")


def _int8(weight: Any) -> Product:
    """Eight-bit weights, activations in bfloat16."""
    import torch

    scales = weight.abs().amax(1) / 127
    held = (weight / scales[:, None]).round().to(torch.int8)
    scales = scales.bfloat16()
    return lambda rows: torch.ops.aten._weight_int8pack_mm(rows, held, scales)


def _int8_dynamic(weight: Any) -> Product:
    """Eight bits on both sides; activations are rounded at each product."""
    import torch

    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    plain.weight.data = weight
    made = torch.ao.nn.quantized.dynamic.Linear(weight.shape[1], weight.shape[0], bias_=False)
    scales = weight.abs().amax(1).double() / 127
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    made.set_weight_bias(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None)
    return made


def _int4(weight: Any) -> Product:
    """Four-bit weights in groups of 32, activations in bfloat16."""
    import torch

    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = grouped.amin(2), grouped.amax(2)
    scales = ((high - low) / 15).clamp_min(1e-8)
    held = ((grouped - low[..., None]) / scales[..., None]).round().clamp(0, 15).reshape(weight.shape).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(held, 1)
    both = torch.stack([scales, low + 8 * scales], 2).transpose(0, 1).contiguous().bfloat16()
    return lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, both)


def _to_bfloat16(weight: Any) -> Any:
    return weight.bfloat16().float()


def _to_int8(weight: Any) -> Any:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round() * scales


def _to_int4(weight: Any) -> Any:
    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
    scales = ((high - low) / 15).clamp_min(1e-8)
    return (((grouped - low) / scales).round() * scales + low).reshape(weight.shape)


FORMS: dict[str, tuple[Callable[[Any], Product], Product | None]] = {
    "float32": (_float32, None),
    "bfloat16": (_bfloat16, _to_bfloat16),
    "bfloat16, packed": (_packed, _to_bfloat16),
    "int8 weights": (_int8, _to_int8),
    "int8, both sides": (_int8_dynamic, None),
    "int4 weights": (_int4, _to_int4),
}
_INPUTS = {name: "float32" if name in ("float32", "int8, both sides") else "bfloat16" for name in FORMS}
