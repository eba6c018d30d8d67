"""Extractive question answering: the answer is a span of the context, or none.

The context is read in overlapping windows after the question; of a long context only the windows that share most words
with the question. The head scores where the answer starts and ends; the first token stands for "no answer". The lead of
a window is the score of its best span over its own "no answer", plus the log odds that a window of its rank holds the
answer. The span with the largest lead is the answer if the lead exceeds `margin`, fitted on the validation questions.
Source: Devlin et al., "BERT" (2019), as for SQuAD 2.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import AnswerExample, TaskName
from tuner.tasks.example_metrics import measure_answer
from tuner.tasks.head.bm25 import bm25
from tuner.tasks.head.token_alignment import SpecialTokens, overlapping_chunks, special_tokens, text_ids
from tuner.tasks.head.windows import Window, WindowBatch
from tuner.tasks.metrics import RESAMPLES, TaskScores, overlap
from tuner.tasks.predictions import AnswerPrediction

if TYPE_CHECKING:
    import torch

QUESTION = 64
"""Tokens of a question, at most."""
READ = 8
"""Windows of a context that are read, at most."""
RANK_BUCKETS = (1, 2, 4, 8)
"""Highest rank of each group of windows that share their log odds."""
CANDIDATES = 20
"""Starts and ends of a window that are combined."""


@dataclass(frozen=True)
class _BestSpan:
    """The best span of one question in characters, and its lead over no answer."""

    start: int
    end: int
    lead: float


class AnswerTask:
    """Two scores per token: that the answer starts with it, and that it ends with it."""

    name: TaskName = "answer"
    labels: tuple[str, ...] = ("start", "end")
    outputs = 2
    width = 1
    group_size = 1

    def __init__(
        self,
        labels: tuple[str, ...] = labels,
        *,
        none: bool = False,
        margin: float = 0.0,
        longest: int = 30,
        odds: Sequence[float] = (),
    ) -> None:
        self.none = none
        """Whether questions may have no answer."""
        self.margin = margin
        """Lead over no answer, in logits, from which a span is the answer."""
        self.longest = longest
        """Tokens of an answer, at most."""
        self.odds = tuple(odds)
        """Log odds that a window holds the answer, by its rank among those of its context; empty before training."""

    @classmethod
    def learn(cls, examples: Sequence[AnswerExample]) -> tuple[list[str], dict[str, Any]]:
        """Return labels and options of these examples. Raises DatasetError where no question has an answer."""
        lengths = [len(answer.text) for example in examples for answer in example.answers]
        if not lengths:
            raise DatasetError(f"none of {len(examples)} questions has an answer; expected some")
        none = any(not example.answers for example in examples)
        return list(cls.labels), {"none": none, "longest": max(30, int(np.quantile(lengths, 0.99)) // 3)}

    def options(self) -> dict[str, Any]:
        return {"none": self.none, "margin": self.margin, "longest": self.longest, "odds": list(self.odds)}

    def windows(self, examples: Sequence[AnswerExample], tokenizer: Any, max_tokens: int) -> list[Window]:
        """Return the `READ` windows of each question that match it best, the best first."""
        special = special_tokens(tokenizer, pair=True)
        contexts: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        windows = []
        for number, example in enumerate(examples):
            if example.context not in contexts:
                contexts[example.context] = text_ids(tokenizer, example.context)
            question = text_ids(tokenizer, example.question)[0][:QUESTION]
            own = self._windows(number, example, question, contexts[example.context], special, max_tokens)
            matches = bm25(question, [window.ids[window.second :] for window in own])
            windows += [own[at] for at in sorted(range(len(own)), key=lambda at: -matches[at])[:READ]]
        return windows

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        return hidden

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.tensor([window.targets for window in batch.windows], device=scores.device).long()
        allowed = _allowed(batch).to(scores.device)
        masked = scores.masked_fill(~allowed.unsqueeze(-1), torch.finfo(scores.dtype).min)
        return (cross_entropy(masked[..., 0], targets[:, 0]) + cross_entropy(masked[..., 1], targets[:, 1])) / 2

    def predict(
        self, examples: Sequence[AnswerExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[AnswerPrediction]:
        return [
            self._answer(example, best)
            for example, best in zip(examples, self._best(examples, windows, scores), strict=True)
        ]

    def fit_odds(self, windows: Sequence[Window]) -> None:
        """Set the log odds from how often training windows of each rank hold the answer, of contexts with several."""
        ranked = list(zip(_ranks(windows), windows, strict=True))
        several = {window.example for rank, window in ranked if rank > 1}
        groups = [bisect.bisect_left(RANK_BUCKETS, rank) for rank in range(1, READ + 1)]
        seen, holding = Counter[int](), Counter[int]()
        for rank, window in ranked:
            if window.example in several:
                seen[groups[rank - 1]] += 1
                holding[groups[rank - 1]] += window.targets[0] > 0
        # Half a window is added to both counts, for ranks that have none.
        self.odds = tuple(math.log((holding[group] + 0.5) / (seen[group] - holding[group] + 0.5)) for group in groups)

    def fit_margin(self, examples: Sequence[AnswerExample], windows: Sequence[Window], scores: Sequence[Any]) -> None:
        """Set the margin to the one with the best F1 on these questions."""
        if not self.none:
            return
        best = self._best(examples, windows, scores)
        for_answer = [
            max(
                (overlap(answer.text, example.context[span.start : span.end]) for answer in example.answers),
                default=0.0,
            )
            for example, span in zip(examples, best, strict=True)
        ]
        for_none = [float(not example.answers) for example in examples]
        order = sorted(range(len(best)), key=lambda at: best[at].lead)
        total = reached = sum(for_answer)
        self.margin = best[order[0]].lead - 1.0
        for at, after in zip(order, [*order[1:], order[-1]], strict=True):
            reached += for_none[at] - for_answer[at]
            if reached > total:
                total, self.margin = reached, (best[at].lead + best[after].lead) / 2

    def measure(
        self, examples: Sequence[AnswerExample], predictions: Sequence[AnswerPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_answer(examples, predictions, resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        raise DatasetError("answers have no classes to weigh; leave out --class-weights")

    def _windows(
        self,
        number: int,
        example: AnswerExample,
        question: list[int],
        context: tuple[list[int], list[tuple[int, int]]],
        special: SpecialTokens,
        max_tokens: int,
    ) -> list[Window]:
        ids, offsets = context
        room = max_tokens - special.size - len(question)
        head = (*special.before, *question, *special.between)
        windows = []
        for chunk in overlapping_chunks(len(ids), room, min(128, room // 2)):
            places = tuple(offsets[chunk.start : chunk.end])
            whole = (*head, *ids[chunk.start : chunk.end], *special.after)
            windows.append(Window(number, whole, len(head), _targets(example, places, len(head)), offsets=places))
        return windows

    def _best(
        self, examples: Sequence[AnswerExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[_BestSpan]:
        best = [_BestSpan(0, 0, -np.inf)] * len(examples)
        for rank, window, logits in zip(_ranks(windows), windows, scores, strict=True):
            total, start, end = self._best_of_window(window, logits)
            lead = total - float(logits[0].sum()) + (self.odds[rank - 1] if self.odds else 0.0)
            if lead > best[window.example].lead:
                best[window.example] = _BestSpan(start, end, lead)
        return best

    def _best_of_window(self, window: Window, logits: Any) -> tuple[float, int, int]:
        """The highest sum of both logits in a window [T, 2], and the characters of that span."""
        inside = logits[window.second : window.second + len(window.offsets)].astype(np.float64)
        if not len(inside):
            return -np.inf, 0, 0
        starts, ends = (np.argsort(inside[:, side])[::-1][:CANDIDATES] for side in (0, 1))
        lengths = ends[None, :] - starts[:, None]
        totals = inside[starts, 0][:, None] + inside[ends, 1][None, :]
        totals = np.where((lengths >= 0) & (lengths < self.longest), totals, -np.inf)
        row, column = np.unravel_index(int(totals.argmax()), totals.shape)
        if not np.isfinite(totals[row, column]):
            return -np.inf, 0, 0
        return float(totals[row, column]), window.offsets[starts[row]][0], window.offsets[ends[column]][1]

    def _answer(self, example: AnswerExample, best: _BestSpan) -> AnswerPrediction:
        is_answered = best.end > best.start and (not self.none or best.lead > self.margin)
        if not is_answered:
            return AnswerPrediction("", 0, 0, best.lead - self.margin)
        return AnswerPrediction(example.context[best.start : best.end], best.start, best.end, best.lead - self.margin)


def _ranks(windows: Sequence[Window]) -> Iterator[int]:
    """The rank of each window among those of its question, from 1."""
    seen: Counter[int] = Counter()
    for window in windows:
        seen[window.example] += 1
        yield seen[window.example]


def _targets(example: AnswerExample, offsets: Sequence[tuple[int, int]], shift: int) -> tuple[int, int]:
    """The first and last token of the first answer; the window's first token twice where it is not all inside."""
    for answer in example.answers[:1]:
        end = answer.start + len(answer.text)
        inside = [at for at, (left, right) in enumerate(offsets) if left < end and right > answer.start]
        if inside and offsets[inside[0]][0] <= answer.start and offsets[inside[-1]][1] >= end:
            return inside[0] + shift, inside[-1] + shift
    return 0, 0


def _allowed(batch: WindowBatch) -> torch.Tensor:
    """[B, T], true at the tokens of the context and at the first token, which stands for no answer."""
    import torch

    allowed = torch.zeros_like(batch.mask, dtype=torch.bool)
    allowed[:, 0] = True
    for row, window in enumerate(batch.windows):
        allowed[row, window.second : window.second + len(window.offsets)] = True
    return allowed
