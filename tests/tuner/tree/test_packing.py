"""Packs are worth their rows: the same loss and the same gradients, whatever tree the examples make."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DatasetError
from agent.llm.engine.attention import use_ragged_attention
from tests.tuner.tiny import VOCABULARY, adapted_model, random_tree
from tuner.tree.loss import backward, loss_of, mean_loss
from tuner.tree.packing import Batch, Example, Pack, Weighting, make_batches, tokens_in, visibility, weight_in

Gradients = dict[str, Any]


def of_packs(model: Any, packs: Sequence[Pack]) -> tuple[float, Gradients]:
    use_ragged_attention(model.base_model.model)
    model.zero_grad()
    weight = weight_in(packs)
    loss = sum(backward(model, pack, weight) for pack in packs) / weight
    assert mean_loss(model, packs) == pytest.approx(loss, rel=1e-5)
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


def one_batch(examples: Sequence[Example], weighting: Weighting = "token") -> Batch:
    (batch,) = make_batches(examples, batch_targets=10**9, weighting=weighting)
    return batch


def packs_of(examples: Sequence[Example], max_tokens: int, weighting: Weighting = "token") -> list[Pack]:
    """All as one step; trunks are worth while from three tokens on here, so that small trees have some."""
    return one_batch(examples, weighting).packs(max_tokens, min_trunk=3)


def of_rows(model: Any, examples: Sequence[Example], weighting: Weighting = "token") -> tuple[float, Gradients]:
    """Plain transformers, one row after the other; of each the mean, or the sum, of its targets' losses."""
    import torch
    from torch.nn.functional import cross_entropy

    model.base_model.model.set_attn_implementation("sdpa")
    total = torch.zeros(())
    weights = 0.0
    of_run = Counter[str]()
    for example in examples:
        of_run[example.trajectory] += example.target_count
    for example in examples:
        weight = {"token": 1.0, "example": 1 / example.target_count, "trajectory": 1 / of_run[example.trajectory]}
        labels = torch.tensor([one if said else -100 for one, said in zip(example.ids, example.targets, strict=True)])
        logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
        loss = cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        total = total + weight[weighting] * loss
        weights += weight[weighting] * example.target_count
    model.zero_grad()
    (total / weights).backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}
    return float(total.detach()) / weights, gradients


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
    return adapted_model("llama")


@pytest.fixture(scope="module")
def mistral() -> Any:
    return adapted_model("mistral", sliding_window=7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), length=st.integers(2, 24), slack=st.integers(0, 60))
def test_a_batch_has_the_loss_and_gradients_of_its_rows(
    llama: Any, seed: int, rows: int, length: int, slack: int
) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=length)
    room = max(len(one.ids) for one in examples) + slack
    weighting: Weighting = random.Random(seed).choice(["token", "example", "trajectory"])
    packs = packs_of(examples, room, weighting)
    assert_same(of_packs(llama, packs), of_rows(llama, examples, weighting))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 6), length=st.integers(2, 24), slack=st.integers(0, 60))
def test_a_sliding_window_counts_along_the_path_and_not_along_the_pack(
    mistral: Any, seed: int, rows: int, length: int, slack: int
) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=length)
    room = max(len(one.ids) for one in examples) + slack
    assert_same(of_packs(mistral, packs_of(examples, room)), of_rows(mistral, examples))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("room", [300, 10_000])
def test_packs_longer_than_a_block_of_queries_are_the_same_too(
    kind: str, room: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    examples = random_tree(random.Random(3), rows=8, length=150)
    packs = packs_of(examples, room)
    assert tokens_in(packs) > 400
    assert_same(of_packs(model, packs), of_rows(model, examples))


def test_a_loss_of_trunk_and_branches_has_the_gradient_that_goes_branch_by_branch(llama: Any) -> None:
    chance = random.Random(11)
    prompt = tuple(chance.randrange(VOCABULARY) for _ in range(12))
    stems = [(*prompt, *(chance.randrange(VOCABULARY) for _ in range(5))) for _ in range(3)]
    rows = [(*stem, *(chance.randrange(VOCABULARY) for _ in range(7))) for stem in stems for _ in range(3)]
    examples = [Example(ids, (False,) * 15 + (True,) * 9) for ids in rows]
    packs = packs_of(examples, 30)
    (trunk,) = packs
    assert any(branch.branches for branch in trunk.branches), "a trunk behind a trunk"
    assert_same(of_packs(llama, packs), of_rows(llama, examples))
    stepwise = of_packs(llama, packs)
    llama.zero_grad()
    loss = loss_of(llama, trunk) / one_batch(examples).weight
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in llama.named_parameters() if one.requires_grad}
    assert_same(stepwise, (float(loss.detach()), gradients))


