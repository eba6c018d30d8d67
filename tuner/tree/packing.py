"""Packs trajectories as trees: what examples share is computed once.

Sorted by their ids, the examples of an optimizer step form a prefix tree. Where it fits into one pack, the pack lays
it out as one sequence: positions go on along each path, and a token sees its ancestors and itself. Where it does not,
what all its examples begin with becomes a trunk, read once, and the rest becomes branches that look back at the
trunk's keys and values. Loss and gradient are those of the examples taken row by row (see `tuner.tree.loss`).
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
"""A shared beginning of fewer tokens is computed again in every pack: a pass of its own costs more."""


@dataclass(frozen=True)
class Example:
    """One run, or a part of it, to learn from: ids, and which of them are to be said. Both of length T."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    group: str = ""
    """Examples of one group share most of their ids and are trained on in the same step: the task's id."""
    trajectory: str = ""
    """The run; what counts as one under the weighting "trajectory"."""

    @property
    def target_count(self) -> int:
        """Targets that a token before them can say: the first of all has none."""
        return sum(self.targets[1:])


@dataclass(frozen=True)
class Pack:
    """A prefix tree, or a part of one behind a trunk, laid out as one sequence of T tokens."""

    ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T] depth in the tree, from 0 at the very first token of its paths."""
    parents: np.ndarray
    """int64 [T] index of the token before it on its path; -1 where that is the trunk's last, or none."""
    sources: np.ndarray
    """int64 [N] index of the token whose logits say each target."""
    labels: np.ndarray
    """int64 [N] the target ids."""
    weights: np.ndarray
    """float32 [N] how much each counts; what several examples say at the same place counts for each."""
    runs: tuple[tuple[str, ...], ...] = ()
    """[N] the runs that say each target."""
    behind: tuple[int, ...] = ()
    """Ids of the trunks before it, all of which every token here sees."""
    branches: tuple[Pack, ...] = ()
    """Packs that go on behind the last token of this one, which then is a trunk: a single path."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def start(self) -> int:
        """Tokens of the trunks before it."""
        return len(self.behind)

    def all(self) -> Iterator[Pack]:
        """This pack and everything that branches off it."""
        yield self
        for branch in self.branches:
            yield from branch.all()


@dataclass(frozen=True)
class Row:
    """An example and its weight, cut behind the last token that is needed to say its last target."""

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
    def of(cls, example: Example, weight: float) -> Row:
        depths = tuple(place for place, said in enumerate(example.targets) if said and place)
        return cls(
            example.ids[: depths[-1]], example.ids[: depths[-1] + 1], depths, weight, example.group, example.trajectory
        )


@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from: examples, packed when they are needed."""

    rows: tuple[Row, ...]
    """Sorted by their paths."""

    def packs(self, max_tokens: int, *, min_trunk: int = MIN_TRUNK) -> list[Pack]:
        """The prefix tree of the examples, with no path through packs and trunks above `max_tokens`.

        Raises DatasetError for an example that is longer than that.
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
        """Each example as a pack of its own: for models that cannot read trees."""
        return [_lay_out([row], 0) for row in self.rows]

    @property
    def groups(self) -> list[str]:
        return sorted({row.group for row in self.rows})

    @property
    def row_tokens(self) -> int:
        """Tokens that the examples have as rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def targets(self) -> int:
        """Target tokens of the examples."""
        return sum(len(row.depths) for row in self.rows)

    @property
    def weight(self) -> float:
        """What the weights of all targets come to; the loss of the step is the weighted mean."""
        return sum(row.weight * len(row.depths) for row in self.rows)


def tokens_in(packs: Iterable[Pack]) -> int:
    """Tokens that are computed for these packs, branches included."""
    return sum(len(one) for pack in packs for one in pack.all())


def weight_in(packs: Iterable[Pack]) -> float:
    """What the weights of all targets of these packs come to, branches included."""
    return float(sum(one.weights.sum() for pack in packs for one in pack.all()))


