"""Sentence embedding: trains the encoder itself, so that the cosine of two vectors is the similarity of their texts.

Pairs with scores are trained on the order of their cosines: CoSENT (Su, "CoSENT: a more effective sentence vector
scheme", 2022), which depends neither on the scale nor on the zero of the scores. Pairs that belong together are
to be nearer than all others of their step: multiple negatives ranking (Henderson et al., 2017), with hard negatives as
in DPR (Karpukhin et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import EmbedExample, TaskName
from tuner.tasks.head.similarity import measure_correlation, measure_ranking
from tuner.tasks.head.token_alignment import special_tokens, text_ids
from tuner.tasks.head.windows import Window, WindowBatch
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import SimilarityPrediction

if TYPE_CHECKING:
    import torch

SCALE = 20.0
"""Factor of cosines in the losses."""
RANKED_AT_ONCE = 1000
"""Texts whose cosines with all others are computed at once."""
FIRST, SECOND, NEGATIVE = range(3)
"""The role of a window's text in its example, as its only mark."""


class EmbedTask:
    """Vectors of length 1: the mean of the hidden states, or the first of them. There is no head."""

    name: TaskName = "embed"
    labels: tuple[str, ...] = ()
    outputs = 0
    width = 1

    def __init__(self, labels: tuple[str, ...] = (), *, negatives: bool = False, pooling: str = "mean") -> None:
        self.group_size = 3 if negatives else 2
        self.pooling = pooling
        """Of hidden states: their mean ("mean"), or the first ("cls")."""
        self._negatives = negatives

    @classmethod
    def learn(cls, examples: Sequence[EmbedExample]) -> tuple[list[str], dict[str, Any]]:
        """Return options of these examples. Raises DatasetError where only some have scores, or all the same."""
        scores = {example.score for example in examples}
        if len(scores) == 1 and None not in scores:
            raise DatasetError(f"all {len(examples)} pairs have the score {scores.pop()}; expected some more alike")
        if len(scores) > 1 and None in scores:
            raise DatasetError("some pairs have a score and others not; expected one in every row, or in none")
        return [], {"negatives": any(example.negative is not None for example in examples)}

    def options(self) -> dict[str, Any]:
        return {"negatives": self._negatives, "pooling": self.pooling}

    def windows(self, examples: Sequence[EmbedExample], tokenizer: Any, max_tokens: int) -> list[Window]:
        """Return two or three windows per example, one after the other: both texts, and the hard negative."""
        special = special_tokens(tokenizer)
        windows = []
        for number, example in enumerate(examples):
            texts = [example.text, example.other, *([example.negative or ""] if self._negatives else [])]
            targets = () if example.score is None else (example.score,)
            for role, text in enumerate(texts):
                whole = special.wrap(text_ids(tokenizer, text)[0][: max_tokens - special.size])
                windows.append(Window(number, whole, len(whole), targets, marks=(role,)))
        return windows

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        """Return vectors [B, H] of length 1."""
        from torch.nn.functional import normalize

        if self.pooling == "cls":
            return normalize(hidden[:, 0], dim=-1)
        return normalize((hidden * batch.mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1), dim=-1)

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of vectors [B, H], the windows of an example one after the other."""
        first, second = (scores[place :: self.group_size] for place in (FIRST, SECOND))
        pairs = batch.windows[:: self.group_size]
        if pairs[0].targets:
            return _order_loss((first * second).sum(dim=-1), [window.targets[0] for window in pairs])
        return self._ranking_loss(first, second, scores[NEGATIVE :: self.group_size], batch.windows)

    def predict(
        self, examples: Sequence[EmbedExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[SimilarityPrediction]:
        vectors = np.stack(scores)
        first, second = (vectors[place :: self.group_size] for place in (FIRST, SECOND))
        cosines = (first * second).sum(axis=-1)
        all_scored = all(example.score is not None for example in examples)
        ranks = [0] * len(examples) if all_scored else _ranks(examples, first, second)
        return [SimilarityPrediction(float(cosine), rank) for cosine, rank in zip(cosines, ranks, strict=True)]

    def measure(
        self,
        examples: Sequence[EmbedExample],
        predictions: Sequence[SimilarityPrediction],
        *,
        resamples: int = RESAMPLES,
    ) -> TaskScores:
        scores = [example.score for example in examples if example.score is not None]
        if not scores:
            return measure_ranking([prediction.rank for prediction in predictions], resamples=resamples)
        if len(scores) < len(examples):
            raise DatasetError("some pairs have a score and others not; measure one kind at a time")
        return measure_correlation(scores, [prediction.score for prediction in predictions], resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        raise DatasetError("pairs of texts have no classes to weigh; leave out --class-weights")

    def _ranking_loss(
        self, first: torch.Tensor, second: torch.Tensor, negatives: torch.Tensor, windows: Sequence[Window]
    ) -> torch.Tensor:
        """Cross-entropy of each text's other text among all others and negatives; further right ones are masked."""
        import torch
        from torch.nn.functional import cross_entropy

        others = torch.cat([second, negatives]) if self._negatives else second
        scores = first @ others.T * SCALE
        queries = [window.ids for window in windows[FIRST :: self.group_size]]
        positives = [window.ids for window in windows[SECOND :: self.group_size]]
        wrong = [window.ids for window in windows[NEGATIVE :: self.group_size]] if self._negatives else []
        fitting: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for query, positive in zip(queries, positives, strict=True):
            fitting.setdefault(query, set()).add(positive)
        also_right = [
            [ids in fitting[query] and at != row for at, ids in enumerate([*positives, *wrong])]
            for row, query in enumerate(queries)
        ]
        masked = scores.masked_fill(torch.tensor(also_right, device=scores.device), float("-inf"))
        return cross_entropy(masked, torch.arange(len(queries), device=scores.device))


def _order_loss(cosines: torch.Tensor, scores: Sequence[float]) -> torch.Tensor:
    """log(1 + sum of exp(SCALE * (cosine j - cosine i))) over all pairs where i has the higher score; 0 without any."""
    import torch

    gold = torch.tensor(scores, device=cosines.device)
    differences = (cosines[None, :] - cosines[:, None]) * SCALE
    ordered = differences[gold[:, None] > gold[None, :]]
    return torch.cat([ordered.new_zeros(1), ordered]).logsumexp(dim=0)


def _ranks(examples: Sequence[EmbedExample], first: Any, second: Any) -> list[int]:
    """For each text the rank, from 1, of its other text among all different ones; further right ones do not count."""
    places: dict[str, int] = {}
    for example in examples:
        places.setdefault(example.other, len(places))
    rows = {example.other: row for row, example in enumerate(examples)}
    others = second[[rows[text] for text in places]]
    fitting: dict[str, set[int]] = {}
    for example in examples:
        fitting.setdefault(example.text, set()).add(places[example.other])
    ranks = []
    for start in range(0, len(examples), RANKED_AT_ONCE):
        end = start + RANKED_AT_ONCE
        for example, cosines in zip(examples[start:end], first[start:end] @ others.T, strict=True):
            own = cosines[places[example.other]]
            above = int((cosines > own).sum())
            ranks.append(1 + above - sum(1 for place in fitting[example.text] if cosines[place] > own))
    return ranks
