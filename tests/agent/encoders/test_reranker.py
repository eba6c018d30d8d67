"""A reranker orders the best results of a search, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.encoders.encoder import HashEncoder
from agent.encoders.reranker import RERANKED, CrossEncoderReranker
from agent.errors import MemoryIndexError
from agent.knowledge.indexer import NewText
from agent.knowledge.knowledge import Knowledge


class Longest:
    """Scores a text by its length."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((query, len(texts)))
        return [float(len(text)) for text in texts]


def test_the_best_results_are_reranked_and_the_rest_keep_their_order(tmp_path: Path) -> None:
    reranker = Longest()
    texts = [NewText(f"t{number:02}", f"a tent {'peg ' * number}of number {number}") for number in range(30)]
    plain = Knowledge.open(tmp_path / "ratchet.db", tmp_path / "index", HashEncoder())
    plain.add_texts(texts)
    before = [one.document for one in plain.search("a tent", 30, join=False)]
    plain.close()
    memory = Knowledge.open(tmp_path / "ratchet.db", tmp_path / "index", HashEncoder(), reranker=lambda: reranker)
    try:
        after = [one.document for one in memory.search("a tent", 30, join=False)]
        assert after == sorted(before[:RERANKED], reverse=True) + before[RERANKED:]
        assert after != before
        assert reranker.asked == [("a tent", RERANKED)]
        assert memory.search(" ", 3) == []
        assert len(reranker.asked) == 1
    finally:
        memory.close()


def test_a_cross_encoder_loaded_from_a_folder_scores_pairs(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "tent", "peg", "lamp"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    reranker = CrossEncoderReranker(tmp_path)
    scores = reranker.scores("a tent", ["a tent peg", "a lamp", "a tent peg"])
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)


def test_a_folder_without_a_cross_encoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryIndexError, match="the folder of a cross-encoder"):
        CrossEncoderReranker(tmp_path)
