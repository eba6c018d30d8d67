"""Caches the activations below the tuned layers on disk, so that they are computed once and not in every epoch.

A token is identified by its path: all ids from the first to its own. So the cache serves every epoch, however the
examples are packed in it. Tokens that do not fit are computed through all layers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.tree.attention import NOTHING, KeysAndValues, TreeLayout
from tuner.tree.loss import join_prefixes, loss_of, products_in
from tuner.tree.packing import Pack

if TYPE_CHECKING:
    import torch

_Nodes = dict[tuple[int, int], int]
"""The place of a token, by the place of the token before it (-1 for none) and its id."""


class FrozenLayers:
    """A model with cached lower layers; called like the model itself."""

    def __init__(self, model: Any, layers: int) -> None:
        """Wrap a model.

        Args:
            model: The model that is trained.
            layers: Number of layers at the bottom without trained parameters.
        """
        self.config = model.config
        self.device = model.device
        self._model = model
        self._layers = layers
        self._nodes: _Nodes = {}
        self._kept: torch.Tensor | None = None
        """[nodes, d] inputs of the first tuned layer."""

    def get_input_embeddings(self) -> Any:
        return self._model.get_input_embeddings()

    def __call__(self, *, layout: TreeLayout, input_ids: torch.Tensor | None = None, **given: Any) -> Any:
        cached = None if input_ids is None else self._cached(layout)
        if cached is None:
            plain = {} if input_ids is None else {"input_ids": input_ids}
            return self._model(**plain, layout=layout, **given)
        with self._only(slice(self._layers, None)):
            return self._model(inputs_embeds=cached[None], layout=layout, **given)

    def fill(self, packs: Sequence[Pack], precision: str, most_bytes: int, say: Callable[[str], None]) -> None:
        """Compute the lower layers of these packs and store up to `most_bytes` of their outputs.

        Stores nothing, with a message, where the disk is full or the model's layers cannot be run separately.
        """
        import torch

        width = self.config.get_text_config().hidden_size
        dtype = self.get_input_embeddings().weight.dtype
        numbered = self._number(packs, most_bytes // (width * dtype.itemsize))
        if not numbered:
            return
        say(f"reading {len(self._nodes)} tokens through the {self._layers} layers that are not tuned, once")
        try:
            self._kept = _on_disk(len(self._nodes), width, dtype)
            with torch.no_grad(), products_in(precision, self.device.type):
                for pack in numbered:
                    self._read(pack, NOTHING)
                whole, parts = (float(loss_of(model, numbered[0])) for model in (self._model, self))
            if not np.isclose(whole, parts, rtol=1e-4 if precision == "float32" else 1e-2):
                raise ValueError(f"the loss is {whole:.4f} in one pass and {parts:.4f} from the cache")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            say(f"the layers that are not tuned are computed in every epoch, which is slower: {error}")
            self._nodes, self._kept = {}, None

    def _number(self, packs: Sequence[Pack], most: int) -> list[Pack]:
        """Give every token a place while there are places; returns the packs that got theirs."""
        numbered = []
        for pack in packs:
            if len(self._nodes) + sum(map(len, pack.all())) > most:
                break
            for node in pack.all():
                self._places(node, lambda key: self._nodes.setdefault(key, len(self._nodes)))
            numbered.append(pack)
        return numbered

    def _read(self, pack: Pack, before: KeysAndValues) -> None:
        """Compute the lower layers of a pack and its branches."""
        import torch

        layout = TreeLayout(
            pack, self.device, before, keeps=bool(pack.branches), mixed=torch.is_autocast_enabled(self.device.type)
        )
        ids = torch.from_numpy(pack.ids).to(self.device)[None]
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        outputs = []
        with self._only(slice(0, self._layers)) as layers:
            hook = layers[-1].register_forward_hook(lambda _, __, out: outputs.append(out))
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
        (out,) = outputs
        hidden = out[0] if isinstance(out, tuple) else out
        places = self._places(pack, self._nodes.get)
        assert places is not None
        assert self._kept is not None
        self._kept[torch.tensor(places)] = hidden[0].to(self._kept)
        prefix = join_prefixes(before, layout.kept)
        for branch in pack.branches:
            self._read(branch, prefix)

    def _cached(self, layout: TreeLayout) -> torch.Tensor | None:
        """Return the cached rows of a pack's tokens [T, d]; None where a part of its tree is not cached."""
        import torch

        if self._kept is None:
            return None
        places, *branches = (self._places(node, self._nodes.get) for node in layout.pack.all())
        if places is None or None in branches:
            return None
        return self._kept[torch.tensor(places)].to(self.device)

    @staticmethod
    def _places(pack: Pack, find: Callable[[tuple[int, int]], int | None]) -> list[int] | None:
        """Return the places of a pack's tokens; None where a token has none."""
        before = -1
        for token in pack.prefix:
            place = find((before, token))
            if place is None:
                return None
            before = place
        places: list[int] = []
        for token, parent in zip(pack.ids.tolist(), pack.parents.tolist(), strict=True):
            place = find((places[parent] if parent >= 0 else before, token))
            if place is None:
                return None
            places.append(place)
        return places

    @contextmanager
    def _only(self, selected: slice) -> Iterator[Any]:
        """Reduce the model to some of its layers for a while."""
        import torch

        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        decoder = base.get_decoder()
        layers = decoder.layers
        decoder.layers = torch.nn.ModuleList(layers[selected])
        try:
            yield decoder.layers
        finally:
            decoder.layers = layers


def _on_disk(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor [rows, width] in a temporary file. Raises OSError where the disk is full."""
    import torch

    size = rows * width * dtype.itemsize
    with tempfile.TemporaryFile() as file:  # The map keeps it.
        os.posix_fallocate(file.fileno(), 0, size)
        memory = np.memmap(file, dtype=np.uint8, mode="r+", shape=(rows, width * dtype.itemsize))
    return torch.from_numpy(memory).view(dtype)
