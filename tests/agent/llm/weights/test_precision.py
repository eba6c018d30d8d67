"""Products in bfloat16 between float32 activations: what changes, what does not, and how far the outputs move."""

from __future__ import annotations

import pytest
import torch

from agent.llm.weights.precision import faster_precision, serving_dtype, use_bfloat16_products
from tests.tuner.tiny import tiny_model


def test_the_faster_precision_is_one_of_two() -> None:
    assert faster_precision("cpu") in ("float32", "mixed")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_cuda_weights_are_bfloat16_unless_the_settings_name_another(device: str) -> None:
    assert serving_dtype("auto", device) == "bfloat16"
    assert [serving_dtype(one, device) for one in ("float32", "mixed", "float16")] == ["float32", "mixed", "float16"]


def test_elsewhere_the_faster_precision_is_taken() -> None:
    assert serving_dtype("auto", "cpu") in ("float32", "mixed")
    assert serving_dtype("bfloat16", "cpu") == "bfloat16"


def test_linear_weights_become_bfloat16_and_all_else_stays_float32() -> None:
    model = tiny_model()
    use_bfloat16_products(model)
    kinds = {name: one.dtype for name, one in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "_proj" in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "_proj" not in name} == {torch.float32}
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_outputs_stay_float32_and_near_and_a_second_time_changes_nothing() -> None:
    from agent.llm.engine.attention import use_ragged_attention
    from tests.tuner.tiny import copying_examples
    from tuner.tree.loss import loss_of
    from tuner.tree.packing import build_pack

    model, pack = tiny_model(), build_pack(copying_examples()[:3])
    use_ragged_attention(model)
    with torch.inference_mode():
        before = loss_of(model, pack)
        use_bfloat16_products(model)
        once = loss_of(model, pack)
        use_bfloat16_products(model)
        twice = loss_of(model, pack)
    assert once.dtype == torch.float32
    assert float(once) == pytest.approx(float(before), rel=0.01)
    assert float(once) != float(before)
    assert float(twice) == float(once)
