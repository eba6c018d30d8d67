"""Products in bfloat16: near what float32 gives, and the very layers that PEFT would run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from agent.config.settings import TuningSettings
from agent.llm.engine.attention import OneSequence
from agent.llm.weights.precision import use_bfloat16_products
from tests.tuner.tiny import adapted_model, random_tree, tiny_model
from tests.tuner.tree.test_packing import Gradients, packs_of
from tuner.methods.lora import with_adapter
from tuner.tree.loss import backward
from tuner.tree.mixed_precision import FusedGate, FusedRmsNorm, fuse, round_output
from tuner.tree.packing import Pack, weight_in


def gradients(model: Any, packs: list[Pack], precision: str) -> tuple[float, Gradients]:
    model.zero_grad()
    weight = weight_in(packs)
    loss = sum(backward(model, pack, weight, precision) for pack in packs) / weight
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


def distance(left: Gradients, right: Gradients) -> float:
    """Of all gradients as one vector, relative."""
    one, other = (torch.cat([side[name].flatten() for name in sorted(side)]) for side in (left, right))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("room", [120, 10_000])
@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("mistral", {"sliding_window": 7})])
def test_mixed_gradients_are_near_those_of_float32(kind: str, changes: dict[str, Any], room: int) -> None:
    packs = packs_of(random_tree(random.Random(3), rows=12, length=60), room)
    loss, exact = gradients(adapted_model(kind, **changes), packs, "float32")
    model = adapted_model(kind, rounded=True, **changes)
    rough_loss, rough = gradients(model, packs, "mixed")
    fuse(model)
    round_output(model.base_model.model)
    fused_loss, fused = gradients(model, packs, "mixed")
    assert {type(one).__name__ for one in model.modules() if hasattr(one, "lora_A")} == {"FusedLora"}
    name = kind.capitalize()
    assert {f"Fused{name}MLP", f"Fused{name}RMSNorm"} < {type(one).__name__ for one in model.modules()}
    assert rough_loss == pytest.approx(loss, rel=5e-3)
    assert fused_loss == pytest.approx(loss, rel=5e-3)
    assert distance(rough, exact) < 0.03
    assert distance(fused, exact) < 0.03
    assert {one.dtype for one in fused.values()} == {torch.float32}


def test_layers_with_dropout_are_left_to_peft() -> None:
    base = tiny_model()
    use_bfloat16_products(base)
    model, _ = with_adapter(base, TuningSettings(dropout=0.1))
    fuse(model)
    kinds = {type(one).__name__ for one in model.modules()}
    assert "Linear" in kinds
    assert not {"FusedLora", "FusedLlamaMLP"} & kinds


def test_a_model_without_its_adapter_is_as_it_was() -> None:
    model = adapted_model(rounded=True)
    ids = torch.arange(20)
    given = {"input_ids": ids[None], "position_ids": ids[None], "use_cache": False}
    with torch.inference_mode(), model.disable_adapter():
        before = model(**given, layout=OneSequence()).logits
        fuse(model)
        after = model(**given, layout=OneSequence()).logits
    bare = model.unload()
    with torch.inference_mode():
        taken_off = bare(**given, layout=OneSequence()).logits
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
    torch.testing.assert_close(taken_off, after)


def test_the_fused_norm_is_the_norm() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(48, eps=1e-5).requires_grad_(False)
    norm.weight.normal_()
    inputs = torch.randn(2, 7, 48)
    inputs[0, 0] = 0.0
    one, other = (inputs.clone().requires_grad_(True) for _ in range(2))
    expected = norm(one)
    found: Any = FusedRmsNorm.apply(other, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    direction = torch.randn_like(inputs)
    expected.backward(direction)
    found.backward(direction)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-4)


def test_the_fused_gate_is_silu_times_up() -> None:
    gate, up = (torch.randn(9, 31, dtype=torch.bfloat16) for _ in range(2))
    ours = [one.clone().requires_grad_(True) for one in (gate, up)]
    theirs = [one.float().requires_grad_(True) for one in (gate, up)]
    found: Any = FusedGate.apply(*ours)  # type: ignore[no-untyped-call]
    expected = silu(theirs[0]) * theirs[1]
    direction = torch.randn(9, 31).to(torch.bfloat16)
    found.backward(direction)
    expected.backward(direction.float())
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=0.03, atol=0.03)


def test_tied_input_embeddings_keep_their_weights() -> None:
    base = tiny_model(tie_word_embeddings=True)
    before = base.get_input_embeddings().weight.clone()
    round_output(base)
    assert torch.equal(base.get_input_embeddings().weight, before)
    assert base.get_output_embeddings().weight.dtype == torch.bfloat16
