"""Decoding passes of few shapes, on tensors that stay where they are, so that a GPU can replay them.

The new tokens of all sessions, few of each, lie on a grid: a row for each session, as wide as the most that one brings.
Sizes are rounded up to a few, and for each the whole pass is prepared once by a `Runner`: on CUDA as a graph. Ids,
positions and places go into tensors that it reads; attention goes over whole slots with a mask. Cells of the grid that
no token fills write into the scratch column of a slot (see `cache.Slots`), and nobody reads what they make.
Not for long pieces of prompts, nor for sequences longer than a sliding window: `run` says None to those, and the pass
is made with `CachedLayout`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.llm.engine.attention import OneSequence
from agent.llm.engine.cuda_graphs import Runner

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.kv_cache import KeyValues, Slots
    from agent.llm.engine.loaded_adapters import AdapterBank

WIDTHS = (1, 4, 16)
"""How wide a grid may be: the new tokens of a session, rounded up."""
LEAST_LENGTH = 256
MOST_CELLS = 512
"""Above it a pass has enough to do for what rounding up and replaying come to."""
MOST_PREPARED = 64
"""Passes that are kept prepared; the one unused for longest goes first."""

_IDS, _POSITIONS, _SLOTS, _COLUMNS = range(4)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """The shape of a pass."""

    sessions: int
    """Rows: a power of two, or as many as there are slots; then each row stands for the slot of its number."""
    width: int
    length: int
    """Columns of each slot that attention reads."""


def grid_for(counts: Sequence[int], longest: int, *, rows: int, room: int) -> Grid | None:
    """The smallest grid for sessions that bring these counts; None where one of them, or all, bring too many.

    The longest of them will have `longest` positions; there are `rows` slots of `room` columns.
    """
    width = next((width for width in WIDTHS if width >= max(counts)), None)
    sessions = min(_power_of_two(len(counts)), rows)
    if width is None or sessions * width > MOST_CELLS:
        return None
    return Grid(sessions, width, min(max(_power_of_two(longest), LEAST_LENGTH), room))


class StaticLayout:
    """Which keys the cells of a grid see: those of their slot up to the column that they are written to."""

    def __init__(self, slots: Slots, grid: Grid, inputs: torch.Tensor) -> None:
        """`inputs` are int64 [4, cells]; slots and columns are taken from it."""
        self._slots = slots
        self._grid = grid
        self._rows, self._columns = inputs[_SLOTS], inputs[_COLUMNS]
        whole = grid.sessions == slots.rows
        self._picked = range(grid.sessions) if whole else self._rows.view(grid.sessions, -1)[:, 0]
        self._hidden: dict[int, torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `Layout` says; all cells are within the window, which was seen to before."""
        from torch.nn.functional import scaled_dot_product_attention

        self._slots.write(layer, self._rows, self._columns, key, value)
        keys, values = self._slots.block(layer, self._picked, self._grid.length)
        (heads, _, size), sessions, width = query.shape, self._grid.sessions, self._grid.width
        groups = keys.shape[0] // sessions
        share = heads // groups
        # The heads that share keys become more rows of one query. `enable_gqa` would say the same, but on CUDA no
        # fused kernel of torch takes that together with a mask.
        asked = query.view(groups, share, sessions, width, size).permute(2, 0, 1, 3, 4)
        out = scaled_dot_product_attention(
            asked.reshape(sessions, groups, share * width, size),
            keys.view(sessions, groups, -1, size),
            values.view(sessions, groups, -1, size),
            attn_mask=self._mask(share, query),
            scale=scale,
        )
        return out.view(sessions, groups, share, width, size).permute(0, 3, 1, 2, 4).reshape(-1, heads, size)

    def _mask(self, share: int, like: torch.Tensor) -> torch.Tensor:
        """What is added to scores [sessions, 1, share * width, length]: minus infinity where a cell does not see."""
        import torch

        if share not in self._hidden:
            sessions, width, length = self._grid.sessions, self._grid.width, self._grid.length
            columns = torch.arange(length, device=like.device)
            hidden = (columns > self._columns[:, None]).view(sessions, 1, 1, width, length)
            added = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            added.masked_fill_(hidden, float("-inf"))
            self._hidden[share] = added.expand(-1, -1, share, -1, -1).reshape(sessions, 1, share * width, length)
        return self._hidden[share]


@dataclass(frozen=True)
class _Prepared:
    inputs: torch.Tensor
    """int64 [4, cells]: id, position, slot and column of each cell."""
    do: Callable[[], None]
    """The pass; it leaves its logits in `StaticPasses`."""


