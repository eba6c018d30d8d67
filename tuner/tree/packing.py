"""Packs examples as prefix trees, so that shared tokens are computed once.

Sorted by their ids, the examples of an optimizer step form a prefix tree. A tree that fits into one pack is one
sequence: positions count along each path, and a token attends to its ancestors and itself. Otherwise the prefix that
all examples share becomes a trunk, computed once, and the rest becomes branches that attend to the trunk's keys and
values. Loss and gradient equal those of the examples row by row (see `tuner.tree.loss`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from agent.errors import DatasetError

Weighting = Literal["token", "example", "trajectory"]

MIN_TRUNK = 64
"""A shorter shared prefix is computed again in every pack, because a pass of its own costs more."""


@dataclass(frozen=True)
class Example:
    """A run, or a part of it, to train on: token ids and which of them are targets, both of length T."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    group: str = ""
    """Examples of one group share most of their ids and are trained on in the same step: the task's id."""
    trajectory: str = ""
    """The run; its targets share one weight under the weighting "trajectory"."""

    @property
    def target_count(self) -> int:
        """Number of targets; the first token is never one, as no token predicts it."""
        return sum(self.targets[1:])


@dataclass(frozen=True)
class Pack:
    """A prefix tree, or a part of one after a trunk, laid out as one sequence of T tokens."""

    ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T] depth in the tree, from 0 at the first token of a path."""
    parents: np.ndarray
    """int64 [T] index of the token before it on its path; -1 where that is the trunk's last, or none."""
    sources: np.ndarray
    """int64 [N] index of the token that predicts each target."""
    labels: np.ndarray
    """int64 [N] the target ids."""
    weights: np.ndarray
    """float32 [N] weight of each target, summed over the examples that share it."""
    runs: tuple[tuple[str, ...], ...] = ()
    """[N] the runs of each target."""
    prefix: tuple[int, ...] = ()
    """Ids of the trunks before it, to which every token attends."""
    branches: tuple[Pack, ...] = ()
    """Packs that continue after the last token of this one, which then is a trunk: a single path."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def start(self) -> int:
        """Number of tokens of the trunks before it."""
        return len(self.prefix)

    def all(self) -> Iterator[Pack]:
        """Yield this pack and all its branches."""
        yield self
        for branch in self.branches:
            yield from branch.all()


@dataclass(frozen=True)
class WeightedExample:
    """An example and its weight, cut after the last token that predicts a target."""

    path: tuple[int, ...]
    """[P]"""
    ids: tuple[int, ...]
    """[P + 1]: the last target too."""
    depths: tuple[int, ...]
    """Places of the targets, ascending."""
    weight: float
    """Of each target."""
    group: str
    trajectory: str

    @classmethod
    def of(cls, example: Example, weight: float) -> WeightedExample:
        depths = tuple(place for place, is_target in enumerate(example.targets) if is_target and place)
        return cls(
            example.ids[: depths[-1]], example.ids[: depths[-1] + 1], depths, weight, example.group, example.trajectory
        )


@dataclass(frozen=True)
class Batch:
    """The examples of one optimizer step, packed on demand."""

    rows: tuple[WeightedExample, ...]
    """Sorted by their paths."""

    def packs(self, max_tokens: int, *, min_trunk: int = MIN_TRUNK) -> list[Pack]:
        """Return the prefix tree of the examples as packs.

        Args:
            max_tokens: The largest number of tokens of a path through trunks and pack.
            min_trunk: The smallest number of tokens of a trunk.

        Raises:
            DatasetError: An example is longer than `max_tokens`.
        """
        self.check_fits(max_tokens)
        return _split(self.rows, 0, max_tokens, min_trunk)

    def check_fits(self, max_tokens: int) -> None:
        """Raise DatasetError for an example that is longer than a pack."""
        longest = max(self.rows, key=lambda row: len(row.ids))
        if len(longest.ids) > max_tokens:
            raise DatasetError(
                f"the example of {longest.group!r} has {len(longest.ids)} tokens and a pack holds {max_tokens}; "
                "raise tuning.max_tokens_per_pack or shorten the observations"
            )

    def one_by_one(self) -> list[Pack]:
        """Return each example as a pack of its own, for models that cannot read trees."""
        return [_lay_out([row], 0) for row in self.rows]

    @property
    def groups(self) -> list[str]:
        return sorted({row.group for row in self.rows})

    @property
    def row_tokens(self) -> int:
        """Number of tokens of the examples without packing."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def targets(self) -> int:
        """Number of target tokens."""
        return sum(len(row.depths) for row in self.rows)

    @property
    def weight(self) -> float:
        """Sum of the weights of all targets; the loss of the step is the weighted mean."""
        return sum(row.weight * len(row.depths) for row in self.rows)


def tokens_in(packs: Iterable[Pack]) -> int:
    """Return the number of tokens of these packs, branches included."""
    return sum(len(node) for pack in packs for node in pack.all())


def weight_in(packs: Iterable[Pack]) -> float:
    """Return the sum of the weights of all targets of these packs, branches included."""
    return float(sum(node.weights.sum() for pack in packs for node in pack.all()))


