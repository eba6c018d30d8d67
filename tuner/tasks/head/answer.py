"""A question is answered by a stretch of its context, or by saying that the context does not say.

The context goes through in overlapping windows behind the question; of a long one only those that share the most words
with it are read. Each has scores for where the answer starts and ends; the first token stands for none. A window leads
by its best stretch over its own none, and by how often the answer of a training question stood in a window of its rank;
the stretch that leads most is told where it leads by more than `margin`, which is learnt from the validation questions
(Devlin et al., 2019, as for SQuAD 2).
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
from tuner.tasks.data.records import Asked, TaskName
from tuner.tasks.head.bm25 import bm25
from tuner.tasks.head.token_alignment import Frame, frame, pieces, text_ids
from tuner.tasks.head.windows import Batch, Window
from tuner.tasks.metrics import RESAMPLES, Scores, answers, overlap
from tuner.tasks.predictions import Found

if TYPE_CHECKING:
    import torch

QUESTION = 64
"""Tokens of a question, at most."""
READ = 8
"""Windows of a context that are read, at most."""
ALIKE = (1, 2, 4, 8)
"""Ranks of windows to which those above the one before are taken together."""
LIKELY = 20
"""Starts and ends of a window that are tried."""


@dataclass(frozen=True)
class _Best:
    """The best stretch of one question, and how much better it is than none."""

    start: int
    end: int
    lead: float


class AnswerTask:
    """Two scores a token: it starts the answer, it ends it."""

    name: TaskName = "answer"
    labels: tuple[str, ...] = ("start", "end")
    outputs = 2
    width = 1
    together = 1

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
        """Whether the context may not say."""
        self.margin = margin
        self.longest = longest
        """Tokens of an answer, at most."""
        self.odds = tuple(odds)
        """Log odds that a window holds the answer, by its rank among those of its context; empty before training."""

    @classmethod
    def learn(cls, examples: Sequence[Asked]) -> tuple[list[str], dict[str, Any]]:
        """Whether there are questions without an answer. Raises DatasetError where there are no others."""
        lengths = [len(answer.text) for one in examples for answer in one.answers]
        if not lengths:
            raise DatasetError(f"none of {len(examples)} questions has an answer; expected some")
        none = any(not one.answers for one in examples)
        return list(cls.labels), {"none": none, "longest": max(30, int(np.quantile(lengths, 0.99)) // 3)}

    def options(self) -> dict[str, Any]:
        return {"none": self.none, "margin": self.margin, "longest": self.longest, "odds": list(self.odds)}

    def windows(self, examples: Sequence[Asked], tokenizer: Any, max_tokens: int) -> list[Window]:
        """Those that are read, of each question the likeliest first."""
        around = frame(tokenizer, pair=True)
        known: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        made = []
        for number, one in enumerate(examples):
            if one.context not in known:
                known[one.context] = text_ids(tokenizer, one.context)
            asked = text_ids(tokenizer, one.question)[0][:QUESTION]
            cut = self._windows(number, one, asked, known[one.context], around, max_tokens)
            likely = bm25(asked, [each.ids[each.second :] for each in cut])
            made += [cut[at] for at in sorted(range(len(cut)), key=lambda at: -likely[at])[:READ]]
        return made

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.tensor([one.targets for one in batch.windows], device=scores.device).long()
        allowed = _allowed(batch).to(scores.device)
        masked = scores.masked_fill(~allowed.unsqueeze(-1), torch.finfo(scores.dtype).min)
        return (cross_entropy(masked[..., 0], targets[:, 0]) + cross_entropy(masked[..., 1], targets[:, 1])) / 2

    def predict(self, examples: Sequence[Asked], windows: Sequence[Window], scores: Sequence[Any]) -> list[Found]:
        return [
            self._found(one, best) for one, best in zip(examples, self._best(examples, windows, scores), strict=True)
        ]

    def fit_odds(self, windows: Sequence[Window]) -> None:
        """Set the odds to how often training windows of each rank hold the answer, where a context has several."""
        ranked = list(zip(_ranks(windows), windows, strict=True))
        several = {window.example for rank, window in ranked if rank > 1}
        groups = [bisect.bisect_left(ALIKE, rank) for rank in range(1, READ + 1)]
        seen, holding = Counter[int](), Counter[int]()
        for rank, window in ranked:
            if window.example in several:
                seen[groups[rank - 1]] += 1
                holding[groups[rank - 1]] += window.targets[0] > 0
        # With half a window more of either kind, for ranks that have none.
        self.odds = tuple(math.log((holding[one] + 0.5) / (seen[one] - holding[one] + 0.5)) for one in groups)

    def fit_margin(self, examples: Sequence[Asked], windows: Sequence[Window], scores: Sequence[Any]) -> None:
        """Set the margin with the best F1 on these questions."""
        if not self.none:
            return
        best = self._best(examples, windows, scores)
        for_answer = [
            max((overlap(answer.text, one.context[found.start : found.end]) for answer in one.answers), default=0.0)
            for one, found in zip(examples, best, strict=True)
        ]
        for_none = [float(not one.answers) for one in examples]
        order = sorted(range(len(best)), key=lambda at: best[at].lead)
        total = reached = sum(for_answer)
        self.margin = best[order[0]].lead - 1.0
        for at, after in zip(order, [*order[1:], order[-1]], strict=True):
            reached += for_none[at] - for_answer[at]
            if reached > total:
                total, self.margin = reached, (best[at].lead + best[after].lead) / 2

    def measure(self, examples: Sequence[Asked], predictions: Sequence[Found], *, resamples: int = RESAMPLES) -> Scores:
        return answers(
            [[answer.text for answer in one.answers] for one in examples],
            [one.text for one in predictions],
            resamples=resamples,
        )

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        raise DatasetError("answers have no classes to weigh; leave out --class-weights")

    def _windows(
        self,
        number: int,
        one: Asked,
        asked: list[int],
        context: tuple[list[int], list[tuple[int, int]]],
        around: Frame,
        max_tokens: int,
    ) -> list[Window]:
        ids, offsets = context
        room = max_tokens - around.size - len(asked)
        head = (*around.before, *asked, *around.between)
        made = []
        for piece in pieces(len(ids), room, min(128, room // 2)):
            places = tuple(offsets[piece.start : piece.end])
            whole = (*head, *ids[piece.start : piece.end], *around.behind)
            made.append(Window(number, whole, len(head), _targets(one, places, len(head)), offsets=places))
        return made

    def _best(self, examples: Sequence[Asked], windows: Sequence[Window], scores: Sequence[Any]) -> list[_Best]:
        best = [_Best(0, 0, -np.inf)] * len(examples)
        for rank, window, given in zip(_ranks(windows), windows, scores, strict=True):
            total, start, end = self._stretch(window, given)
            lead = total - float(given[0].sum()) + (self.odds[rank - 1] if self.odds else 0.0)
            if lead > best[window.example].lead:
                best[window.example] = _Best(start, end, lead)
        return best

    def _stretch(self, window: Window, given: Any) -> tuple[float, int, int]:
        """The best total of a window, and the characters it stands for."""
        inside = given[window.second : window.second + len(window.offsets)].astype(np.float64)
        if not len(inside):
            return -np.inf, 0, 0
        starts, ends = (np.argsort(inside[:, side])[::-1][:LIKELY] for side in (0, 1))
        lengths = ends[None, :] - starts[:, None]
        totals = inside[starts, 0][:, None] + inside[ends, 1][None, :]
        totals = np.where((lengths >= 0) & (lengths < self.longest), totals, -np.inf)
        row, column = np.unravel_index(int(totals.argmax()), totals.shape)
        if not np.isfinite(totals[row, column]):
            return -np.inf, 0, 0
        return float(totals[row, column]), window.offsets[starts[row]][0], window.offsets[ends[column]][1]

    def _found(self, one: Asked, best: _Best) -> Found:
        says = best.end > best.start and (not self.none or best.lead > self.margin)
        if not says:
            return Found("", 0, 0, best.lead - self.margin)
        return Found(one.context[best.start : best.end], best.start, best.end, best.lead - self.margin)


def _ranks(windows: Sequence[Window]) -> Iterator[int]:
    """The place of each window among those of its question, from 1."""
    seen: Counter[int] = Counter()
    for one in windows:
        seen[one.example] += 1
        yield seen[one.example]


def _targets(one: Asked, offsets: Sequence[tuple[int, int]], shift: int) -> tuple[int, int]:
    """The tokens that the first answer starts and ends with; the first token twice where it is not all in here."""
    for answer in one.answers[:1]:
        end = answer.start + len(answer.text)
        inside = [at for at, (left, right) in enumerate(offsets) if left < end and right > answer.start]
        if inside and offsets[inside[0]][0] <= answer.start and offsets[inside[-1]][1] >= end:
            return inside[0] + shift, inside[-1] + shift
    return 0, 0


def _allowed(batch: Batch) -> torch.Tensor:
    """[B, T], true at the tokens of the context and at the first, which stands for none."""
    import torch

    allowed = torch.zeros_like(batch.mask, dtype=torch.bool)
    allowed[:, 0] = True
    for row, one in enumerate(batch.windows):
        allowed[row, one.second : one.second + len(one.offsets)] = True
    return allowed
