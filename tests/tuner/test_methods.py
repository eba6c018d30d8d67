"""Every method trains what it says, is saved as a plain PEFT folder, and acts when it is served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agent.errors import TuningError
from agent.llm.attention import use_ragged_attention
from agent.llm.lora import AdapterBank
from agent.settings import TUNING_METHODS
from tests.tuner.test_train import adapter_hash, loss_under, trained
from tests.tuner.tiny import QUICK, copying_examples, tiny_model
from tuner.loss import loss_of
from tuner.methods import with_adapter
from tuner.packing import build_pack
from tuner.train_settings import TrainSettings


@pytest.mark.parametrize("method", TUNING_METHODS)
def test_a_method_learns_and_is_served_as_it_was_trained(tmp_path: Path, method: str) -> None:
    examples = copying_examples()
    rate = 4e-3 if method == "lora+" else QUICK.learning_rate
    settings = replace(QUICK, epochs=8, method=method, learning_rate=rate)
    made = trained(tmp_path / "a", settings, held_out=examples)
    assert made.held_out_loss is not None
    assert made.first_held_out_loss is not None
    assert made.held_out_loss < 0.7 * made.first_held_out_loss
    assert loss_under(tmp_path / "a", examples) == pytest.approx(made.held_out_loss, rel=1e-4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["use_dora"], config["use_rslora"]) == (
        "LORA",
        method == "dora",
        method == "rslora",
    )


def test_lora_plus_teaches_the_second_matrix_faster() -> None:
    model, groups = with_adapter(tiny_model(), TrainSettings(method="lora+", rate_ratio=8.0))
    names = {id(one): name for name, one in model.named_parameters()}
    assert [group.rate for group in groups] == [1.0, 8.0]
    for group, wanted in zip(groups, ("lora_A", "lora_B"), strict=True):
        assert group.parameters
        assert all(wanted in names[id(one)] for one in group.parameters)


def test_only_the_top_layers_get_an_adapter(tmp_path: Path) -> None:
    trained(tmp_path / "a", replace(QUICK, top_layers=1))
    names = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name.split("layers.")[1].split(".")[0] for name in names} == {"1"}
    model = tiny_model()
    use_ragged_attention(model)
    pack = build_pack(copying_examples())
    with torch.inference_mode():
        before = float(loss_of(model, pack))
        bank = AdapterBank(model)
        bank.load("a", tmp_path / "a", tensors_sha256=adapter_hash(tmp_path / "a"))
        bank.activate("a")
        assert float(loss_of(model, pack)) != before
    with pytest.raises(TuningError, match=r"tuning\.top_layers is 3 and the model has 2 layers"):
        trained(tmp_path / "b", replace(QUICK, top_layers=3))