def make_batches(
    examples: Sequence[Example], *, batch_targets: int, weighting: Weighting = "token", seed: int | None = None
) -> list[Batch]:
    """Return the batches of an epoch, each of whole groups.

    Args:
        examples: To train on.
        batch_targets: Fewest target tokens of a batch.
        weighting: What has the same weight: every token, example or trajectory.
        seed: Of the order of the groups; None keeps the given order.

    Raises:
        DatasetError: An example has no target.
    """
    for example in examples:
        if not example.target_count:
            raise DatasetError(f"the example of {example.group!r} has no target token; nothing could be learnt from it")
    groups: dict[str, list[WeightedExample]] = {}
    for example, weight in zip(examples, _weights(examples, weighting), strict=True):
        groups.setdefault(example.group, []).append(WeightedExample.of(example, weight))
    order = list(groups)
    if seed is not None:
        random.Random(seed).shuffle(order)
    batches: list[Batch] = []
    pending: list[WeightedExample] = []
    for name in order:
        pending += groups[name]
        if sum(len(row.depths) for row in pending) >= batch_targets:
            batches.append(_batch(pending))
            pending = []
    return [*batches, *([_batch(pending)] if pending else [])]


def build_pack(examples: Iterable[Example]) -> Pack:
    """Return one pack of these examples, whatever its length; each target of each example has weight 1."""
    rows = sorted((WeightedExample.of(example, 1.0) for example in examples), key=lambda row: row.path)
    return _lay_out(rows, 0)


def visibility(pack: Pack) -> np.ndarray:
    """Return the mask [T, T], bool: each token attends to its ancestors in the pack and itself."""
    size = len(pack)
    seen = np.zeros((size, size), dtype=bool)
    for index, parent in enumerate(pack.parents):
        if parent >= 0:
            seen[index] = seen[parent]
        seen[index, index] = True
    return seen


def _weights(examples: Sequence[Example], weighting: Weighting) -> list[float]:
    """Return the weight of each example's targets."""
    if weighting == "token":
        return [1.0] * len(examples)
    if weighting == "example":
        return [1 / example.target_count for example in examples]
    # An example without a run counts as a run.
    names = [example.trajectory or f"#{place}" for place, example in enumerate(examples)]
    counts: Counter[str] = Counter()
    for name, example in zip(names, examples, strict=True):
        counts[name] += example.target_count
    return [1 / counts[name] for name in names]


def _batch(rows: Sequence[WeightedExample]) -> Batch:
    return Batch(tuple(sorted(rows, key=lambda row: row.path)))


def _split(rows: Sequence[WeightedExample], start: int, max_tokens: int, min_trunk: int) -> list[Pack]:
    """Return packs for sorted rows whose first `start` ids lie in trunks, no path being longer than `max_tokens`."""
    if start + _size(rows, start) <= max_tokens:
        return [_lay_out(rows, start)]
    shared = _common(rows[0].path, rows[-1].path)
    longer = [row for row in rows if len(row.path) > shared]
    if shared - start >= min_trunk:
        trunk = _lay_out([replace(row, path=row.path[:shared]) for row in rows], start)
        return [replace(trunk, branches=tuple(_split(longer, shared, max_tokens, min_trunk)))]
    packs: list[Pack] = []
    pending = [row for row in rows if len(row.path) == shared]
    for _, children in groupby(longer, key=lambda row: row.path[shared]):
        child = list(children)
        if start + _size(child, start) > max_tokens:
            packs += _split(child, start, max_tokens, min_trunk)
        elif start + _size([*pending, *child], start) > max_tokens:
            packs.append(_lay_out(pending, start))
            pending = child
        else:
            pending += child
    return [*packs, *([_lay_out(pending, start)] if pending else [])]


def _lay_out(rows: Sequence[WeightedExample], start: int) -> Pack:
    """Return the rows' tokens from depth `start` on as one pack, with their targets."""
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    targets: dict[tuple[int, int], float] = {}
    """Weight by source and label."""
    runs: dict[tuple[int, int], tuple[str, ...]] = {}
    path: list[int] = []
    """Indices in the pack of the previous row's tokens."""
    previous: tuple[int, ...] = rows[0].path[:start]
    for row in rows:
        shared = max(start, _common(previous, row.path))
        del path[shared - start :]
        for depth in range(shared, len(row.path)):
            ids.append(row.path[depth])
            positions.append(depth)
            parents.append(path[-1] if path else -1)
            path.append(len(ids) - 1)
        for depth in row.depths:
            if start < depth <= len(row.path):
                place = path[depth - 1 - start], row.ids[depth]
                targets[place] = targets.get(place, 0.0) + row.weight
                runs[place] = (*runs.get(place, ()), row.trajectory)
        previous = row.path
    places = sorted(targets)
    return Pack(
        np.array(ids, dtype=np.int64),
        np.array(positions, dtype=np.int64),
        np.array(parents, dtype=np.int64),
        np.array([source for source, _ in places], dtype=np.int64),
        np.array([label for _, label in places], dtype=np.int64),
        np.array([targets[place] for place in places], dtype=np.float32),
        tuple(runs[place] for place in places),
        rows[0].path[:start],
    )


def _size(rows: Sequence[WeightedExample], start: int) -> int:
    """Return the number of unique tokens of sorted rows after depth `start`."""
    total, previous = 0, rows[0].path[:start]
    for row in rows:
        total += len(row.path) - max(start, _common(previous, row.path))
        previous = row.path
    return total


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    size = min(len(left), len(right))
    for place in range(size):
        if left[place] != right[place]:
            return place
    return size
