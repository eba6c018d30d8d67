"""The fused forward against the forward of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agent.llm.engine import fused_forward
from agent.llm.engine.attention import OneSequence, use_ragged_attention
from agent.llm.engine.fused_forward import fuse_forward, fuse_lora
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.weights.precision import use_bfloat16_products
from tests.agent.llm.conftest import make_model, save_adapter

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 9}),
]


def both(model: Any, run: Any, lora: Any = None, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model's own forward and of the fused one."""
    ids = torch.randint(0, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(1))
    places = torch.arange(count)
    with torch.inference_mode():
        own = model(input_ids=ids[None], position_ids=places[None], use_cache=False, layout=OneSequence()).logits[0]
        return own, run(ids, places, places, OneSequence(), [] if lora is None else [(slice(0, count), lora)])[0]


def ragged(tokenizer: Any, kind: str = "llama", **changes: Any) -> Any:
    model = make_model(tokenizer, kind, **changes)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.normal_(0.0, 0.3)
    use_ragged_attention(model)
    return model


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_it_gives_the_logits_of_the_model(tokenizer: Any, kind: str, changes: dict[str, Any]) -> None:
    model = ragged(tokenizer, kind, **changes)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    run = fuse_forward(model)
    assert run is not None
    own, fused_logits = both(model, run)
    torch.testing.assert_close(fused_logits, own, rtol=1e-4, atol=1e-4)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_it_is_the_same_without_packed_weights(tokenizer: Any) -> None:
    model = ragged(tokenizer)
    run = fuse_forward(model, pack=False)
    assert run is not None
    own, fused_logits = both(model, run)
    torch.testing.assert_close(fused_logits, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 37, 70])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "up_proj"], ["k_proj"], "all-linear"])
def test_adapters_add_what_peft_adds(tokenizer: Any, tmp_path: Path, targets: Any, count: int) -> None:
    save_adapter(tmp_path / "a", tokenizer, seed=1, target_modules=targets, use_rslora=True)
    own, fused_logits = adapted(ragged(tokenizer), tmp_path / "a", count)
    torch.testing.assert_close(fused_logits, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 40])
def test_rounded_products_lose_no_more_than_those_of_peft(tokenizer: Any, tmp_path: Path, count: int) -> None:
    save_adapter(tmp_path / "a", tokenizer, seed=1, target_modules="all-linear")
    exact, _ = adapted(ragged(tokenizer), tmp_path / "a", count)
    model = ragged(tokenizer)
    use_bfloat16_products(model)
    own, fused_logits = adapted(model, tmp_path / "a", count)
    assert 0 < float((fused_logits - exact).norm()) < 1.3 * float((own - exact).norm())


def adapted(model: Any, folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `both`, under the adapter in a folder."""
    run = fuse_forward(model)
    assert run is not None
    adapters = LoadedAdapters(model)
    adapters.load("a", folder)
    adapters.activate("a")
    lora = fuse_lora(model, adapters.name("a"))
    assert lora is not None
    return both(model, run, lora, count)


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}],
)
def test_an_adapter_that_does_more_is_left_to_transformers(tokenizer: Any, options: dict[str, Any]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = ragged(tokenizer)
    inject_adapter_in_model(LoraConfig(**{"target_modules": ["q_proj"], **options}), model, adapter_name="a")
    assert fuse_lora(model, "a") is None


def test_a_model_with_other_parts_is_left_to_transformers() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    model: Any = Qwen3ForCausalLM(config).eval()
    use_ragged_attention(model)
    assert fuse_forward(model) is None  # It has norms of queries and keys.


def test_a_model_with_the_same_parts_that_computes_something_else_is_left_to_transformers() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.5,
    )
    model: Any = GraniteForCausalLM(config).eval()
    use_ragged_attention(model)
    assert fuse_forward(model) is None


def test_the_likeliest_are_told_apart_in_float32(tokenizer: Any) -> None:
    model = ragged(tokenizer)
    use_bfloat16_products(model)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight[7] = weight[3] * (1 + 2**-12)  # The same once rounded.
    run = fuse_forward(model)
    assert run is not None
    one = torch.tensor([5])
    with torch.inference_mode():
        scores, last = run(one, one * 0, one * 0, OneSequence())
        if float(last[0] @ weight[3]) < 0:
            last = -last
        ids = torch.tensor([3, 7])
        rounded = torch.tensor([1.0, 1.0])
        exact = run.refine(rounded, ids, last[0])
        every = run.refine(scores[0].clone(), None, last[0])
    assert int(exact.argmax()) == 1
    assert torch.allclose(exact, weight[ids] @ last[0], rtol=1e-5)
    assert not torch.equal(every, scores[0])


def test_packed_products_use_few_numbers_of_rows() -> None:
    rows = [count + fused_forward._padding_rows(count) for count in range(1, 513)]
    assert all(count <= made <= max(count * 1.25, count + 7) for count, made in enumerate(rows, 1))
    assert rows[:32] == list(range(1, 33))
    assert len(set(rows)) <= 60
