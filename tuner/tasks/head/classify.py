"""Text classification: a text, or a pair of texts, gets one label or any number of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import ClassifyExample, TaskName
from tuner.tasks.example_metrics import measure_classify
from tuner.tasks.head.token_alignment import SpecialTokens, special_tokens, text_ids
from tuner.tasks.head.windows import Window, WindowBatch, balanced_weights
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import LabelPrediction

if TYPE_CHECKING:
    import torch

THRESHOLD = 0.5
"""Probability above which a label of a multi-label task is given."""


class ClassifyTask:
    """A softmax over labels, or a sigmoid for each label, on the pooled hidden state."""

    name: TaskName = "classify"
    width = 1
    group_size = 1

    def __init__(self, labels: tuple[str, ...], *, multi: bool = False, pooling: str = "mean") -> None:
        self.labels = labels
        self.outputs = len(labels)
        self.multi = multi
        """Whether a text may have any number of labels."""
        self.pooling = pooling
        """Of hidden states: their mean ("mean"), or the first ("cls")."""
        self._places = {label: place for place, label in enumerate(labels)}

    @classmethod
    def learn(cls, examples: Sequence[ClassifyExample]) -> tuple[list[str], dict[str, Any]]:
        """Return labels and options of these examples. Raises DatasetError for fewer than two labels."""
        labels = sorted({label for example in examples for label in example.labels})
        multi = any(len(example.labels) != 1 for example in examples)
        if len(labels) < 2 and not (multi and labels):
            raise DatasetError(f"{len(examples)} examples with labels {labels}; expected at least two to tell apart")
        return labels, {"multi": multi}

    def options(self) -> dict[str, Any]:
        return {"multi": self.multi, "pooling": self.pooling}

    def windows(self, examples: Sequence[ClassifyExample], tokenizer: Any, max_tokens: int) -> list[Window]:
        special = {pair: special_tokens(tokenizer, pair=pair) for pair in {one.pair is not None for one in examples}}
        return [
            self._window(number, example, tokenizer, special[example.pair is not None], max_tokens)
            for number, example in enumerate(examples)
        ]

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        """Return the pooled hidden states [B, H]."""
        from torch.nn.functional import normalize

        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
        # Of equal length, as sentence encoders were trained; a linear layer expects a mean square of 1.
        return normalize((hidden * mask).sum(dim=1), dim=-1) * math.sqrt(hidden.shape[-1])

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        targets = torch.tensor([window.targets for window in batch.windows], device=scores.device)
        if self.multi:
            return binary_cross_entropy_with_logits(scores, targets.float(), pos_weight=weights)
        return cross_entropy(scores, targets[:, 0].long(), weight=weights)

    def predict(
        self, examples: Sequence[ClassifyExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[LabelPrediction]:
        return [self._above_threshold(row) if self.multi else likeliest_label(self.labels, row) for row in scores]

    def measure(
        self, examples: Sequence[ClassifyExample], predictions: Sequence[LabelPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_classify(examples, predictions, self.labels, multi=self.multi, resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        import torch

        if not self.multi:
            return balanced_weights([target for window in windows for target in window.targets], self.outputs)
        positives = torch.tensor([window.targets for window in windows]).sum(dim=0)
        return (len(windows) - positives) / positives.clamp_min(1)

    def targets(self, example: ClassifyExample) -> tuple[float, ...]:
        """Return 0 or 1 for each label of a multi-label task, else the label's number."""
        if self.multi:
            return tuple(float(label in example.labels) for label in self.labels)
        return tuple(self._places[label] for label in example.labels)

    def _window(
        self, number: int, example: ClassifyExample, tokenizer: Any, special: SpecialTokens, max_tokens: int
    ) -> Window:
        room = max_tokens - special.size
        first = text_ids(tokenizer, example.text)[0]
        second = [] if example.pair is None else text_ids(tokenizer, example.pair)[0]
        # Of a pair that is too long the longer text is cut first.
        spare = max(room - len(second), room // 2) if second else room
        first = first[:spare]
        second = second[: room - len(first)]
        ids = (*special.before, *first, *special.between, *second, *special.after)
        second_start = len(special.before) + len(first) + len(special.between)
        is_known = all(label in self._places for label in example.labels)
        return Window(number, ids, second_start if second else len(ids), self.targets(example) if is_known else ())

    def _above_threshold(self, scores: Any) -> LabelPrediction:
        shares = 1 / (1 + np.exp(-scores.astype(np.float64)))
        labels = tuple(label for label, share in zip(self.labels, shares, strict=True) if share > THRESHOLD)
        return LabelPrediction(labels, float(shares.max()), dict(zip(self.labels, map(float, shares), strict=True)))


def likeliest_label(labels: Sequence[str], scores: Any) -> LabelPrediction:
    """Return the label with the highest probability, by the softmax of scores [labels]."""
    shares = softmax(scores)
    best = (labels[int(shares.argmax())],)
    return LabelPrediction(best, float(shares.max()), dict(zip(labels, map(float, shares), strict=True)))


def softmax(scores: Any) -> Any:
    """Return the softmax over the last axis, in float64."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
