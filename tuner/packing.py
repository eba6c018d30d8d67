"""Packs trajectories as trees: what examples share is computed once.

Sorted by their ids, examples form a prefix tree. A pack lays one such tree out as one sequence: positions go on
along each path, a token sees its ancestors and itself, and only the ids that a step is to say are targets. Loss
and gradient are those of the examples taken row by row. Needs a decoder that runs with ragged attention.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import DatasetError

if TYPE_CHECKING:
    import torch

QUERY_BLOCK = 192
"""Tokens whose attention is computed in one product; they share the columns that any of them sees."""


@dataclass(frozen=True)
class Example:
    """One run to learn from: ids, and which of them are to be said. Both of length T."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    group: str = ""
    """Examples of one group share most of their ids and are packed together: the task's id."""

    @property
    def target_count(self) -> int:
        return sum(self.targets)


@dataclass(frozen=True)
class Pack:
    """A prefix tree laid out as one sequence of T tokens. All arrays are int64."""

    ids: np.ndarray
    """[T]"""
    positions: np.ndarray
    """[T] depth in the tree, from 0."""
    parents: np.ndarray
    """[T] index of the token before it on its path, -1 for a root."""
    sources: np.ndarray
    """[N] index of the token whose logits say each target."""
    labels: np.ndarray
    """[N] the target ids."""
    rows: int
    """Examples in the pack."""
    row_tokens: int
    """Tokens the same examples have as rows."""

    def __len__(self) -> int:
        return len(self.ids)


def pack_examples(examples: Sequence[Example], *, max_tokens: int, seed: int | None = None) -> list[Pack]:
    """Packs of at most `max_tokens`, groups kept together, in an order drawn from `seed` (None: as given).

    Raises DatasetError for an example without targets or longer than a pack.
    """
    for example in examples:
        # The first token has none before it that could say it.
        if not any(example.targets[1:]):
            raise DatasetError(f"the example of {example.group!r} has no target token; nothing could be learnt from it")
        if len(example.ids) > max_tokens:
            raise DatasetError(
                f"the example of {example.group!r} has {len(example.ids)} tokens and a pack holds {max_tokens}; "
                "raise tuning.max_tokens_per_pack or shorten the observations"
            )
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    order = list(groups)
    if seed is not None:
        random.Random(seed).shuffle(order)
    packs: list[Pack] = []
    held: list[Example] = []
    for example in (example for name in order for example in sorted(groups[name], key=lambda one: one.ids)):
        if held and _tree_size([*held, example]) > max_tokens:
            packs.append(build_pack(held))
            held = []
        held.append(example)
    if held:
        packs.append(build_pack(held))
    return packs


def build_pack(examples: Iterable[Example]) -> Pack:
    """One pack of these examples, whatever its length. Equal paths are folded; a target said twice counts once."""
    ordered = sorted(examples, key=lambda one: one.ids)
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    targets: dict[int, int] = {}
    path: list[int] = []
    """Indices in the pack of the previous example's tokens."""
    previous: tuple[int, ...] = ()
    for example in ordered:
        shared = _common(previous, example.ids)
        del path[shared:]
        for depth in range(shared, len(example.ids)):
            ids.append(example.ids[depth])
            positions.append(depth)
            parents.append(path[-1] if path else -1)
            path.append(len(ids) - 1)
        for depth, is_target in enumerate(example.targets):
            if is_target and depth > 0:
                targets[path[depth]] = path[depth - 1]
        previous = example.ids
    places = sorted(targets)
    return Pack(
        np.array(ids),
        np.array(positions),
        np.array(parents),
        np.array([targets[place] for place in places], dtype=np.int64),
        np.array([ids[place] for place in places], dtype=np.int64),
        len(ordered),
        sum(len(example.ids) for example in ordered),
    )


def as_rows(examples: Sequence[Example]) -> list[Pack]:
    """Each example as a pack of its own: the plain way, for comparison."""
    return [build_pack([example]) for example in examples]


def visibility(pack: Pack) -> np.ndarray:
    """Bool [T, T]: row sees column. A token sees its ancestors and itself."""
    size = len(pack)
    seen = np.zeros((size, size), dtype=bool)
    for index, parent in enumerate(pack.parents):
        if parent >= 0:
            seen[index] = seen[parent]
        seen[index, index] = True
    return seen


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    columns: torch.Tensor
    """[C] the positions that any of the block's tokens sees."""
    visible: torch.Tensor
    """Bool [end - start, C]."""


class TreeLayout:
    """For training: one row that holds a tree. See `agent.llm.attention.Layout`."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        import torch

        seen = visibility(pack)
        self._blocks = []
        for start in range(0, len(pack), QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, len(pack))
            columns = np.nonzero(seen[start:end].any(axis=0))[0]
            self._blocks.append(
                _Block(
                    start,
                    end,
                    torch.from_numpy(columns).to(device),
                    torch.from_numpy(seen[start:end][:, columns]).to(device),
                )
            )
        self._positions = torch.from_numpy(pack.positions).to(device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Query [heads, T, d], key and value [kv_heads, T, d]; returns [T, heads, d]."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        share = query.shape[0] // key.shape[0]
        parts = []
        for block in self._blocks:
            keys = key.index_select(1, block.columns).repeat_interleave(share, 0)
            values = value.index_select(1, block.columns).repeat_interleave(share, 0)
            visible = block.visible
            if window is not None:
                depth = self._positions
                visible = visible & (depth[block.columns] > depth[block.start : block.end, None] - window)
            out = scaled_dot_product_attention(
                query[None, :, block.start : block.end],
                keys[None],
                values[None],
                attn_mask=visible,
                scale=scale,
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)


def _tree_size(examples: Sequence[Example]) -> int:
    """Unique tokens of the examples' prefix tree."""
    ordered = sorted(example.ids for example in examples)
    return sum(len(ids) - _common(before, ids) for before, ids in zip([(), *ordered], ordered, strict=False))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    size = min(len(left), len(right))
    for place in range(size):
        if left[place] != right[place]:
            return place
    return size
