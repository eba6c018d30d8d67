"""Relation classification: two marked entities of a text get the relation of the first to the second.

Signs are put around both entities, `@` around the first and `#` around the second; the head reads the hidden states of
both opening signs and the means over both entities. Every encoder knows these signs, so its vocabulary does not grow.
Source: the entity markers of Zhou & Chen, "An Improved Baseline for Sentence-level Relation Extraction" (2022), and the
entity start of Baldini Soares et al., "Matching the Blanks" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError
from tuner.tasks.data.records import RelateExample, TaskName
from tuner.tasks.example_metrics import measure_relate
from tuner.tasks.head.classify import likeliest_label
from tuner.tasks.head.token_alignment import SpecialTokens, special_tokens, text_ids
from tuner.tasks.head.windows import Window, WindowBatch, balanced_weights
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import LabelPrediction

if TYPE_CHECKING:
    import torch

SIGNS = ("@", "#")


class RelateTask:
    """A softmax over relations with their direction."""

    name: TaskName = "relate"
    width = 4
    group_size = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.outputs = len(labels)
        self._places = {label: place for place, label in enumerate(labels)}

    @classmethod
    def learn(cls, examples: Sequence[RelateExample]) -> tuple[list[str], dict[str, Any]]:
        """Return the relations of these examples. Raises DatasetError for fewer than two."""
        labels = sorted({example.label for example in examples})
        if len(labels) < 2:
            raise DatasetError(f"{len(examples)} examples with relations {labels}; expected at least two to tell apart")
        return labels, {}

    def options(self) -> dict[str, Any]:
        return {}

    def windows(self, examples: Sequence[RelateExample], tokenizer: Any, max_tokens: int) -> list[Window]:
        special = special_tokens(tokenizer)
        return [
            self._window(number, example, tokenizer, special, max_tokens) for number, example in enumerate(examples)
        ]

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        """Return the states of both opening signs and the means of both entities, [B, 4 * H]."""
        import torch

        rows = []
        for row, window in enumerate(batch.windows):
            first, first_end, second, second_end = window.marks
            parts = (
                hidden[row, first],
                hidden[row, first + 1 : max(first_end, first + 2)].mean(dim=0),
                hidden[row, second],
                hidden[row, second + 1 : max(second_end, second + 2)].mean(dim=0),
            )
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.tensor([int(window.targets[0]) for window in batch.windows], device=scores.device)
        return cross_entropy(scores, targets, weight=weights)

    def predict(
        self, examples: Sequence[RelateExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[LabelPrediction]:
        return [likeliest_label(self.labels, row) for row in scores]

    def measure(
        self, examples: Sequence[RelateExample], predictions: Sequence[LabelPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_relate(examples, predictions, self.labels, resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        return balanced_weights([target for window in windows for target in window.targets], self.outputs)

    def _window(
        self, number: int, example: RelateExample, tokenizer: Any, special: SpecialTokens, max_tokens: int
    ) -> Window:
        ids, marks = _add_signs(example, tokenizer)
        room = max_tokens - special.size
        start = _first_token(len(ids), min(marks), max(marks) + 1, room)
        inside = ids[start : start + room]
        shift = len(special.before) - start
        last = len(special.before) + len(inside) - 1
        moved = tuple(min(mark + shift, last) for mark in marks)
        whole = special.wrap(inside)
        targets = (self._places[example.label],) if example.label in self._places else ()
        return Window(number, whole, len(whole), targets, marks=moved)


def _add_signs(example: RelateExample, tokenizer: Any) -> tuple[list[int], tuple[int, ...]]:
    """Token ids of the text with signs, and the places of the opening and closing signs, of the first entity first."""
    marks: dict[int, tuple[int, int]] = {}
    ids: list[int] = []
    done = 0
    for (start, end), which in sorted(((example.first, 0), (example.second, 1))):
        sign = text_ids(tokenizer, SIGNS[which])[0]
        ids += text_ids(tokenizer, example.text[done:start])[0]
        opening = len(ids)
        ids += [*sign, *text_ids(tokenizer, example.text[start:end])[0]]
        marks[which] = (opening, len(ids))
        ids += sign
        done = end
    ids += text_ids(tokenizer, example.text[done:])[0]
    return ids, (*marks[0], *marks[1])


def _first_token(count: int, first: int, end: int, room: int) -> int:
    """Where to cut `count` tokens to `room`, with the entities from `first` to `end` in the middle."""
    if count <= room:
        return 0
    spare = max(0, room - (end - first))
    return max(0, min(first - spare // 2, count - room))
