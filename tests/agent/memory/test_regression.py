"""Labels are learnt from vectors, and leaving texts out is as if they had never been there."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.memory.regression import RIDGE, SHARPNESS, LabelRegression


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
