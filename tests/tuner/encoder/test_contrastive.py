"""The batches of labels and texts, and the loss on them."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from tuner.encoder.contrastive import contrastive_loss, make_batches

torch = pytest.importorskip("torch")


def test_batches_hold_a_few_texts_of_each_label_and_every_label_as_often() -> None:
    examples = [(f"{label} {number}", label) for label in "abcdef" for number in range(2 if label == "a" else 9)]
    made = make_batches(examples, 4, 3, 6, random.Random(0))
    assert made == make_batches(examples, 4, 3, 6, random.Random(0))
    assert made != make_batches(examples, 4, 3, 6, random.Random(1))
    for batch in made:
        assert len(set(batch)) == len(batch), "no text turns up twice"
        counts = Counter(label for _, label in batch)
        assert len(counts) == 4
        assert all(counts[label] == (2 if label == "a" else 3) for label in counts)
    assert set(Counter(label for batch in made for label in {one for _, one in batch}).values()) <= {3, 4, 5}


def test_where_there_are_fewer_labels_each_brings_more_texts() -> None:
    examples = [(f"{label} {number}", label) for label in "ab" for number in range(40)]
    (batch,) = make_batches(examples, 16, 4, 1, random.Random(0))
    assert Counter(label for _, label in batch) == {"a": 32, "b": 32}


def test_the_loss_is_that_of_the_paper() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = ["a", "a", "a", "b", "c"]
    alike = torch.tensor([[one == other for other in labels] for one in labels])
    got = contrastive_loss(vectors, vectors, alike, torch.eye(5, dtype=torch.bool), 0.5)
    expected = []
    for one in range(3):
        others = [other for other in range(5) if other != one]
        whole = sum(math.exp(float(vectors[one] @ vectors[other]) / 0.5) for other in others)
        friends = [other for other in others if labels[other] == "a"]
        said = [math.log(whole) - float(vectors[one] @ vectors[other]) / 0.5 for other in friends]
        expected.append(sum(said) / len(said))
    assert float(got) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_who_is_alone_is_passed_over_and_leaves_a_gradient_that_is_a_number() -> None:
    vectors = torch.eye(3, requires_grad=True)
    nobody = torch.eye(3, dtype=torch.bool)
    loss = contrastive_loss(vectors, vectors, nobody, nobody, 0.07)
    loss.backward()
    assert float(loss.detach()) == 0
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
