"""How near written texts come to those that were wanted: BLEU and chrF (sacrebleu), ROUGE (rouge-score).

Over words, or over characters in scripts without spaces: BLEU's tokenizer is sacrebleu's `zh` for Chinese, `char` for
Japanese and Thai, else `13a`. All as shares of 1, with bootstrap intervals over the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.errors import DatasetError
from tuner.evaluation.statistics import Interval, bootstrap_mean
from tuner.tasks.data.languages import detect_language
from tuner.tasks.data.words import is_unspaced, split_words
from tuner.tasks.metrics import RESAMPLES, TaskScores

TOKENIZERS = {"Chinese": "zh", "Japanese": "char", "Thai": "char"}
ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


def translations(gold: Sequence[str], said: Sequence[str], *, resamples: int = RESAMPLES) -> TaskScores:
    """Translations against one reference each: chrF of the whole decides, BLEU stands beside it."""
    corpus, right = corpus_figures(gold, said, resamples)
    return TaskScores("chrf", corpus, right=right)


def summaries(gold: Sequence[str], said: Sequence[str], *, resamples: int = RESAMPLES) -> TaskScores:
    """Summaries against one reference each: the mean F1 of ROUGE-L decides."""
    by_name = rouge(gold, said)
    figures = {name: _mean(values, resamples) for name, values in by_name.items()}
    return TaskScores("rouge_l", figures, right=tuple(by_name["rouge_l"]))


def replies(gold: Sequence[str], said: Sequence[str], *, resamples: int = RESAMPLES) -> TaskScores:
    """Answers to customers against the best one each: ROUGE-L decides, chrF and BLEU stand beside it.

    A good answer in other words scores low: these figures compare two models, they do not say how good one is.
    """
    by_name = rouge(gold, said)
    figures = {"rouge_l": _mean(by_name["rouge_l"], resamples), **corpus_figures(gold, said, resamples)[0]}
    return TaskScores("rouge_l", figures, right=tuple(by_name["rouge_l"]))


def corpus_figures(
    gold: Sequence[str], said: Sequence[str], resamples: int
) -> tuple[dict[str, Interval], tuple[float, ...]]:
    """chrF and BLEU of a whole, and chrF of each example."""
    metrics = _sacrebleu()
    tokenizer = TOKENIZERS.get(detect_language(gold), "13a")
    chrf, bleu = metrics.CHRF(), metrics.BLEU(tokenize=tokenizer)
    each = tuple(chrf.sentence_score(other, [one]).score / 100 for one, other in zip(gold, said, strict=True))
    return {"chrf": _corpus(chrf, gold, said, resamples), "bleu": _corpus(bleu, gold, said, resamples)}, each


def rouge(gold: Sequence[str], said: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1, -2 and -L of each example, words stemmed as the library does."""
    scorer = _rouge()
    has_unspaced = detect_language(gold) in TOKENIZERS
    made = scorer.RougeScorer(list(ROUGE), use_stemmer=True, tokenizer=Characters() if has_unspaced else None)
    scores = [made.score(one, other) for one, other in zip(gold, said, strict=True)]
    return {name: [float(one[kind].fmeasure) for one in scores] for kind, name in ROUGE.items()}


def require() -> None:
    """Raise DatasetError where a library that measures texts is not installed."""
    _sacrebleu()
    _rouge()


class Characters:
    """Cuts texts for `rouge_score`: characters of scripts without spaces, words of others, no punctuation."""

    def tokenize(self, text: str) -> list[str]:
        words = (text[start:end].lower() for start, end in split_words(text))
        return [word for word in words if word[0].isalnum() or is_unspaced(word[0])]


def _corpus(metric: Any, gold: Sequence[str], said: Sequence[str], resamples: int) -> Interval:
    # Sums over the examples decide a corpus's figure, so resampled ones need no second look at the texts.
    rows = np.array(metric._extract_corpus_statistics(list(said), [list(gold)]))

    def figure(sums: Any) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score) / 100

    mean = figure(rows.sum(axis=0))
    if not resamples:
        return Interval(len(rows), mean, mean, mean)
    draws = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    low, high = np.percentile([figure(one) for one in draws @ rows], [2.5, 97.5])
    return Interval(len(rows), mean, float(low), float(high))


def _mean(values: Sequence[float], resamples: int) -> Interval:
    if resamples:
        return bootstrap_mean(values, resamples=resamples)
    mean = sum(values) / max(1, len(values))
    return Interval(len(values), mean, mean, mean)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise _missing("sacrebleu") from None
    return metrics


def _rouge() -> Any:
    try:
        from rouge_score import rouge_scorer  # type: ignore[import-untyped]
    except ImportError:
        raise _missing("rouge-score") from None
    return rouge_scorer


def _missing(name: str) -> DatasetError:
    return DatasetError(f"this task is measured with {name}, which is not installed; pip install 'ratchet-loop[tasks]'")
