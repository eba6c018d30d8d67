"""Every method trains what it says, is saved as a plain PEFT folder, and acts when it is served."""

from __future__ import annotations

import importlib.util
import json
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from agent.config.methods import TUNING_METHODS
from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.engine.loaded_adapters import LoadedAdapters
from tests.tuner.tiny import QUICK, copying_examples, random_tree, tiny_model
from tests.tuner.training.test_trainer import adapter_hash, loss_under, trained
from tests.tuner.tree.test_packing import packs_of
from tuner.methods.lora import with_adapter
from tuner.methods.methods import make_tunable
from tuner.settings import RATES
from tuner.tree.loss import backward_with_prefix, loss_of
from tuner.tree.packing import Example, build_pack, weight_in

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
KINDS = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING", "full": "LN_TUNING"}
QUICK_RATES = {"lora+": 4e-3, "full": 2e-3, "prompt": 0.1, "prefix": 0.1}


def settings_for(method: str) -> TuningSettings:
    rate = QUICK_RATES.get(method, QUICK.learning_rate)
    return replace(QUICK, epochs=8, method=method, learning_rate=rate, virtual_tokens=7)


def with_peft(folder: Path) -> Any:
    """A fresh base under the adapter, by PEFT alone."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(tiny_model(), str(folder)).eval()


def loss_of_rows(model: Any, examples: list[Example]) -> float:
    """What plain transformers and PEFT make of the rows, one by one."""
    total = 0.0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in examples:
            ids = torch.tensor([one.ids])
            # Virtual tokens have logits of their own where they are embeddings.
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(one.ids) :]
            labels = torch.tensor([said if target else -100 for said, target in zip(one.ids, one.targets, strict=True)])
            total += float(cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
    return total / sum(one.target_count for one in examples)


@pytest.mark.parametrize("method", [one for one in TUNING_METHODS if one != "qlora"])
def test_a_method_learns_and_is_served_as_it_was_trained(tmp_path: Path, method: str) -> None:
    examples = copying_examples()
    made = trained(tmp_path / "a", settings_for(method), held_out=examples)
    assert made.held_out_loss is not None
    assert made.first_held_out_loss is not None
    # Virtual tokens can do little to a model of random weights.
    much = 0.9 if method in ("prompt", "prefix") else 0.7
    assert made.held_out_loss < much * made.first_held_out_loss
    assert loss_under(tmp_path / "a", examples) == pytest.approx(made.held_out_loss, rel=1e-4)
    assert loss_of_rows(with_peft(tmp_path / "a"), examples) == pytest.approx(made.held_out_loss, rel=1e-4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["peft_type"] == KINDS.get(method, "LORA")
    if method not in KINDS:
        assert (config["use_dora"], config["use_rslora"]) == (method == "dora", method == "rslora")


@pytest.mark.parametrize("method", sorted(KINDS))
def test_a_method_learns_about_the_same_with_products_in_bfloat16(tmp_path: Path, method: str) -> None:
    examples = copying_examples()
    exact, rough = (
        trained(tmp_path / precision, replace(settings_for(method), precision=precision), held_out=examples)
        for precision in ("float32", "mixed")
    )
    assert rough.first_held_out_loss == pytest.approx(exact.first_held_out_loss, rel=0.01)
    assert rough.held_out_loss == pytest.approx(exact.held_out_loss, rel=0.15)


@pytest.mark.parametrize("method", sorted(KINDS))
def test_a_method_goes_on_from_what_it_made(tmp_path: Path, method: str) -> None:
    examples = copying_examples()
    first = trained(tmp_path / "a", settings_for(method), held_out=examples)
    second = trained(tmp_path / "b", settings_for(method), held_out=examples, start_from=tmp_path / "a")
    assert second.first_held_out_loss == pytest.approx(first.held_out_loss, rel=1e-5)
    with pytest.raises(TuningError, match=r'set tuning\.start to "base"'):
        trained(tmp_path / "c", QUICK, start_from=tmp_path / "a")


def test_every_method_has_a_rate_of_its_own() -> None:
    assert sorted(RATES) == sorted(TUNING_METHODS)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("seed", range(4))
def test_trees_after_virtual_tokens_have_the_loss_of_their_rows(method: str, seed: int) -> None:
    examples = random_tree(random.Random(seed), rows=7, length=14)
    found = []
    for room in (30, 1000):
        model = tiny_model()
        use_ragged_attention(model)
        tuned = make_tunable(model, replace(QUICK, method=method, virtual_tokens=5), "float32", (3, 4, 5))
        rows = [[one] for one in examples] if room == 1000 else [examples]
        packs = [pack for some in rows for pack in packs_of(some, room)]
        loss = backward_with_prefix(model, packs, weight_in(packs), before=tuned.prefix("float32"))
        (parameter,) = tuned.groups[0].parameters
        assert parameter.grad is not None
        found.append((loss, parameter.grad.clone()))
    (packed, ours), (rowed, theirs) = found
    assert packed == pytest.approx(rowed, rel=1e-5)
    assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())


def test_a_model_that_reads_rows_only_takes_no_virtual_tokens(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=2)).requires_grad_(False)
    with pytest.raises(TuningError, match=r'method "prefix" needs a model that uses the attention interface'):
        trained(tmp_path / "a", settings_for("prefix"), model=bloom)


def test_virtual_tokens_and_adversarial_training_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r'set tuning\.adversarial to "none"'):
        trained(tmp_path / "a", replace(settings_for("prompt"), adversarial="freelb"))


def test_full_fine_tuning_leaves_the_layers_below_and_the_model_alone(tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    trained(tmp_path / "a", replace(settings_for("full"), top_layers=1), model=model)
    assert all(bool((one == before[name]).all()) for name, one in model.state_dict().items())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name.split(".ln_tuning")[0].removeprefix("base_model.model.model.") for name in tensors} == {
        "norm",
        *(f"layers.1.{one}_layernorm" for one in ("input", "post_attention")),
        *(f"layers.1.self_attn.{one}_proj" for one in "qkvo"),
        *(f"layers.1.mlp.{one}_proj" for one in ("gate", "up", "down")),
    }


def test_tied_embeddings_are_trained_as_one_and_the_base_comes_back(tmp_path: Path) -> None:
    examples = copying_examples()
    made = trained(tmp_path / "a", settings_for("full"), model=tiny_model(tie_word_embeddings=True), held_out=examples)
    model = tiny_model(tie_word_embeddings=True)
    use_ragged_attention(model)
    pack = build_pack(examples)
    bank = LoadedAdapters(model)
    with torch.inference_mode():
        base = float(loss_of(model, pack))
        bank.load("a", tmp_path / "a", tensors_sha256=adapter_hash(tmp_path / "a"))
        assert float(loss_of(model, pack)) == base
        bank.activate("a")
        assert float(loss_of(model, pack)) / weight_in([pack]) == pytest.approx(made.held_out_loss, rel=1e-5)
        bank.activate(None)
        assert float(loss_of(model, pack)) == base
        bank.unload("a")
        assert float(loss_of(model, pack)) == base


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed, so nothing is refused")
def test_qlora_without_bitsandbytes_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"needs bitsandbytes .*ratchet-loop\[qlora\]"):
        trained(tmp_path / "a", settings_for("qlora"))


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed (extra qlora)")
def test_qlora_learns_on_layers_of_four_bits(tmp_path: Path) -> None:
    examples = copying_examples()
    made = trained(tmp_path / "a", settings_for("qlora"), held_out=examples)
    assert made.held_out_loss is not None
    assert made.first_held_out_loss is not None
    assert made.held_out_loss < 0.7 * made.first_held_out_loss
    # Served on the base as it is, not in four bits.
    assert loss_under(tmp_path / "a", examples) == pytest.approx(made.held_out_loss, rel=0.3)


def test_lora_plus_teaches_the_second_matrix_faster() -> None:
    model, groups = with_adapter(tiny_model(), TuningSettings(method="lora+", rate_ratio=8.0))
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
        bank = LoadedAdapters(model)
        bank.load("a", tmp_path / "a", tensors_sha256=adapter_hash(tmp_path / "a"))
        bank.activate("a")
        assert float(loss_of(model, pack)) != before
    with pytest.raises(TuningError, match=r"tuning\.top_layers is 3 and the model has 2 layers"):
        trained(tmp_path / "b", replace(QUICK, top_layers=3))
