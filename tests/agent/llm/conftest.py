"""Tiny parts: a byte-level tokenizer with a ChatML template, and random models that read its ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.llm.engine.scheduler import Engine
from agent.llm.prompt.render import Renderer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|tail|>", "<|turn|>")
CORPUS = [
    '{"plan":["find the order","answer"],"thought":"Where is it?","tool":"get_order","args":{"order_id":"48213"}}',
    "The order was shipped on 9 May and arrives at the customer, who asked where their parcel is.",
    '{"tool":"answer","args":{"text":"It arrives on 9 May.","citations":[1,2]}} user assistant system tool',
]


def make_tokenizer(template: str | None = CHATML, *, end: str = "<|im_end|>", every_byte: bool = True) -> Any:
    """A byte-level BPE of about 400 ids, special tokens first; or of fewer, without those of bytes it never met."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if every_byte else [],
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, eos_token=end, pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(tokenizer: Any, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random model with grouped heads. Its vocabulary is padded, as that of many real models is."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    sizes = {
        "vocab_size": len(tokenizer) + 13,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "qwen3":
        sizes["head_dim"] = 16
    kinds: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "mistral": (MistralForCausalLM, MistralConfig),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    }
    make, configure = kinds[kind]
    torch.manual_seed(seed)
    return make(configure(**{**sizes, **changes})).eval().requires_grad_(False)


def save_adapter(folder: Path, tokenizer: Any, *, seed: int, base: str = "llama", **options: Any) -> Any:
    """A LoRA of random tensors in `folder`; returns the peft model that has it, for comparison."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj"], **options}
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for `is_gradient_checkpointing`, which is deprecated there.
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(make_model(tokenizer, base), LoraConfig(task_type="CAUSAL_LM", **chosen))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.normal_(0.0, 0.3)
    model.save_pretrained(str(folder))
    return model.eval()


def save_other(folder: Path, tokenizer: Any, kind: str, *, base: str = "llama") -> Any:
    """An adapter with random virtual tokens ("prompt", "prefix") or weights ("full"), and PEFT's model with it."""
    import torch
    from peft import LNTuningConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    torch.manual_seed(3)
    config: Any = {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=9),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=9),
        "full": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj", "norm"]),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT knows norms only of other classes, and says so.
        model = get_peft_model(make_model(tokenizer, base), config)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor), alpha=0.3)
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture
def make_engine(tokenizer: Any) -> Iterator[Callable[..., Engine]]:
    """Engines of the tiny model, closed at the end of the test."""
    opened: list[Engine] = []

    def make(kind: str = "llama", *, changes: dict[str, Any] | None = None, **options: Any) -> Engine:
        opened.append(Engine(make_model(tokenizer, kind, **(changes or {})), tokenizer, **options))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def parts() -> Any:
    """The makers of this file, for tests that need other templates or models."""
    from types import SimpleNamespace

    return SimpleNamespace(
        tokenizer=make_tokenizer,
        model=make_model,
        adapter=save_adapter,
        other=save_other,
        chatml=CHATML,
        special=SPECIAL,
    )


@pytest.fixture(scope="module")
def admits(tokenizer: Any) -> Callable[[str, str], bool]:
    """Whether a grammar takes a text whole, token by token."""
    import llguidance
    import llguidance.hf

    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    vocabulary = llguidance.hf.from_tokenizer(tokenizer, eos_token=end)

    def check(grammar: str, said: str) -> bool:
        matcher = llguidance.LLMatcher(vocabulary, grammar)
        assert not matcher.is_error(), matcher.get_error()
        ids = vocabulary.tokenize_bytes(said.encode())
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())

    return check