def make_batches(
    examples: Sequence[Example], *, batch_targets: int, weighting: Weighting = "token", seed: int | None = None
) -> list[Batch]:
    """The optimizer steps of an epoch: each of whole groups with `batch_targets` target tokens at least.

    Groups come in an order drawn from `seed` (None: as given). Raises DatasetError for an example without targets.
    """
    for example in examples:
        if not example.target_count:
            raise DatasetError(f"the example of {example.group!r} has no target token; nothing could be learnt from it")
    groups: dict[str, list[Row]] = {}
    for example, weight in zip(examples, _weights(examples, weighting), strict=True):
        groups.setdefault(example.group, []).append(Row.of(example, weight))
    order = list(groups)
    if seed is not None:
        random.Random(seed).shuffle(order)
    batches: list[Batch] = []
    held: list[Row] = []
    for name in order:
        held += groups[name]
        if sum(len(row.depths) for row in held) >= batch_targets:
            batches.append(_batch(held))
            held = []
    return [*batches, *([_batch(held)] if held else [])]


def build_pack(examples: Iterable[Example]) -> Pack:
    """One pack of these examples, whatever its length; every target token of every example counts 1."""
    rows = sorted((Row.of(example, 1.0) for example in examples), key=lambda row: row.path)
    return _lay_out(rows, 0)


def visibility(pack: Pack) -> np.ndarray:
    """Bool [T, T]: row sees column. A token sees its ancestors in the pack and itself."""
    size = len(pack)
    seen = np.zeros((size, size), dtype=bool)
    for index, parent in enumerate(pack.parents):
        if parent >= 0:
            seen[index] = seen[parent]
        seen[index, index] = True
    return seen


def _weights(examples: Sequence[Example], weighting: Weighting) -> list[float]:
    """The weight of each example's targets."""
    if weighting == "token":
        return [1.0] * len(examples)
    if weighting == "example":
        return [1 / example.target_count for example in examples]
    # A run without a name is one of its own.
    names = [example.trajectory or f"#{place}" for place, example in enumerate(examples)]
    counts: Counter[str] = Counter()
    for name, example in zip(names, examples, strict=True):
        counts[name] += example.target_count
    return [1 / counts[name] for name in names]


def _batch(rows: Sequence[Row]) -> Batch:
    return Batch(tuple(sorted(rows, key=lambda row: row.path)))


def _split(rows: Sequence[Row], start: int, max_tokens: int, min_trunk: int) -> list[Pack]:
    """Packs for sorted rows whose first `start` ids lie in trunks: no path through them is above `max_tokens`."""
    if start + _size(rows, start) <= max_tokens:
        return [_lay_out(rows, start)]
    shared = _common(rows[0].path, rows[-1].path)
    longer = [row for row in rows if len(row.path) > shared]
    if shared - start >= min_trunk:
        trunk = _lay_out([replace(row, path=row.path[:shared]) for row in rows], start)
        return [replace(trunk, branches=tuple(_split(longer, shared, max_tokens, min_trunk)))]
    packs: list[Pack] = []
    held = [row for row in rows if len(row.path) == shared]
    for _, children in groupby(longer, key=lambda row: row.path[shared]):
        child = list(children)
        if start + _size(child, start) > max_tokens:
            packs += _split(child, start, max_tokens, min_trunk)
        elif start + _size([*held, *child], start) > max_tokens:
            packs.append(_lay_out(held, start))
            held = child
        else:
            held += child
    return [*packs, *([_lay_out(held, start)] if held else [])]


def _lay_out(rows: Sequence[Row], start: int) -> Pack:
    """The rows' tokens from depth `start` on as one pack, and the targets that these say."""
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


def _size(rows: Sequence[Row], start: int) -> int:
    """Unique tokens of sorted rows behind depth `start`."""
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
