"""Where only upper layers are tuned, what the layers below make of each token is computed once, and kept on disk.

A token is known by its path: all ids from the first to its own. So what is kept serves every epoch, however the
examples are packed in it. What does not fit stays on the way through all layers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.tree.attention import NOTHING, KeysAndValues, TreeLayout
from tuner.tree.loss import joined, loss_of, products_in
from tuner.tree.packing import Pack

if TYPE_CHECKING:
    import torch

_Nodes = dict[tuple[int, int], int]
"""The place of a token by that of the token before it (-1 before the first) and its id."""


class FrozenLayers:
    """A model whose lowest layers never change; called as the model itself."""

    def __init__(self, model: Any, layers: int) -> None:
        """`layers` are those at the bottom that nothing is trained in."""
        self.config = model.config
        self.device = model.device
        self._model = model
        self._layers = layers
        self._nodes: _Nodes = {}
        self._kept: torch.Tensor | None = None
        """[nodes, d] what enters the first tuned layer."""

    def get_input_embeddings(self) -> Any:
        return self._model.get_input_embeddings()

    def __call__(self, *, layout: TreeLayout, input_ids: torch.Tensor | None = None, **given: Any) -> Any:
        kept = None if input_ids is None else self._found(layout)
        if kept is None:
            plain = {} if input_ids is None else {"input_ids": input_ids}
            return self._model(**plain, layout=layout, **given)
        with self._only(slice(self._layers, None)):
            return self._model(inputs_embeds=kept[None], layout=layout, **given)

    def fill(self, packs: Sequence[Pack], precision: str, most_bytes: int, say: Callable[[str], None]) -> None:
        """Read these packs through the lower layers and keep what comes out, `most_bytes` of it at most.

        Says so where nothing can be kept: no room on the disk, or a model whose layers cannot be run apart.
        """
        import torch

        width = self.config.get_text_config().hidden_size
        dtype = self.get_input_embeddings().weight.dtype
        chosen = self._number(packs, most_bytes // (width * dtype.itemsize))
        if not chosen:
            return
        say(f"reading {len(self._nodes)} tokens through the {self._layers} layers that are not tuned, once")
        try:
            self._kept = _on_disk(len(self._nodes), width, dtype)
            with torch.no_grad(), products_in(precision, self.device.type):
                for pack in chosen:
                    self._read(pack, NOTHING)
                whole, parts = (float(loss_of(model, chosen[0])) for model in (self._model, self))
            if not np.isclose(whole, parts, rtol=1e-4 if precision == "float32" else 1e-2):
                raise ValueError(f"the loss is {whole:.4f} in one pass and {parts:.4f} from what was kept")
        except (OSError, ValueError, TypeError, AttributeError) as fault:
            say(f"the layers that are not tuned are computed in every epoch, which is slower: {fault}")
            self._nodes, self._kept = {}, None

    def _number(self, packs: Sequence[Pack], most: int) -> list[Pack]:
        """Give every token of the packs a place, while there are places; returns the packs that got theirs."""
        chosen = []
        for pack in packs:
            if len(self._nodes) + sum(map(len, pack.all())) > most:
                break
            for one in pack.all():
                self._places(one, lambda key: self._nodes.setdefault(key, len(self._nodes)))
            chosen.append(pack)
        return chosen

    def _read(self, pack: Pack, before: KeysAndValues) -> None:
        """Through the lower layers alone, branches too."""
        import torch

        layout = TreeLayout(
            pack, self.device, before, keeps=bool(pack.branches), mixed=torch.is_autocast_enabled(self.device.type)
        )
        ids = torch.from_numpy(pack.ids).to(self.device)[None]
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        made = []
        with self._only(slice(0, self._layers)) as layers:
            hook = layers[-1].register_forward_hook(lambda _, __, out: made.append(out))
            try:
                self._model(
                    input_ids=ids,
                    position_ids=layout.positions[None],
                    logits_to_keep=nothing,
                    use_cache=False,
                    layout=layout,
                )
            finally:
                hook.remove()
        (out,) = made
        hidden = out[0] if isinstance(out, tuple) else out
        places = self._places(pack, self._nodes.get)
        assert places is not None
        assert self._kept is not None
        self._kept[torch.tensor(places)] = hidden[0].to(self._kept)
        behind = joined(before, layout.kept)
        for branch in pack.branches:
            self._read(branch, behind)

    def _found(self, layout: TreeLayout) -> torch.Tensor | None:
        """What was kept of a pack's tokens [T, d]; None where a part of its tree is not kept."""
        import torch

        if self._kept is None:
            return None
        places, *behind = (self._places(one, self._nodes.get) for one in layout.pack.all())
        if places is None or None in behind:
            return None
        return self._kept[torch.tensor(places)].to(self.device)

    @staticmethod
    def _places(pack: Pack, find: Callable[[tuple[int, int]], int | None]) -> list[int] | None:
        """The places of a pack's tokens, one by one along their paths."""
        before = -1
        for token in pack.behind:
            found = find((before, token))
            if found is None:
                return None
            before = found
        places: list[int] = []
        for token, parent in zip(pack.ids.tolist(), pack.parents.tolist(), strict=True):
            found = find((places[parent] if parent >= 0 else before, token))
            if found is None:
                return None
            places.append(found)
        return places

    @contextmanager
    def _only(self, chosen: slice) -> Iterator[Any]:
        """Leave the model these of its layers for a while."""
        import torch

        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        decoder = base.get_decoder()
        layers = decoder.layers
        decoder.layers = torch.nn.ModuleList(layers[chosen])
        try:
            yield decoder.layers
        finally:
            decoder.layers = layers


def _on_disk(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, width] in a file that goes with the process. Raises OSError where the disk has no room for it."""
    import torch

    size = rows * width * dtype.itemsize
    with tempfile.TemporaryFile() as file:  # The map keeps it.
        os.posix_fallocate(file.fileno(), 0, size)
        held = np.memmap(file, dtype=np.uint8, mode="r+", shape=(rows, width * dtype.itemsize))
    return torch.from_numpy(held).view(dtype)