class StaticPasses:
    """Passes of a model on sequences in static slots. Not thread-safe: the engine's worker is the only user."""

    def __init__(self, model: Any, adapters: AdapterBank, slots: Slots, runner: Runner) -> None:
        self._model = model
        self._adapters = adapters
        self._slots = slots
        self._runner: Runner | None = runner
        """None once it has failed."""
        self._prepared: OrderedDict[tuple[str | None, str, Grid], _Prepared] = OrderedDict()
        """By adapter, its name on the model, for a key may come to mean another, and shape."""
        self._moves = 0
        """Of the slots' buffers, when the passes were prepared: they read and write these very ones."""
        self._window: int | None = None
        self._logits: torch.Tensor | None = None
        """[cells, V] of the last pass. One tensor for all passes, each of which would keep its own otherwise."""
        self.passes = 0
        """How many were made."""

    def run(
        self,
        adapter: str | None,
        sequences: Sequence[KeyValues],
        counts: Sequence[int],
        ids: Sequence[int],
        keep: Sequence[int],
    ) -> torch.Tensor | None:
        """One pass under an adapter, or None where it must be made otherwise, and nothing was done.

        Of T `ids` each sequence takes its count, in turn, and is longer afterwards. Returns the logits [B, V] behind
        those of the T that `keep` names.
        """
        import torch

        if self._runner is None or (adapter is not None and adapter not in self._adapters):
            return None
        with torch.inference_mode():
            grid = self._grid(sequences, counts)
            if grid is None:
                return None
            inputs, cells = _lay_out(grid, sequences, counts, ids, rows=self._slots.rows, room=self._slots.room)
            prepared = self._prepare(adapter, grid, torch.from_numpy(inputs))
            if prepared is None:
                return None
            prepared.do()
            assert self._logits is not None
            logits = self._logits[torch.from_numpy(cells[list(keep)]).to(self._logits.device)].float()
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        self.passes += 1
        return logits

    def _grid(self, sequences: Sequence[KeyValues], counts: Sequence[int]) -> Grid | None:
        slots = self._slots
        longest = max(sequence.length + count for sequence, count in zip(sequences, counts, strict=True))
        slots.reserve(longest)
        grid = grid_for(counts, longest, rows=slots.rows, room=slots.room)
        if grid is None or not slots.settle():
            return None
        if self._logits is None:
            self._logits = self._look_at_model()
        if self._window is not None and longest > self._window:
            return None
        if slots.moves != self._moves:
            self._drop(lambda key: True)
            self._moves = slots.moves
            cells = min(slots.rows * WIDTHS[-1], MOST_CELLS)
            self._logits = self._logits.new_empty(cells, self._logits.shape[1])
        return grid

    def _look_at_model(self) -> torch.Tensor:
        """A pass of one token, to learn what windows the layers have and what logits look like; returns those."""
        import torch

        seen = OneSequence()
        one = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=one, position_ids=one, use_cache=False, layout=seen).logits[0]
        self._window = min((window for _, window in seen.asked.values() if window is not None), default=None)
        return logits

    def _prepare(self, adapter: str | None, grid: Grid, inputs: torch.Tensor) -> _Prepared | None:
        """The pass for a grid, with these inputs in place; None where it could not be prepared, which is said."""
        key = (adapter, self._adapters.name(adapter) if adapter is not None else "", grid)
        prepared = self._prepared.get(key)
        if prepared is not None:
            self._prepared.move_to_end(key)
            prepared.inputs.copy_(inputs)
            return prepared
        self._drop(self._is_gone)
        while len(self._prepared) >= MOST_PREPARED:
            self._prepared.popitem(last=False)
        assert self._runner is not None
        there = inputs.to(self._model.device, copy=True)
        try:
            prepared = _Prepared(there, self._runner.prepare(lambda: self._pass(adapter, grid, there)))
        except RuntimeError as fault:
            _log.warning("decoding goes on in plain passes, which are slower; a static one failed: %s", fault)
            self._drop(lambda key: True)
            self._runner = None
            return None
        self._prepared[key] = prepared
        return prepared

    def _pass(self, adapter: str | None, grid: Grid, inputs: torch.Tensor) -> None:
        """What is captured: nothing in here may ask for values, or take anything from the host."""
        assert self._logits is not None
        self._adapters.activate(adapter)
        layout = StaticLayout(self._slots, grid, inputs)
        made = self._model(
            input_ids=inputs[_IDS][None], position_ids=inputs[_POSITIONS][None], use_cache=False, layout=layout
        )
        self._logits[: inputs.shape[1]].copy_(made.logits[0])

    def _is_gone(self, key: tuple[str | None, str, Grid]) -> bool:
        """Whether the adapter of a prepared pass was unloaded."""
        adapter, name, _ = key
        return adapter is not None and (adapter not in self._adapters or self._adapters.name(adapter) != name)

    def _drop(self, which: Callable[[tuple[str | None, str, Grid]], bool]) -> None:
        for key in [key for key in self._prepared if which(key)]:
            del self._prepared[key]
        if not self._prepared and self._runner is not None:
            self._runner.forget()


def _lay_out(
    grid: Grid,
    sequences: Sequence[KeyValues],
    counts: Sequence[int],
    ids: Sequence[int],
    *,
    rows: int,
    room: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of a pass, int64 [4, sessions * width], and which of these cells each id is in, int64 [T]."""
    inputs = np.zeros((4, grid.sessions, grid.width), dtype=np.int64)
    inputs[_COLUMNS] = room - 1
    if grid.sessions == rows:
        inputs[_SLOTS] = np.arange(rows)[:, None]
    cells = []
    start = 0
    for number, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        assert sequence.slot is not None
        row = sequence.slot if grid.sessions == rows else number
        inputs[_IDS, row, :count] = ids[start : start + count]
        inputs[_POSITIONS, row, :count] = inputs[_COLUMNS, row, :count] = sequence.length + np.arange(count)
        inputs[_SLOTS, row] = sequence.slot
        cells.append(row * grid.width + np.arange(count))
        start += count
    return inputs.reshape(4, -1), np.concatenate(cells)


def _power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << (number - 1).bit_length()
