"""Small random models and training examples, for the tests of packing, training and the pipeline."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.config.settings import TuningSettings
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.weights.precision import use_bfloat16_products
from tuner.methods.lora import with_adapter
from tuner.tree.packing import Example

VOCABULARY = 97

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """Return a model of two layers with random float32 weights and grouped heads, frozen like a loaded base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **changes,
    }
    torch.manual_seed(seed)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = MistralForCausalLM(MistralConfig(**sizes))
    return model.eval().requires_grad_(False)


QUICK = TuningSettings(
    min_steps=1,
    r=4,
    alpha=8,
    learning_rate=2e-2,
    epochs=3,
    batch_targets=8,
    max_tokens_per_pack=64,
    precision="float32",
)
"""A training of a second."""


def adapted_model(kind: str = "llama", *, rounded: bool = False, **changes: Any) -> Any:
    """Return a tiny model whose LoRA matrices are both random, so that each has a gradient."""
    base = tiny_model(kind, **changes)
    use_ragged_attention(base)
    if rounded:
        use_bfloat16_products(base)
    model, _ = with_adapter(base, QUICK)
    fill_adapter(model)
    return model


def fill_adapter(model: Any, *, seed: int = 1) -> None:
    """Fill every trained parameter with random numbers."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)


def random_tree(chance: random.Random, *, rows: int, length: int) -> list[Example]:
    """Return examples that share prefixes of any length, some of them equal; each has a target."""
    paths: list[tuple[int, ...]] = []
    examples = []
    for _ in range(rows):
        stem = chance.choice(paths)[: chance.randint(0, length)] if paths and chance.random() < 0.8 else ()
        fresh = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(0 if len(stem) > 1 else 2, length)))
        ids = (*stem, *fresh)
        paths.append(ids)
        marks = [False, *(chance.random() < 0.3 for _ in ids[1:])]
        marks[chance.randrange(1, len(ids))] = True
        examples.append(Example(ids, tuple(marks), chance.choice("abc"), chance.choice("rst")))
    return examples


def copying_examples(count: int = 12, *, seed: int = 0) -> list[Example]:
    """Return examples with a shared prompt, a key, and the answer that belongs to the key."""
    chance = random.Random(seed)
    prompt = tuple(range(1, 21))
    return [
        Example((*prompt, 30 + key, 22, 60 + key, 61 + key), (False,) * 22 + (True, True), f"task-{key}")
        for key in (chance.randrange(12) for _ in range(count))
    ]


def tiny_tokenizer(texts: Sequence[str]) -> Any:
    """Return a byte-level tokenizer of at most 700 ids, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def save_base(folder: Path, texts: Sequence[str], **changes: Any) -> Path:
    """Save a random chat model with a tokenizer trained on `texts`."""
    from transformers.utils import logging

    tokenizer = tiny_tokenizer(texts)
    tokenizer.save_pretrained(str(folder))
    quiet: Any = logging.disable_progress_bar
    quiet()
    tiny_model(vocab_size=len(tokenizer), **changes).save_pretrained(str(folder))
    return folder
