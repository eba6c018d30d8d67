"""Selects the few-shot examples that a language model is shown before a text: the most similar, or one of each label.

They always come from the training examples; nothing is trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.encoders.encoder import Encoder
from agent.errors import DatasetError
from tuner.tasks.data.records import display_text, example_key, label_key


class FewShotSelector(Protocol):
    """Selects few-shot examples for texts."""

    def select(self, examples: Sequence[Any]) -> list[list[Any]]:
        """Return for each example its few-shot examples, in the order of the prompt."""
        ...


@dataclass(frozen=True)
class NoExamples:
    """Zero-shot: selects nothing."""

    def select(self, examples: Sequence[Any]) -> list[list[Any]]:
        return [[] for _ in examples]


@dataclass(frozen=True)
class SimilarExamples:
    """For each text the nearest examples by a sentence encoder, the nearest last; never the text itself.

    Source: Liu et al., "What Makes Good In-Context Examples for GPT-3?" (2022).
    """

    pool: Sequence[Any]
    count: int
    encoder: Encoder
    _vectors: npt.NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.pool, self.count)
        vectors = self.encoder.encode_queries([display_text(example) for example in self.pool])
        object.__setattr__(self, "_vectors", vectors)

    def select(self, examples: Sequence[Any]) -> list[list[Any]]:
        if not examples:
            return []
        cosines = self.encoder.encode_queries([display_text(example) for example in examples]) @ self._vectors.T
        return [self._nearest(example, row) for example, row in zip(examples, cosines, strict=True)]

    def _nearest(self, example: Any, cosines: npt.NDArray[np.float32]) -> list[Any]:
        own = example_key(example)
        candidates = (self.pool[int(place)] for place in np.argsort(-cosines, kind="stable"))
        others = (candidate for candidate in candidates if example_key(candidate) != own)
        return list(islice(others, self.count))[::-1]


@dataclass(frozen=True)
class CoverageExamples:
    """The same examples for all texts: one of each label in turn, drawn by seed."""

    pool: Sequence[Any]
    count: int
    seed: int = 0
    _examples: list[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.pool, self.count)
        object.__setattr__(self, "_examples", cover_labels(self.pool, self.count, self.seed))

    def select(self, examples: Sequence[Any]) -> list[list[Any]]:
        return [
            [shown for shown in self._examples if example_key(shown) != example_key(example)] for example in examples
        ]


def cover_labels(pool: Sequence[Any], count: int, seed: int = 0) -> list[Any]:
    """Draw `count` examples, one of each label in turn, labels with most examples first, and shuffle them."""
    chance = random.Random(f"{seed} shots")
    by_label: dict[str, list[Any]] = {}
    for example in pool:
        by_label.setdefault(label_key(example), []).append(example)
    for group in by_label.values():
        chance.shuffle(group)
    drawn: list[Any] = []
    groups = sorted(by_label.values(), key=len, reverse=True)
    while len(drawn) < min(count, len(pool)):
        drawn += [group.pop() for group in groups[: count - len(drawn)] if group]
        groups = [group for group in groups if group]
    chance.shuffle(drawn)
    return drawn


def _check(pool: Sequence[Any], count: int) -> None:
    if not pool:
        raise DatasetError("there are no examples to show; name a file of them with --data, or take --shots 0")
    if count < 1:
        raise DatasetError(f"{count} few-shot examples are to be shown; expected 1 or more, or --shots 0")
