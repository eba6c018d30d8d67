"""Noise in training: smoothing, NEFTune, the worst small change of the embeddings, and a pull towards the start."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from tests.tuner.tiny import QUICK, adapted_model, copying_examples, random_tree
from tests.tuner.training.test_trainer import adapter_hash, loss_under, trained
from tests.tuner.tree.test_packing import packs_of
from tuner.tree.adversarial import climb
from tuner.tree.loss import Noise, backward, log_probabilities, mean_loss
from tuner.tree.packing import Example, build_pack, weight_in


@pytest.fixture
def model() -> Any:
    return adapted_model()


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


def test_smoothing_is_that_of_the_usual_loss(model: Any) -> None:
    example = Example((5, 9, 3, 7), (False, False, True, True))
    (pack,) = packs_of([example], 10)
    found = backward(model, pack, 1.0, noise=Noise(smoothing=0.2))
    model.base_model.model.set_attn_implementation("sdpa")
    logits = model(input_ids=torch.tensor([example.ids])).logits[0, 1:3]
    expected = cross_entropy(logits, torch.tensor([3, 7]), label_smoothing=0.2, reduction="sum")
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_neftune_disturbs_training_and_no_evaluation(model: Any, tmp_path: Path) -> None:
    packs = packs_of(random_tree(random.Random(0), rows=4, length=12), 100)
    torch.manual_seed(0)
    quiet = sum(backward(model, pack, 1.0) for pack in packs)
    noisy = [sum(backward(model, pack, 1.0, noise=Noise(neftune=5.0)) for pack in packs) for _ in range(2)]
    assert len({quiet, *noisy}) == 3
    assert mean_loss(model, packs) == pytest.approx(quiet / weight_in(packs), rel=1e-5)
    hashes = []
    for name, alpha in (("a", 0.0), ("b", 5.0), ("c", 5.0)):
        trained(tmp_path / name, replace(QUICK, neftune=alpha))
        hashes.append(adapter_hash(tmp_path / name))
    assert hashes[1] == hashes[2] != hashes[0]


def test_the_change_makes_the_loss_worse_and_is_no_longer_than_allowed(model: Any) -> None:
    packs = packs_of(random_tree(random.Random(2), rows=6, length=20), 30)
    weight = weight_in(packs)
    shifts = {id(one): torch.zeros(len(one), 64, requires_grad=True) for pack in packs for one in pack.all()}
    clean = sum(backward(model, pack, weight, noise=Noise(shifts=shifts)) for pack in packs)
    embed = model.get_input_embeddings()
    moved = {}
    for pack in packs:
        for one in pack.all():
            most = 0.05 * embed(torch.from_numpy(one.ids)).norm(dim=-1, keepdim=True)
            moved[id(one)] = climb(shifts[id(one)], most, 3.0)
            assert bool((moved[id(one)].norm(dim=-1, keepdim=True) <= most * 1.001).all())
    worse = sum(backward(model, pack, weight, noise=Noise(shifts=moved)) for pack in packs)
    assert worse > clean


def test_how_examples_are_packed_does_not_change_an_adversarial_gradient(model: Any) -> None:
    examples = random_tree(random.Random(4), rows=8, length=20)
    embed = model.get_input_embeddings()
    found = []
    for room in (40, 1000):
        packs = packs_of(examples, room)
        tree = [node for pack in packs for node in pack.all()]
        shifts = {id(node): torch.zeros(len(node), 64, requires_grad=True) for node in tree}
        model.zero_grad()
        for pack in packs:
            backward(model, pack, weight_in(packs), noise=Noise(shifts=shifts))
        limits = {id(node): 0.05 * embed(torch.from_numpy(node.ids)).norm(dim=-1, keepdim=True) for node in tree}
        shifts = {key: climb(shift, limits[key], 1.0) for key, shift in shifts.items()}
        for pack in packs:
            backward(model, pack, weight_in(packs), noise=Noise(shifts=shifts))
        found.append(gradient(model))
    clean = packs_of(examples, 1000)
    model.zero_grad()
    for pack in clean:
        backward(model, pack, weight_in(clean))
    # What several packs begin with is a token of each, and each changes its own: so nearly, not to the digit.
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.1
    assert float((found[1] - gradient(model)).norm() / found[1].norm()) > 0.001


def test_adversarial_training_learns(tmp_path: Path) -> None:
    examples = copying_examples()
    made = trained(tmp_path / "a", replace(QUICK, epochs=8, adversarial="freelb"), held_out=examples)
    assert made.held_out_loss is not None
    assert made.first_held_out_loss is not None
    assert made.held_out_loss < 0.6 * made.first_held_out_loss
    trained(tmp_path / "b", replace(QUICK, epochs=8))
    assert adapter_hash(tmp_path / "a") != adapter_hash(tmp_path / "b")


def test_an_anchor_keeps_the_adapter_close_to_its_start(tmp_path: Path) -> None:
    trained(tmp_path / "start", QUICK)
    moved = []
    for name, anchor in (("free", 0.0), ("held", 10.0)):
        trained(
            tmp_path / name,
            replace(QUICK, anchor=anchor),
            examples=copying_examples(seed=3),
            start_from=tmp_path / "start",
        )
        before, after = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("start", name))
        moved.append(sum(float((after[key] - before[key]).norm() ** 2) for key in before) ** 0.5)
    assert 0 < moved[1] < 0.5 * moved[0]


def test_a_kl_anchor_keeps_the_predictions_of_the_adapter_before(tmp_path: Path) -> None:
    examples = copying_examples()
    other = [replace(one, ids=(*one.ids[:-2], 5, 6)) for one in examples]
    trained(tmp_path / "old", replace(QUICK, epochs=8), examples=examples)
    losses = []
    for name, strength in (("free", 0.0), ("held", 5.0)):
        settings = replace(QUICK, epochs=8, learning_rate=5e-3, anchor_kl=strength)
        trained(tmp_path / name, settings, examples=other, start_from=tmp_path / "old")
        losses.append(loss_under(tmp_path / name, examples))
    free, held = losses
    assert held < 0.75 * free


def test_the_divergence_from_itself_has_no_gradient(model: Any) -> None:
    pack = build_pack(random_tree(random.Random(6), rows=5, length=12))
    loss = backward(model, pack, 1.0)
    plain = gradient(model)
    model.zero_grad()
    noise = Noise(hold=7.0, references=log_probabilities(model, [pack]))
    assert backward(model, pack, 1.0, noise=noise) == pytest.approx(loss, rel=1e-5)
    assert float((gradient(model) - plain).norm()) < 1e-4 * float(plain.norm())
