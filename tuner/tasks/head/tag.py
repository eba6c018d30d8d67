"""Words get tags, and runs of them are told as entities in the characters of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import DatasetError
from tuner.tasks.data.records import Tagged, TaskName
from tuner.tasks.data.schemes import OUTSIDE, chunks, may_follow
from tuner.tasks.data.words import spans_of
from tuner.tasks.head.classify import softmax
from tuner.tasks.head.token_alignment import IGNORED, frame, pieces, word_ids, word_targets
from tuner.tasks.head.windows import Batch, Window, balanced
from tuner.tasks.metrics import RESAMPLES, Scores, entities
from tuner.tasks.predictions import Entities

if TYPE_CHECKING:
    import torch

IMPOSSIBLE = -1e4


class TagTask:
    """A softmax over IOB2 tags at the first token of each word; told is the likeliest sequence that IOB2 allows."""

    name: TaskName = "tag"
    width = 1
    together = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.outputs = len(labels)
        self._places = {label: place for place, label in enumerate(labels)}
        allowed = [[may_follow(tag, before) for tag in labels] for before in labels]
        self._moves = np.where(allowed, 0.0, IMPOSSIBLE)
        """From the tag of the row to that of the column."""
        self._starts = np.where([may_follow(tag, OUTSIDE) for tag in labels], 0.0, IMPOSSIBLE)

    @classmethod
    def learn(cls, examples: Sequence[Tagged]) -> tuple[list[str], dict[str, Any]]:
        """O, and B- and I- of each type. Raises DatasetError where there is no entity."""
        kinds = sorted({kind for one in examples for kind, _, _ in chunks(one.tags)})
        if not kinds:
            raise DatasetError(f"{len(examples)} sentences without any entity; expected tags such as B-PER")
        return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")], {}

    def options(self) -> dict[str, Any]:
        return {}

    def windows(self, examples: Sequence[Tagged], tokenizer: Any, max_tokens: int) -> list[Window]:
        around = frame(tokenizer)
        room = max_tokens - around.size
        return [
            window
            for number, one in enumerate(examples)
            for window in self._windows(number, one, tokenizer, around.before, around.behind, room)
        ]

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        targets = torch.full(scores.shape[:2], IGNORED)
        for row, one in enumerate(batch.windows):
            targets[row, : len(one.targets)] = torch.tensor(one.targets)
        return cross_entropy(
            scores.flatten(0, 1), targets.flatten().to(scores.device), weight=weights, ignore_index=IGNORED
        )

    def predict(self, examples: Sequence[Tagged], windows: Sequence[Window], scores: Sequence[Any]) -> list[Entities]:
        # A word without a token, such as a lone control character, is outside of everything.
        logs = [np.full((len(one.offsets), self.outputs), IMPOSSIBLE) for one in examples]
        for one in logs:
            one[:, self._places[OUTSIDE]] = 0.0
        for window, given in zip(windows, scores, strict=True):
            shares = np.log(np.maximum(softmax(given), 1e-12))
            for at, word in enumerate(window.words):
                if word != IGNORED:
                    logs[window.example][word] = shares[at]
        return [self._entities(one, log) for one, log in zip(examples, logs, strict=True)]

    def measure(
        self, examples: Sequence[Tagged], predictions: Sequence[Entities], *, resamples: int = RESAMPLES
    ) -> Scores:
        return entities([one.tags for one in examples], [one.tags for one in predictions], resamples=resamples)

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        return balanced([target for one in windows for target in one.targets], self.outputs)

    def _windows(
        self, number: int, one: Tagged, tokenizer: Any, before: tuple[int, ...], behind: tuple[int, ...], room: int
    ) -> list[Window]:
        ids, places = word_ids(tokenizer, one.words)
        labels = [self._places.get(tag, IGNORED) for tag in one.tags]
        left, right = [IGNORED] * len(before), [IGNORED] * len(behind)
        made = []
        for piece in pieces(len(ids), room, room // 4):
            words = (*left, *word_targets(places, range(len(one.offsets)), piece), *right)
            targets = tuple(IGNORED if word == IGNORED else labels[word] for word in words) if labels else ()
            inside = (*before, *ids[piece.start : piece.end], *behind)
            made.append(Window(number, inside, len(inside), targets, words=words))
        return made

    def _entities(self, one: Tagged, logs: Any) -> Entities:
        best = self._likeliest(logs)
        tags = tuple(self.labels[place] for place in best)
        sure = float(np.exp(logs[np.arange(len(best)), best]).mean()) if best else 1.0
        return Entities(one.text, tuple(spans_of(one.offsets, tags)), tags, sure)

    def _likeliest(self, logs: Any) -> list[int]:
        """The tags of the likeliest sequence that IOB2 allows (Viterbi), of log-probabilities [words, tags]."""
        if not len(logs):
            return []
        totals, came = logs[0] + self._starts, []
        for row in logs[1:]:
            ways = totals[:, None] + self._moves
            came.append(ways.argmax(axis=0))
            totals = ways.max(axis=0) + row
        best = [int(totals.argmax())]
        for back in reversed(came):
            best.append(int(back[best[-1]]))
        return best[::-1]
