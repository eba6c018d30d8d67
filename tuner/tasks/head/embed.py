"""Texts become vectors whose cosine says how alike they are: the sentence encoder itself is what is trained.

With scores the order of the cosines is learnt: CoSENT (Su, "CoSENT: a more effective sentence vector scheme", 2022), so
that neither scale nor zero of the scores matters. Pairs that belong together are to be nearer than all others of their
step: multiple negatives ranking (Henderson et al., 2017), with hard negatives as in DPR (Karpukhin et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import Similar, TaskName
from tuner.tasks.head.similarity import correlations, ranking
from tuner.tasks.head.token_alignment import frame, text_ids
from tuner.tasks.head.windows import Batch, Window
from tuner.tasks.metrics import RESAMPLES, Scores
from tuner.tasks.predictions import Alike

if TYPE_CHECKING:
    import torch

SCALE = 20.0
"""What cosines are multiplied with before they are compared."""
TOGETHER = 1000
"""Texts that are ranked against all others at once."""
FIRST, SECOND, NEGATIVE = range(3)
"""What a window is of its example, as its only mark."""


class EmbedTask:
    """Vectors of length one, of the mean of the hidden states or of the first. There is no head."""

    name: TaskName = "embed"
    labels: tuple[str, ...] = ()
    outputs = 0
    width = 1

    def __init__(self, labels: tuple[str, ...] = (), *, negatives: bool = False, pooling: str = "mean") -> None:
        self.together = 3 if negatives else 2
        self.pooling = pooling
        self._negatives = negatives

    @classmethod
    def learn(cls, examples: Sequence[Similar]) -> tuple[list[str], dict[str, Any]]:
        """Whether examples have hard negatives. Raises DatasetError where some have scores and others not."""
        scores = {one.score for one in examples}
        if len(scores) == 1 and None not in scores:
            raise DatasetError(f"all {len(examples)} pairs have the score {scores.pop()}; expected some more alike")
        if len(scores) > 1 and None in scores:
            raise DatasetError("some pairs have a score and others not; expected one in every row, or in none")
        return [], {"negatives": any(one.negative is not None for one in examples)}

    def options(self) -> dict[str, Any]:
        return {"negatives": self._negatives, "pooling": self.pooling}

    def windows(self, examples: Sequence[Similar], tokenizer: Any, max_tokens: int) -> list[Window]:
        around = frame(tokenizer)
        made = []
        for number, one in enumerate(examples):
            texts = [one.text, one.other, *([one.negative or ""] if self._negatives else [])]
            targets = () if one.score is None else (one.score,)
            for role, text in enumerate(texts):
                ids = text_ids(tokenizer, text)[0][: max_tokens - around.size]
                whole = (*around.before, *ids, *around.behind)
                made.append(Window(number, whole, len(whole), targets, marks=(role,)))
        return made

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        from torch.nn.functional import normalize

        if self.pooling == "cls":
            return normalize(hidden[:, 0], dim=-1)
        return normalize((hidden * batch.mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1), dim=-1)

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        """Of vectors [B, H], the windows of an example one behind the other."""
        first, second = (scores[place :: self.together] for place in (FIRST, SECOND))
        pairs = batch.windows[:: self.together]
        if pairs[0].targets:
            return _order_loss((first * second).sum(dim=-1), [one.targets[0] for one in pairs])
        return self._ranking_loss(first, second, scores[NEGATIVE :: self.together], batch.windows)

    def predict(self, examples: Sequence[Similar], windows: Sequence[Window], scores: Sequence[Any]) -> list[Alike]:
        vectors = np.stack(scores)
        first, second = (vectors[place :: self.together] for place in (FIRST, SECOND))
        cosines = (first * second).sum(axis=-1)
        ranks = (
            [0] * len(examples) if all(one.score is not None for one in examples) else _ranks(examples, first, second)
        )
        return [Alike(float(cosine), rank) for cosine, rank in zip(cosines, ranks, strict=True)]

    def measure(
        self, examples: Sequence[Similar], predictions: Sequence[Alike], *, resamples: int = RESAMPLES
    ) -> Scores:
        wanted = [one.score for one in examples if one.score is not None]
        if not wanted:
            return ranking([one.rank for one in predictions], resamples=resamples)
        if len(wanted) < len(examples):
            raise DatasetError("some pairs have a score and others not; measure one kind at a time")
        return correlations(wanted, [one.score for one in predictions], resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        raise DatasetError("pairs of texts have no classes to weigh; leave out --class-weights")

    def _ranking_loss(
        self, first: torch.Tensor, second: torch.Tensor, negatives: torch.Tensor, windows: Sequence[Window]
    ) -> torch.Tensor:
        """Cross-entropy of each text's other among the others and negatives of all; what fits as well is left out."""
        import torch
        from torch.nn.functional import cross_entropy

        others = torch.cat([second, negatives]) if self._negatives else second
        scores = first @ others.T * SCALE
        asked = [one.ids for one in windows[FIRST :: self.together]]
        found = [one.ids for one in windows[SECOND :: self.together]]
        wrong = [one.ids for one in windows[NEGATIVE :: self.together]] if self._negatives else []
        fits: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for ids, other in zip(asked, found, strict=True):
            fits.setdefault(ids, set()).add(other)
        known = [
            [ids in fits[one] and at != row for at, ids in enumerate([*found, *wrong])] for row, one in enumerate(asked)
        ]
        masked = scores.masked_fill(torch.tensor(known, device=scores.device), float("-inf"))
        return cross_entropy(masked, torch.arange(len(asked), device=scores.device))


def _order_loss(cosines: torch.Tensor, scores: Sequence[float]) -> torch.Tensor:
    """log(1 + sum of exp(scale (cos j - cos i))) over all i that are more alike than j; 0 where none is."""
    import torch

    wanted = torch.tensor(scores, device=cosines.device)
    behind = (cosines[None, :] - cosines[:, None]) * SCALE
    chosen = behind[wanted[:, None] > wanted[None, :]]
    return torch.cat([chosen.new_zeros(1), chosen]).logsumexp(dim=0)


def _ranks(examples: Sequence[Similar], first: Any, second: Any) -> list[int]:
    """For each text the place, from 1, of its other among all different others; what fits as well is left out."""
    places: dict[str, int] = {}
    for one in examples:
        places.setdefault(one.other, len(places))
    rows = {one.other: row for row, one in enumerate(examples)}
    others = second[[rows[text] for text in places]]
    fits: dict[str, set[int]] = {}
    for one in examples:
        fits.setdefault(one.text, set()).add(places[one.other])
    ranks = []
    for start in range(0, len(examples), TOGETHER):
        for one, cosines in zip(
            examples[start : start + TOGETHER], first[start : start + TOGETHER] @ others.T, strict=True
        ):
            own = places[one.other]
            above = int((cosines > cosines[own]).sum())
            ranks.append(1 + above - sum(1 for place in fits[one.text] if cosines[place] > cosines[own]))
    return ranks
