"""A pack is worth its rows: the same loss and the same gradients, whatever tree the examples make."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DatasetError
from agent.llm.attention import use_ragged_attention
from tests.tuner.tiny import random_tree, tiny_model
from tuner.packing import Example, as_rows, build_pack, pack_examples, visibility
from tuner.train import loss_of

Gradients = dict[str, Any]


def with_lora(kind: str, **changes: Any) -> Any:
    """A tiny model whose adapter is random on both sides, so that every part of it has a gradient."""
    import torch
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for `is_gradient_checkpointing`, which is deprecated there.
        warnings.simplefilter("ignore", FutureWarning)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model(kind, **changes), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)
    return model


def gradients_of(model: Any, loss: Any) -> tuple[float, Gradients]:
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


def of_packs(model: Any, examples: Sequence[Example]) -> tuple[float, Gradients]:
    use_ragged_attention(model.base_model.model)
    return gradients_of(model, loss_of(model, build_pack(examples))[0])


def of_rows(model: Any, examples: Sequence[Example]) -> tuple[float, Gradients]:
    """Plain transformers, one row after the other; a target that was met on the same path counts once."""
    import torch
    from torch.nn.functional import cross_entropy

    model.base_model.model.set_attn_implementation("sdpa")
    met: set[tuple[int, ...]] = set()
    total = torch.zeros(())
    for example in examples:
        labels = [-100] * len(example.ids)
        for place, said in enumerate(example.targets):
            if said and example.ids[: place + 1] not in met:
                met.add(example.ids[: place + 1])
                labels[place] = example.ids[place]
        logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
        total = total + cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")
    return gradients_of(model, total)


def assert_same(packed: tuple[float, Gradients], rows: tuple[float, Gradients]) -> None:
    assert packed[0] == pytest.approx(rows[0], rel=1e-5)
    assert packed[1].keys() == rows[1].keys()
    # Of what nearly cancels out, such as a query that has one key to look at, float32 keeps fewer digits.
    noise = 1e-6 * max(float(gradient.norm()) for gradient in rows[1].values())
    assert noise > 0
    for name, gradient in rows[1].items():
        assert float((packed[1][name] - gradient).norm()) < 1e-5 * float(gradient.norm()) + noise, name


@pytest.fixture(scope="module")
def llama() -> Any:
    return with_lora("llama")


@pytest.fixture(scope="module")
def mistral() -> Any:
    return with_lora("mistral", sliding_window=7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 7), length=st.integers(2, 24))
def test_a_pack_has_the_loss_and_gradients_of_its_rows(llama: Any, seed: int, rows: int, length: int) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=length)
    assert_same(of_packs(llama, examples), of_rows(llama, examples))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 6), length=st.integers(2, 24))
def test_a_sliding_window_counts_along_the_path_and_not_along_the_pack(
    mistral: Any, seed: int, rows: int, length: int
) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=length)
    assert_same(of_packs(mistral, examples), of_rows(mistral, examples))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_pack_longer_than_a_block_of_queries_is_the_same_too(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    examples = random_tree(random.Random(3), rows=8, length=150)
    assert len(build_pack(examples)) > 400
    assert_same(of_packs(model, examples), of_rows(model, examples))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 8), length=st.integers(2, 20))
def test_every_path_of_a_pack_is_an_example_with_its_positions(seed: int, rows: int, length: int) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=length)
    pack = build_pack(examples)
    seen = visibility(pack)
    paths = {tuple(pack.ids[np.nonzero(row)[0]].tolist()) for row in seen}
    assert paths == {example.ids[: end + 1] for example in examples for end in range(len(example.ids))}
    assert len(paths) == len(pack)
    assert pack.positions.tolist() == (seen.sum(axis=1) - 1).tolist()
    assert (pack.rows, pack.row_tokens) == (len(examples), sum(len(example.ids) for example in examples))
    targets = {example.ids[: end + 1] for example in examples for end, said in enumerate(example.targets) if said}
    shown = [tuple(pack.ids[np.nonzero(seen[source])[0]].tolist()) for source in pack.sources]
    said = [(*path, int(label)) for path, label in zip(shown, pack.labels, strict=True)]
    assert len(said) == len(targets)
    assert set(said) == targets


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 20), room=st.integers(40, 120))
def test_packs_hold_every_example_once_and_no_more_tokens_than_allowed(seed: int, rows: int, room: int) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=20)
    packs = pack_examples(examples, max_tokens=room, seed=seed)
    assert max(len(pack) for pack in packs) <= room
    assert sum(pack.rows for pack in packs) == rows
    assert sum(pack.row_tokens for pack in packs) == sum(len(example.ids) for example in examples)


def test_a_group_stays_together_and_the_seed_draws_the_order_of_groups() -> None:
    examples = [
        Example((1, 10 + group, 20 + row), (False, False, True), f"g{group}") for row in range(2) for group in range(8)
    ]
    orders = []
    for seed in (1, 1, 2, None):
        packs = pack_examples(examples, max_tokens=4, seed=seed)
        assert [sorted(pack.labels.tolist()) for pack in packs] == [[20, 21]] * 8
        orders.append([int(pack.ids[1]) for pack in packs])
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == list(range(10, 18))


def test_rows_are_packs_of_one_example() -> None:
    examples = random_tree(random.Random(5), rows=4, length=9)
    assert [tuple(pack.ids.tolist()) for pack in as_rows(examples)] == [example.ids for example in examples]


@pytest.mark.parametrize("marks", [(False, False, False), (True, False, False)])
def test_an_example_that_teaches_nothing_is_refused(marks: tuple[bool, ...]) -> None:
    with pytest.raises(DatasetError, match="the example of 't-1' has no target token"):
        pack_examples([Example((1, 2, 3), marks, "t-1")], max_tokens=10)


def test_an_example_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"has 3 tokens and a pack holds 2; raise tuning\.max_tokens_per_pack"):
        pack_examples([Example((1, 2, 3), (False, True, True), "t-1")], max_tokens=2)
