"""Which examples a language model is shown before the text: those most like it, or a few that cover the labels.

Only ever out of the training part. Nothing is trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.encoders.encoder import Encoder
from agent.errors import DatasetError
from tuner.tasks.data.records import key, label_of, shown


class Shots(Protocol):
    """Gives the examples that are shown before a text."""

    def for_each(self, examples: Sequence[Any]) -> list[list[Any]]:
        """For each example its shots, in the order they are shown."""
        ...


@dataclass(frozen=True)
class NoShots:
    """Zero-shot: nothing is shown."""

    def for_each(self, examples: Sequence[Any]) -> list[list[Any]]:
        return [[] for _ in examples]


@dataclass(frozen=True)
class Similar:
    """For each text the nearest by the sentence encoder, the nearest last; never the text itself."""

    pool: Sequence[Any]
    count: int
    encoder: Encoder
    _vectors: npt.NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.pool, self.count)
        object.__setattr__(self, "_vectors", self.encoder.encode_queries([shown(one) for one in self.pool]))

    def for_each(self, examples: Sequence[Any]) -> list[list[Any]]:
        if not examples:
            return []
        likeness = self.encoder.encode_queries([shown(one) for one in examples]) @ self._vectors.T
        return [self._nearest(one, row) for one, row in zip(examples, likeness, strict=True)]

    def _nearest(self, example: Any, likeness: npt.NDArray[np.float32]) -> list[Any]:
        own = key(example)
        order = (self.pool[int(at)] for at in np.argsort(-likeness, kind="stable"))
        return [one for one, _ in zip((one for one in order if key(one) != own), range(self.count), strict=False)][::-1]


@dataclass(frozen=True)
class Coverage:
    """The same for all texts: one of each label in turn, drawn by seed, until there are enough."""

    pool: Sequence[Any]
    count: int
    seed: int = 0
    _chosen: list[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self.pool, self.count)
        object.__setattr__(self, "_chosen", covering(self.pool, self.count, self.seed))

    def for_each(self, examples: Sequence[Any]) -> list[list[Any]]:
        return [[shot for shot in self._chosen if key(shot) != key(one)] for one in examples]


def covering(pool: Sequence[Any], count: int, seed: int = 0) -> list[Any]:
    """So many examples of a pool, label by label, mixed. Labels with most examples come first."""
    chance = random.Random(f"{seed} shots")
    by_label: dict[str, list[Any]] = {}
    for one in pool:
        by_label.setdefault(label_of(one), []).append(one)
    for many in by_label.values():
        chance.shuffle(many)
    chosen: list[Any] = []
    rounds = sorted(by_label.values(), key=len, reverse=True)
    while len(chosen) < min(count, len(pool)):
        chosen += [many.pop() for many in rounds[: count - len(chosen)] if many]
        rounds = [many for many in rounds if many]
    chance.shuffle(chosen)
    return chosen


def _check(pool: Sequence[Any], count: int) -> None:
    if not pool:
        raise DatasetError("there are no examples to show; name a file of them with --data, or take --shots 0")
    if count < 1:
        raise DatasetError(f"shots is {count}; expected 1 or more, or none at all")
