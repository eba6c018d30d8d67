"""Products in bfloat16: near what float32 gives, and the very layers that PEFT would run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from agent.llm.precision import use_bfloat16_products
from tests.tuner.test_packing import Gradients, packs_of
from tests.tuner.tiny import adapted_model, random_tree, tiny_model
from tuner.loss import backward
from tuner.methods import with_adapter
from tuner.mixed import fuse_lora, round_output
from tuner.packing import Pack, weight_in
from tuner.train_settings import TrainSettings


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
    fuse_lora(model)
    round_output(model.base_model.model)
    fused_loss, fused = gradients(model, packs, "mixed")
    assert {type(one).__name__ for one in model.modules() if hasattr(one, "lora_A")} == {"FusedLora"}
    assert rough_loss == pytest.approx(loss, rel=5e-3)
    assert fused_loss == pytest.approx(loss, rel=5e-3)
    assert distance(rough, exact) < 0.03
    assert distance(fused, exact) < 0.03
    assert {one.dtype for one in fused.values()} == {torch.float32}


def test_layers_with_dropout_are_left_to_peft() -> None:
    base = tiny_model()
    use_bfloat16_products(base)
    model, _ = with_adapter(base, TrainSettings(dropout=0.1))
    fuse_lora(model)
    assert {type(one).__name__ for one in model.modules() if hasattr(one, "lora_A")} == {"Linear"}


def test_tied_input_embeddings_keep_their_weights() -> None:
    base = tiny_model(tie_word_embeddings=True)
    before = base.get_input_embeddings().weight.clone()
    round_output(base)
    assert torch.equal(base.get_input_embeddings().weight, before)
    assert base.get_output_embeddings().weight.dtype == torch.bfloat16
