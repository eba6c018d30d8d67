"""How long packs are made: between two bounds, and never too short for the longest example."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig

from tests.tuner.tiny import tiny_model
from tuner.training.memory_budget import FEWEST, MOST, is_out_of_memory, tokens_that_fit


def test_a_small_model_gets_the_longest_packs_and_a_huge_one_the_shortest() -> None:
    huge: Any = SimpleNamespace(
        device=torch.device("cpu"),
        config=LlamaConfig(hidden_size=2**16, intermediate_size=2**18, num_hidden_layers=200, num_attention_heads=64),
    )
    assert tokens_that_fit(tiny_model(), 10) == MOST
    assert tokens_that_fit(huge, 10) == FEWEST
    assert tokens_that_fit(huge, 3 * MOST) == 3 * MOST


def test_what_says_that_memory_ran_out_is_known() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
