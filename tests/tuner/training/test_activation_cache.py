"""What the layers below the tuned ones make of a token is computed once, and changes nothing."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from agent.llm.engine.attention import use_ragged_attention
from tests.tuner.tiny import QUICK, copying_examples, random_tree, tiny_model
from tests.tuner.training.test_trainer import trained
from tests.tuner.tree.test_packing import assert_same, of_packs, packs_of
from tuner.methods.lora import with_adapter
from tuner.training.activation_cache import FrozenLayers
from tuner.tree.loss import backward, mean_loss
from tuner.tree.packing import weight_in

TOP = replace(QUICK, top_layers=1)


def top_model(**changes: Any) -> Any:
    """Three layers, the last of them with an adapter that is random on both sides."""
    import torch

    base = tiny_model(num_hidden_layers=3, **changes)
    use_ragged_attention(base)
    model, _ = with_adapter(base, TOP)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return top_model()


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([40, 60, 1000]), st.sampled_from([1.0, 0.6]))
def test_loss_and_gradients_are_those_of_the_whole_way(model: Any, seed: int, room: int, share: float) -> None:
    chance = random.Random(seed)
    examples = random_tree(chance, rows=8, length=18)
    filled = packs_of(examples, 1000 if chance.random() < 0.5 else 40)
    tokens = sum(len(one) for pack in filled for one in pack.all())
    frozen = FrozenLayers(model, 2)
    heard: list[str] = []
    frozen.fill(filled, "float32", int(share * tokens) * 64 * 4, heard.append)
    assert not any("every epoch" in one for one in heard)
    packs = packs_of(examples, room)
    whole = of_packs(model, packs)
    model.zero_grad()
    weight = weight_in(packs)
    loss = sum(backward(frozen, pack, weight) for pack in packs) / weight
    assert mean_loss(frozen, packs) == pytest.approx(loss, rel=1e-5)
    assert_same((loss, {name: one.grad for name, one in model.named_parameters() if one.requires_grad}), whole)


def test_lower_layers_are_run_once_for_all_epochs_and_the_adapter_is_the_same(tmp_path: Path) -> None:
    runs = {}
    for name, gigabytes in (("kept", 4.0), ("each", 0.0)):
        model = tiny_model(num_hidden_layers=3)
        count = _Counter(model.model.layers[0])
        settings = replace(TOP, epochs=6, cache_gigabytes=gigabytes)
        made = trained(tmp_path / name, settings, model=model, held_out=copying_examples(5))
        runs[name] = count.calls, made, load_file(tmp_path / name / "adapter_model.safetensors")
    (few, kept, ours), (many, each, theirs) = runs["kept"], runs["each"]
    assert kept.held_out_loss == pytest.approx(each.held_out_loss, rel=1e-4)
    assert all(bool((ours[name] - theirs[name]).abs().max() < 1e-4) for name in theirs)
    steps_an_epoch = kept.steps // kept.epochs
    assert few <= steps_an_epoch + 3 < many / 4


class _Counter:
    def __init__(self, layer: Any) -> None:
        self.calls = 0
        layer.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 4 KiB; not for long, as the report of the tests may be one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_said_and_training_goes_the_whole_way(model: Any) -> None:
    packs = packs_of(random_tree(random.Random(3), rows=8, length=18), 1000)
    heard: list[str] = []
    frozen = FrozenLayers(model, 2)
    with small_disk():
        frozen.fill(packs, "float32", 10**9, heard.append)
    assert heard[-1].startswith("the layers that are not tuned are computed in every epoch")
    assert mean_loss(frozen, packs) == mean_loss(model, packs)