def paths_of(packs: Sequence[Pack], before: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """What is said behind which path, and how much it counts; checks the layout on the way."""
    for pack in packs:
        assert pack.start == len(before)
        seen = visibility(pack)
        assert pack.positions.tolist() == (pack.start + seen.sum(axis=1) - 1).tolist()
        for source, label, weight in zip(pack.sources, pack.labels, pack.weights, strict=True):
            yield (*before, *pack.ids[np.nonzero(seen[source])[0]].tolist()), int(label), float(weight)
        if pack.branches:
            assert seen.all(axis=0)[0]
            assert seen[-1].all(), "a trunk is a single path"
            yield from paths_of(pack.branches, (*before, *pack.ids.tolist()))


def longest_path(pack: Pack) -> int:
    return len(pack) + max(map(longest_path, pack.branches), default=0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 20), slack=st.integers(0, 80))
def test_every_target_of_every_example_is_predicted_after_its_own_path_and_nothing_else(
    seed: int, rows: int, slack: int
) -> None:
    examples = random_tree(random.Random(seed), rows=rows, length=20)
    room = max(len(one.ids) for one in examples) + slack
    batch = one_batch(examples)
    packs = batch.packs(room, min_trunk=3)
    expected = Counter(
        (one.ids[:place], one.ids[place]) for one in examples for place in range(1, len(one.ids)) if one.targets[place]
    )
    said: Counter[Any] = Counter()
    for path, label, weight in paths_of(packs):
        said[path, label] += weight
    assert said == expected
    assert max(map(longest_path, packs)) <= room
    assert batch.weight == batch.targets == sum(one.target_count for one in examples)
    assert len(batch.rows) == rows
    assert tokens_in(packs) <= batch.row_tokens <= sum(len(one.ids) for one in examples)
    assert tokens_in(batch.one_by_one()) == batch.row_tokens - rows


def test_a_trunk_is_computed_once_for_all_its_branches() -> None:
    prompt = tuple(range(40))
    examples = [
        Example((*prompt, 50 + row, *([60] * 9), 70 + row), (False,) * 50 + (True,), f"g{row}") for row in range(6)
    ]
    (trunk,) = packs_of(examples, 62)
    assert (len(trunk), [len(one) for one in trunk.branches]) == (40, [20, 20, 20])
    assert tokens_in([trunk]) == 40 + 6 * 10


def test_a_group_stays_together_and_the_seed_draws_the_order_of_groups() -> None:
    examples = [
        Example((1, 10 + group, 20 + row), (False, False, True), f"g{group}") for row in range(2) for group in range(8)
    ]
    orders = []
    for seed in (1, 1, 2, None):
        batches = make_batches(examples, batch_targets=2, seed=seed)
        packs = [pack for batch in batches for pack in batch.packs(4)]
        assert [pack.labels.tolist() for pack in packs] == [[20, 21]] * 8
        orders.append([int(pack.ids[1]) for pack in packs])
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == list(range(10, 18))


def test_a_step_has_as_many_targets_as_asked_for_and_the_last_what_is_left() -> None:
    examples = [Example((1, 10 + group, 20), (False, False, True), f"g{group}") for group in range(8)]
    assert [one.targets for one in make_batches(examples, batch_targets=3)] == [3, 3, 2]


@pytest.mark.parametrize("marks", [(False, False, False), (True, False, False)])
def test_an_example_that_teaches_nothing_is_refused(marks: tuple[bool, ...]) -> None:
    with pytest.raises(DatasetError, match="the example of 't-1' has no target token"):
        one_batch([Example((1, 2, 3), marks, "t-1")])


def test_an_example_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"has 3 tokens and a pack holds 2; raise tuning\.max_tokens_per_pack"):
        packs_of([Example((1, 2, 3), (False, True, True), "t-1")], 2)
