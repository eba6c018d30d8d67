"""Figures of translations, summaries and replies are those of the libraries."""

from __future__ import annotations

import pytest

from tuner.tasks.text_metrics import replies, rouge, summaries, translations


def test_translations_score_as_sacrebleu_says() -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    gold = ["The cat sat on the mat today.", "It rains in spring.", "Nobody knows why he left us."]
    said = ["The cat sat on a mat today.", "It is raining in spring.", "Nobody knows why he left."]
    figures = translations(gold, said).figures
    assert figures["bleu"].mean == pytest.approx(corpus_bleu(said, [gold]).score / 100)
    assert figures["chrf"].mean == pytest.approx(corpus_chrf(said, [gold]).score / 100)
    assert figures["chrf"].low < figures["chrf"].mean < figures["chrf"].high
    assert translations(gold, gold).value == pytest.approx(1.0)


def test_chinese_is_counted_by_characters() -> None:
    from sacrebleu import corpus_bleu

    gold, said = ["今天的天气很好。", "我们明天去北京。"], ["今天天气很好。", "我们明天去上海。"]
    assert translations(gold, said).figures["bleu"].mean == pytest.approx(
        corpus_bleu(said, [gold], tokenize="zh").score / 100
    )
    # Of 7 and 6 characters 6 are shared in their order.
    assert rouge(gold[:1], said[:1])["rouge_l"] == [pytest.approx(2 * 6 / 13)]
    assert replies(gold, gold).value == 1.0


def test_summaries_score_as_rouge_says() -> None:
    scores = summaries(["police killed the gunman"], ["police kill the gunman"])
    # Stemmed, they are the same; the worked example of Lin (2004) has them unstemmed.
    assert scores.value == 1.0
    other = rouge(["police ended the gunman"], ["the gunman police ended"])
    assert other["rouge_1"] == [1.0]
    assert other["rouge_2"] == [pytest.approx(2 / 3)]
    assert other["rouge_l"] == [pytest.approx(0.5)]
