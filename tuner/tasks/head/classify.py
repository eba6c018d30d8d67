"""Texts, or pairs of texts, get one label each, or any number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import Classified, TaskName
from tuner.tasks.head.token_alignment import Frame, frame, text_ids
from tuner.tasks.head.windows import Batch, Window, balanced
from tuner.tasks.metrics import RESAMPLES, Scores, multi_label, single_label
from tuner.tasks.predictions import Labelled

if TYPE_CHECKING:
    import torch

THRESHOLD = 0.5
"""Probability above which a label of a multi-label task is given."""


class ClassifyTask:
    """A softmax over labels, or a sigmoid for each, on the pooled hidden state."""

    name: TaskName = "classify"
    width = 1
    together = 1

    def __init__(self, labels: tuple[str, ...], *, multi: bool = False, pooling: str = "mean") -> None:
        self.labels = labels
        self.outputs = len(labels)
        self.multi = multi
        self.pooling = pooling
        """Of hidden states: their mean, or the first ("cls")."""
        self._places = {label: place for place, label in enumerate(labels)}

    @classmethod
    def learn(cls, examples: Sequence[Classified]) -> tuple[list[str], dict[str, Any]]:
        """Labels, and whether a text can have several. Raises DatasetError where there are fewer than two."""
        labels = sorted({label for one in examples for label in one.labels})
        multi = any(len(one.labels) != 1 for one in examples)
        if len(labels) < 2 and not (multi and labels):
            raise DatasetError(f"{len(examples)} examples with labels {labels}; expected at least two to tell apart")
        return labels, {"multi": multi}

    def options(self) -> dict[str, Any]:
        return {"multi": self.multi, "pooling": self.pooling}

    def windows(self, examples: Sequence[Classified], tokenizer: Any, max_tokens: int) -> list[Window]:
        frames = {pair: frame(tokenizer, pair=pair) for pair in {one.pair is not None for one in examples}}
        return [
            self._window(number, one, tokenizer, frames[one.pair is not None], max_tokens)
            for number, one in enumerate(examples)
        ]

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        from torch.nn.functional import normalize

        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
        # Of one length, as sentence encoders were trained; a mean square of 1 is what a linear layer expects.
        return normalize((hidden * mask).sum(dim=1), dim=-1) * math.sqrt(hidden.shape[-1])

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        targets = torch.tensor([one.targets for one in batch.windows], device=scores.device)
        if self.multi:
            return binary_cross_entropy_with_logits(scores, targets.float(), pos_weight=weights)
        return cross_entropy(scores, targets[:, 0].long(), weight=weights)

    def predict(
        self, examples: Sequence[Classified], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[Labelled]:
        return [self._labelled(one) for one in scores]

    def measure(
        self, examples: Sequence[Classified], predictions: Sequence[Labelled], *, resamples: int = RESAMPLES
    ) -> Scores:
        told = (label for some in (examples, predictions) for one in some for label in one.labels)
        labels = sorted({*self.labels, *told})
        if self.multi:
            return multi_label(
                [one.labels for one in examples], [one.labels for one in predictions], labels, resamples=resamples
            )
        return single_label(
            [one.labels[0] for one in examples], [one.label for one in predictions], labels, resamples=resamples
        )

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        import torch

        if not self.multi:
            return balanced([target for one in windows for target in one.targets], self.outputs)
        there = torch.tensor([one.targets for one in windows]).sum(dim=0)
        return (len(windows) - there) / there.clamp_min(1)

    def _window(self, number: int, one: Classified, tokenizer: Any, around: Frame, max_tokens: int) -> Window:
        room = max_tokens - around.size
        first = text_ids(tokenizer, one.text)[0]
        second = [] if one.pair is None else text_ids(tokenizer, one.pair)[0]
        # Of a pair that is too long the longer text is cut first.
        spare = max(room - len(second), room // 2) if second else room
        first = first[:spare]
        second = second[: room - len(first)]
        ids = (*around.before, *first, *around.between, *second, *around.behind)
        begins = len(around.before) + len(first) + len(around.between)
        known = all(label in self._places for label in one.labels)
        return Window(number, ids, begins if second else len(ids), self.targets(one) if known else ())

    def targets(self, one: Classified) -> tuple[float, ...]:
        """0 or 1 for each label of a multi-label task, else the label's number."""
        if self.multi:
            return tuple(float(label in one.labels) for label in self.labels)
        return tuple(self._places[label] for label in one.labels)

    def _labelled(self, scores: Any) -> Labelled:
        if self.multi:
            shares = 1 / (1 + np.exp(-scores.astype(np.float64)))
            chosen = tuple(name for name, share in zip(self.labels, shares, strict=True) if share > THRESHOLD)
        else:
            shares = softmax(scores)
            chosen = (self.labels[int(shares.argmax())],)
        return Labelled(chosen, float(shares.max()), dict(zip(self.labels, map(float, shares), strict=True)))


def softmax(scores: Any) -> Any:
    """Of the last axis, in float64."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
