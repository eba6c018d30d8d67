"""Two marked stretches of a text get the relation of the first to the second.

Each is put between signs, `@` around the first and `#` around the second; the head reads the hidden states of both
opening signs and the means over both stretches. The signs are tokens that every encoder knows, so nothing is added to
its vocabulary. Source: the entity marker of Zhou & Chen, "An Improved Baseline for Sentence-level Relation Extraction"
(2022), and the entity start of Baldini Soares et al. (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError
from tuner.tasks.data.records import Related, TaskName
from tuner.tasks.head.classify import softmax
from tuner.tasks.head.token_alignment import Frame, frame, text_ids
from tuner.tasks.head.windows import Batch, Window, balanced
from tuner.tasks.metrics import RESAMPLES, Scores, relations
from tuner.tasks.predictions import Labelled

if TYPE_CHECKING:
    import torch

SIGNS = ("@", "#")


class RelateTask:
    """A softmax over relations with their direction."""

    name: TaskName = "relate"
    width = 4
    together = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.outputs = len(labels)
        self._places = {label: place for place, label in enumerate(labels)}

    @classmethod
    def learn(cls, examples: Sequence[Related]) -> tuple[list[str], dict[str, Any]]:
        """Relations. Raises DatasetError where there are fewer than two."""
        labels = sorted({one.label for one in examples})
        if len(labels) < 2:
            raise DatasetError(f"{len(examples)} examples with relations {labels}; expected at least two to tell apart")
        return labels, {}

    def options(self) -> dict[str, Any]:
        return {}

    def windows(self, examples: Sequence[Related], tokenizer: Any, max_tokens: int) -> list[Window]:
        around = frame(tokenizer)
        return [self._window(number, one, tokenizer, around, max_tokens) for number, one in enumerate(examples)]

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        import torch

        rows = []
        for row, one in enumerate(batch.windows):
            first, first_end, second, second_end = one.marks
            parts = (
                hidden[row, first],
                hidden[row, first + 1 : max(first_end, first + 2)].mean(dim=0),
                hidden[row, second],
                hidden[row, second + 1 : max(second_end, second + 2)].mean(dim=0),
            )
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.tensor([int(one.targets[0]) for one in batch.windows], device=scores.device)
        return cross_entropy(scores, targets, weight=weights)

    def predict(self, examples: Sequence[Related], windows: Sequence[Window], scores: Sequence[Any]) -> list[Labelled]:
        made = []
        for one in scores:
            shares = softmax(one)
            chosen = (self.labels[int(shares.argmax())],)
            made.append(Labelled(chosen, float(shares.max()), dict(zip(self.labels, map(float, shares), strict=True))))
        return made

    def measure(
        self, examples: Sequence[Related], predictions: Sequence[Labelled], *, resamples: int = RESAMPLES
    ) -> Scores:
        labels = sorted({*self.labels, *(one.label for one in examples)})
        return relations(
            [one.label for one in examples], [one.label for one in predictions], labels, resamples=resamples
        )

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        return balanced([target for one in windows for target in one.targets], self.outputs)

    def _window(self, number: int, one: Related, tokenizer: Any, around: Frame, max_tokens: int) -> Window:
        ids, marks = _signed(one, tokenizer)
        start = _begin(len(ids), min(marks), max(marks) + 1, max_tokens - around.size)
        kept = ids[start : start + max_tokens - around.size]
        shift = len(around.before) - start
        last = len(around.before) + len(kept) - 1
        moved = tuple(min(mark + shift, last) for mark in marks)
        whole = (*around.before, *kept, *around.behind)
        targets = (self._places[one.label],) if one.label in self._places else ()
        return Window(number, whole, len(whole), targets, marks=moved)


def _signed(one: Related, tokenizer: Any) -> tuple[list[int], tuple[int, ...]]:
    """Token ids of the text with signs, and where the signs stand: opening and closing, of the first and the second."""
    marks: dict[int, tuple[int, int]] = {}
    ids: list[int] = []
    done = 0
    for (start, end), which in sorted(((one.first, 0), (one.second, 1))):
        sign = text_ids(tokenizer, SIGNS[which])[0]
        ids += text_ids(tokenizer, one.text[done:start])[0]
        opening = len(ids)
        ids += [*sign, *text_ids(tokenizer, one.text[start:end])[0]]
        marks[which] = (opening, len(ids))
        ids += sign
        done = end
    ids += text_ids(tokenizer, one.text[done:])[0]
    return ids, (*marks[0], *marks[1])


def _begin(count: int, first: int, end: int, room: int) -> int:
    """Where to begin when only `room` of the tokens are kept: both stretches in the middle."""
    if count <= room:
        return 0
    spare = max(0, room - (end - first))
    return max(0, min(first - spare // 2, count - room))
