"""Sequence tagging: words get IOB2 tags, and runs of tags are entities in the characters of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import TagExample, TaskName
from tuner.tasks.data.schemes import OUTSIDE, find_chunks, may_follow
from tuner.tasks.data.words import spans_from_tags
from tuner.tasks.example_metrics import measure_tag
from tuner.tasks.head.classify import softmax
from tuner.tasks.head.token_alignment import (
    IGNORED,
    SpecialTokens,
    overlapping_chunks,
    special_tokens,
    word_ids,
    word_targets,
)
from tuner.tasks.head.windows import Window, WindowBatch, balanced_weights
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import EntityPrediction

if TYPE_CHECKING:
    import torch

IMPOSSIBLE = -1e4
"""Log-probability of a transition that IOB2 does not allow."""


class TagTask:
    """A softmax over IOB2 tags at the first token of each word; predicts the likeliest sequence that IOB2 allows."""

    name: TaskName = "tag"
    width = 1
    group_size = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.outputs = len(labels)
        self._places = {label: place for place, label in enumerate(labels)}
        allowed = [[may_follow(tag, before) for tag in labels] for before in labels]
        self._transitions = np.where(allowed, 0.0, IMPOSSIBLE)
        """From the tag of the row to that of the column."""
        self._starts = np.where([may_follow(tag, OUTSIDE) for tag in labels], 0.0, IMPOSSIBLE)

    @classmethod
    def learn(cls, examples: Sequence[TagExample]) -> tuple[list[str], dict[str, Any]]:
        """Return O, and B- and I- of each entity type. Raises DatasetError where there is no entity."""
        kinds = sorted({kind for example in examples for kind, _, _ in find_chunks(example.tags)})
        if not kinds:
            raise DatasetError(f"{len(examples)} sentences without any entity; expected tags such as B-PER")
        return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")], {}

    def options(self) -> dict[str, Any]:
        return {}

    def windows(self, examples: Sequence[TagExample], tokenizer: Any, max_tokens: int) -> list[Window]:
        special = special_tokens(tokenizer)
        room = max_tokens - special.size
        return [
            window
            for number, example in enumerate(examples)
            for window in self._windows(number, example, tokenizer, special, room)
        ]

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        return hidden

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.full(scores.shape[:2], IGNORED)
        for row, window in enumerate(batch.windows):
            targets[row, : len(window.targets)] = torch.tensor(window.targets)
        return cross_entropy(
            scores.flatten(0, 1), targets.flatten().to(scores.device), weight=weights, ignore_index=IGNORED
        )

    def predict(
        self, examples: Sequence[TagExample], windows: Sequence[Window], scores: Sequence[Any]
    ) -> list[EntityPrediction]:
        # A word without a token, such as a lone control character, is outside of every entity.
        logs = [np.full((len(example.offsets), self.outputs), IMPOSSIBLE) for example in examples]
        for log in logs:
            log[:, self._places[OUTSIDE]] = 0.0
        for window, logits in zip(windows, scores, strict=True):
            shares = np.log(np.maximum(softmax(logits), 1e-12))
            for at, word in enumerate(window.words):
                if word != IGNORED:
                    logs[window.example][word] = shares[at]
        return [self._entities(example, log) for example, log in zip(examples, logs, strict=True)]

    def measure(
        self, examples: Sequence[TagExample], predictions: Sequence[EntityPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return measure_tag(examples, predictions, resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        return balanced_weights([target for window in windows for target in window.targets], self.outputs)

    def _windows(
        self, number: int, example: TagExample, tokenizer: Any, special: SpecialTokens, room: int
    ) -> list[Window]:
        ids, places = word_ids(tokenizer, example.words)
        labels = [self._places.get(tag, IGNORED) for tag in example.tags]
        left, right = [IGNORED] * len(special.before), [IGNORED] * len(special.after)
        windows = []
        for chunk in overlapping_chunks(len(ids), room, room // 4):
            words = (*left, *word_targets(places, range(len(example.offsets)), chunk), *right)
            targets = tuple(IGNORED if word == IGNORED else labels[word] for word in words) if labels else ()
            whole = special.wrap(ids[chunk.start : chunk.end])
            windows.append(Window(number, whole, len(whole), targets, words=words))
        return windows

    def _entities(self, example: TagExample, logs: Any) -> EntityPrediction:
        best = self._likeliest(logs)
        tags = tuple(self.labels[place] for place in best)
        score = float(np.exp(logs[np.arange(len(best)), best]).mean()) if best else 1.0
        return EntityPrediction(example.text, tuple(spans_from_tags(example.offsets, tags)), tags, score)

    def _likeliest(self, logs: Any) -> list[int]:
        """The tags of the likeliest sequence that IOB2 allows (Viterbi), from log-probabilities [words, tags]."""
        if not len(logs):
            return []
        totals, back_pointers = logs[0] + self._starts, []
        for row in logs[1:]:
            paths = totals[:, None] + self._transitions
            back_pointers.append(paths.argmax(axis=0))
            totals = paths.max(axis=0) + row
        best = [int(totals.argmax())]
        for pointers in reversed(back_pointers):
            best.append(int(pointers[best[-1]]))
        return best[::-1]
