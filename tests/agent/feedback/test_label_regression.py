"""Labels are learnt from vectors, and leaving texts out is as if they had never been there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.feedback.label_regression import LEAST, RIDGE, SHARPNESS, LabelRegression


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_what_sets_labels_apart_counts_for_more_than_what_is_near() -> None:
    # The first direction says what is asked, in a whisper; the second, louder, what about.
    asked, about = np.array([1.0, 1.0, -1.0, -1.0] * 8), np.repeat(np.linspace(-3, 3, 8), 4)
    noise = np.random.default_rng(0).normal(0, 0.1, (32, 4))
    vectors = unit(np.column_stack([asked, about, np.full(32, 2.0), noise]))
    labels = ["yes" if one > 0 else "no" for one in asked]
    fitted = LabelRegression(vectors[4:], labels[4:])
    for vector, label in zip(vectors[:4], labels[:4], strict=True):
        assert fitted.names[int(fitted.scores(vector).argmax())] == label


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 24), out=st.sets(st.integers(0, 23), max_size=6))
def test_leaving_out_is_the_same_as_never_having_had(seed: int, size: int, out: set[int]) -> None:
    generator = np.random.default_rng(seed)
    vectors = unit(generator.normal(size=(size, 5)))
    labels = [str(one) for one in generator.integers(0, 3, size)]
    hidden = sorted(place for place in out if place < size - 1)
    query = unit(generator.normal(size=(1, 5)))[0]
    fitted = LabelRegression(vectors, labels)
    kept = [place for place in range(size) if place not in hidden]
    # What is left is fitted around the shares of all labels, which a refit would not know.
    alone = LabelRegression(vectors[kept], [labels[place] for place in kept])
    marks = np.array([[label == name for name in fitted.names] for label in labels], dtype=float)
    gram = np.exp(SHARPNESS * (vectors[kept].astype(float) @ vectors[kept].astype(float).T - 1))
    weights = np.linalg.solve(gram + RIDGE * np.eye(len(kept)), marks[kept] - marks.mean(axis=0))
    seen = np.exp(SHARPNESS * (vectors[kept].astype(float) @ query - 1))
    np.testing.assert_allclose(fitted.scores(query, without=hidden), seen @ weights + marks.mean(axis=0), atol=1e-8)
    if not hidden:
        np.testing.assert_allclose(fitted.scores(query), alone.scores(query), atol=1e-8)


def two_groups(size: int, generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    marks = np.repeat([1.0, -1.0], size // 2)
    vectors = unit(np.column_stack([marks, np.full(size, 3.0), generator.normal(0, 0.2, (size, 4))]))
    return vectors, ["yes" if one > 0 else "no" for one in marks]


def test_shares_are_probabilities_that_are_right_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(4, 6))
    labels = generator.integers(0, 4, 600)
    vectors = unit(directions[labels] + generator.normal(0, 1.2, (600, 6)))
    fitted = LabelRegression(vectors[:300], [str(one) for one in labels[:300]])
    found = []
    for vector, label in zip(vectors[300:], labels[300:], strict=True):
        shares = fitted.shares(fitted.scores(vector), float((vectors[:300] @ vector).max()))
        assert 0 < shares.sum() <= 1
        found.append((shares.max(), fitted.names[int(shares.argmax())] == str(label)))
    told, right = (np.mean([one[place] for one in found]) for place in (0, 1))
    assert abs(told - right) < 0.1


def test_few_texts_labels_seen_once_and_a_text_far_from_all_leave_more_to_what_is_unknown() -> None:
    vectors, labels = two_groups(40, np.random.default_rng(1))
    near, far = vectors[0], unit(np.array([[0.0, -1.0, 1.0, 1.0, 0.0, 0.0]]))[0]
    fitted = LabelRegression(vectors, labels)
    whole = fitted.shares(fitted.scores(near), 1.0).sum()
    assert whole > 0.9
    assert fitted.shares(fitted.scores(far), float((vectors @ far).max())).sum() < 0.5 * whole
    single = LabelRegression(vectors, [*labels[:-10], *map(str, range(10))])
    assert single.shares(single.scores(near), 1.0).sum() < 0.8 * whole
    few = LabelRegression(vectors[16:25], labels[16:25])
    assert len(vectors[16:25]) < LEAST
    assert not few.shares(few.scores(near), 1.0).any()


def test_names_of_labels_are_examples_and_no_texts() -> None:
    vectors, labels = two_groups(40, np.random.default_rng(2))
    plain = LabelRegression(vectors, labels)
    named = LabelRegression(np.concatenate([vectors, vectors[:1]]), [*labels, "no"], texts=40)
    assert named.names == plain.names
    assert named.scores(vectors[0])[named.names.index("no")] > plain.scores(vectors[0])[plain.names.index("no")]
    once = LabelRegression(np.concatenate([vectors, vectors[:1]]), [*labels, "maybe"], texts=40)
    assert once.shares(once.scores(vectors[0]), 1.0).sum() == pytest.approx(
        plain.shares(plain.scores(vectors[0]), 1.0).sum()
    )
