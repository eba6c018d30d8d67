"""Decoding passes of few fixed shapes, on tensors that do not move, so that a GPU can replay them as CUDA graphs.

The new tokens of all sessions lie on a grid: a row for each session, as wide as the most tokens of one. Sizes are
rounded up to a few buckets, and a `PassRunner` prepares the pass once for each. Ids, positions and places go into
tensors that the pass reads; attention covers whole slots with a mask. Padding cells write into the scratch column of a
slot (see `kv_cache.Slots`), which is never read. Not for long pieces of prompts nor for sequences longer than a sliding
window: `run` returns None for those, and the pass runs with `CachedLayout`. Off by default: it never ran on a GPU.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.llm.engine.attention import OneSequence
from agent.llm.engine.cuda_graphs import PassRunner

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.kv_cache import KeyValues, Slots
    from agent.llm.engine.loaded_adapters import LoadedAdapters

WIDTHS = (1, 4, 16)
"""Buckets of the new tokens of a session."""
MIN_LENGTH = 256
MAX_CELLS = 512
"""Above it a pass has so much to compute that padding costs more than replaying saves."""
MAX_PREPARED = 64
"""Prepared passes that are kept; the least recently used is dropped first."""

_IDS, _POSITIONS, _SLOTS, _COLUMNS = range(4)
_log = logging.getLogger("ratchet.engine")


@dataclass(frozen=True)
class Grid:
    """The shape of a pass."""

    sessions: int
    """Rows: a power of two, or the number of slots; then row i is slot i."""
    width: int
    length: int
    """Positions of each slot that attention reads."""


def grid_for(counts: Sequence[int], longest: int, *, rows: int, room: int) -> Grid | None:
    """Return the smallest grid for sessions with these numbers of new tokens; None where they are too many.

    Args:
        counts: the new tokens of each session.
        longest: positions of the longest session after the pass.
        rows: the number of slots.
        room: positions of a slot.
    """
    width = next((width for width in WIDTHS if width >= max(counts)), None)
    sessions = min(_power_of_two(len(counts)), rows)
    if width is None or sessions * width > MAX_CELLS:
        return None
    return Grid(sessions, width, min(max(_power_of_two(longest), MIN_LENGTH), room))


class StaticLayout:
    """A `Layout` in which a cell sees the keys of its slot up to its own column."""

    def __init__(self, slots: Slots, grid: Grid, inputs: torch.Tensor) -> None:
        """Read slots and columns from `inputs`, int64 [4, cells]."""
        self._slots = slots
        self._grid = grid
        self._rows, self._columns = inputs[_SLOTS], inputs[_COLUMNS]
        is_whole = grid.sessions == slots.rows
        self._read_rows = range(grid.sessions) if is_whole else self._rows.view(grid.sessions, -1)[:, 0]
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
        """Attend as `Layout` requires. No cell is outside the window: `StaticPasses` checked that."""
        from torch.nn.functional import scaled_dot_product_attention

        self._slots.write(layer, self._rows, self._columns, key, value)
        keys, values = self._slots.block(layer, self._read_rows, self._grid.length)
        (heads, _, size), sessions, width = query.shape, self._grid.sessions, self._grid.width
        groups = keys.shape[0] // sessions
        share = heads // groups
        # Heads that share keys become more rows of one query. `enable_gqa` does the same, but no fused CUDA kernel of
        # torch takes it together with a mask.
        folded = query.view(groups, share, sessions, width, size).permute(2, 0, 1, 3, 4)
        out = scaled_dot_product_attention(
            folded.reshape(sessions, groups, share * width, size),
            keys.view(sessions, groups, -1, size),
            values.view(sessions, groups, -1, size),
            attn_mask=self._mask(share, query),
            scale=scale,
        )
        return out.view(sessions, groups, share, width, size).permute(0, 3, 1, 2, 4).reshape(-1, heads, size)

    def _mask(self, share: int, like: torch.Tensor) -> torch.Tensor:
        """Return the additive mask [sessions, 1, share * width, length]: minus infinity where a cell does not see."""
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
class _PreparedPass:
    inputs: torch.Tensor
    """int64 [4, cells]: id, position, slot and column of each cell."""
    run: Callable[[], None]
    """Runs the pass, which writes its logits into `StaticPasses`."""


class StaticPasses:
    """Passes of a model over sequences in static slots. Not thread-safe: the engine's worker is the only user."""

    def __init__(
        self,
        model: Any,
        adapters: LoadedAdapters,
        slots: Slots,
        runner: PassRunner,
        *,
        max_prepared: int = MAX_PREPARED,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._slots = slots
        self._max_prepared = max_prepared
        self._runner: PassRunner | None = runner
        """None once it has failed."""
        self._prepared: OrderedDict[tuple[str | None, str, Grid], _PreparedPass] = OrderedDict()
        """By adapter, its name on the model (its key may be loaded again with other weights), and shape."""
        self._reallocations = 0
        """Of the slots' buffers, when the passes were prepared: they read and write those buffers."""
        self._window: int | None = None
        self._logits: torch.Tensor | None = None
        """[cells, V] of the last pass. One tensor for all passes, so that not each keeps its own."""
        self.passes = 0
        """Passes that were run."""

    def run(
        self,
        adapter: str | None,
        sequences: Sequence[KeyValues],
        counts: Sequence[int],
        ids: Sequence[int],
        keep: Sequence[int],
    ) -> torch.Tensor | None:
        """Run one pass under an adapter; return None, having done nothing, where no grid fits it.

        Args:
            adapter: the key of a loaded adapter; None for the base.
            sequences: each grows by its count.
            counts: the new tokens of each sequence.
            ids: [T], the new ids of all sequences in turn.
            keep: [B], the indices of the tokens whose logits are wanted.

        Returns: The logits, float32 [B, V].
        """
        import torch

        if self._runner is None or (adapter is not None and adapter not in self._adapters):
            return None
        with torch.inference_mode():
            grid = self._grid(sequences, counts)
            if grid is None:
                return None
            inputs, cells = _fill_grid(grid, sequences, counts, ids, rows=self._slots.rows, room=self._slots.room)
            prepared = self._prepare(adapter, grid, torch.from_numpy(inputs))
            if prepared is None:
                return None
            prepared.run()
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
        if grid is None or not slots.grow_all():
            return None
        if self._logits is None:
            self._logits = self._probe_model()
        if self._window is not None and longest > self._window:
            return None
        if slots.reallocations != self._reallocations:
            self._drop(lambda key: True)
            self._reallocations = slots.reallocations
            cells = min(slots.rows * WIDTHS[-1], MAX_CELLS)
            self._logits = self._logits.new_empty(cells, self._logits.shape[1])
        return grid

    def _probe_model(self) -> torch.Tensor:
        """Run one token to learn the layers' windows and the shape of the logits; return the logits."""
        import torch

        probe = OneSequence()
        token = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=token, position_ids=token, use_cache=False, layout=probe).logits[0]
        self._window = min((window for _, window in probe.settings.values() if window is not None), default=None)
        return logits

    def _prepare(self, adapter: str | None, grid: Grid, inputs: torch.Tensor) -> _PreparedPass | None:
        """Return the pass of a grid with its inputs set; log a warning and return None where it cannot be prepared."""
        key = (adapter, self._adapters.name(adapter) if adapter is not None else "", grid)
        prepared = self._prepared.get(key)
        if prepared is not None:
            self._prepared.move_to_end(key)
            prepared.inputs.copy_(inputs)
            return prepared
        self._drop(self._is_unloaded)
        while len(self._prepared) >= self._max_prepared:
            self._prepared.popitem(last=False)
        assert self._runner is not None
        buffers = inputs.to(self._model.device, copy=True)
        try:
            prepared = _PreparedPass(buffers, self._runner.prepare(lambda: self._forward(adapter, grid, buffers)))
        except RuntimeError as error:
            _log.warning("decoding goes on in plain passes, which are slower; a static one failed: %s", error)
            self._drop(lambda key: True)
            self._runner = None
            return None
        self._prepared[key] = prepared
        return prepared

    def _forward(self, adapter: str | None, grid: Grid, inputs: torch.Tensor) -> None:
        """Run the model on a grid. This is what is captured: nothing in it may read values or copy from the host."""
        assert self._logits is not None
        self._adapters.activate(adapter)
        layout = StaticLayout(self._slots, grid, inputs)
        output = self._model(
            input_ids=inputs[_IDS][None], position_ids=inputs[_POSITIONS][None], use_cache=False, layout=layout
        )
        self._logits[: inputs.shape[1]].copy_(output.logits[0])

    def _is_unloaded(self, key: tuple[str | None, str, Grid]) -> bool:
        """Whether the adapter of a prepared pass was unloaded."""
        adapter, name, _ = key
        return adapter is not None and (adapter not in self._adapters or self._adapters.name(adapter) != name)

    def _drop(self, which: Callable[[tuple[str | None, str, Grid]], bool]) -> None:
        for key in [key for key in self._prepared if which(key)]:
            del self._prepared[key]
        if not self._prepared and self._runner is not None:
            self._runner.forget()


def _fill_grid(
    grid: Grid,
    sequences: Sequence[KeyValues],
    counts: Sequence[int],
    ids: Sequence[int],
    *,
    rows: int,
    room: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of a pass, int64 [4, sessions * width], and the cell of each id, int64 [T]."""
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
    """Return the smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
