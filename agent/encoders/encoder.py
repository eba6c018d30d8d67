"""Text becomes vectors of length one, so that the dot product of two is their cosine.

`SentenceEncoder` is the real one and reads a local folder only; `HashEncoder` is the double for tests: it
knows words, not meaning. Nothing here downloads.
"""

from __future__ import annotations

import math
import re
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.errors import AdapterError, MemoryIndexError
from agent.util.threads import in_own_team, in_turn, on_one_core

FEW = 8
"""Texts that are embedded on one core, so that a search does not slow the model down."""

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Embeds texts. `HashEncoder` is the one for tests."""

    @property
    def name(self) -> str:
        """Kept with every vector: vectors of different names are never compared."""
        ...

    @property
    def dimensions(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, [len(texts), dimensions]. Safe to call from several threads."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions, [len(texts), dimensions], each of all of its text, however long."""
        ...

    def reads(self, text: str) -> float:
        """The share of a text's tokens that it knows, 0 to 1."""
        ...


@dataclass(frozen=True)
class EncoderAdapter:
    """A sealed LoRA adapter of a sentence encoder."""

    id: str
    folder: Path
    tensors_sha256: str
    """What lies in memory must give the same; see `agent.registry.artifact.hash_tensors`."""


class SentenceEncoder:
    """A sentence-transformers model from a local folder, on the CPU, float32."""

    def __init__(self, folder: Path, *, name: str, adapter: EncoderAdapter | None = None, batch_size: int = 32) -> None:
        """Loads at once. Raises MemoryIndexError on a folder that is no encoder.

        An adapter is added into the weights, and its id to the name. Raises AdapterError where it does not fit,
        LivenessError where what was loaded is not what was sealed.
        """
        if not (folder / "modules.json").is_file():
            raise MemoryIndexError(f"no sentence encoder in {folder}: modules.json is missing; name its local folder")
        from agent.llm.weights.convert import quiet

        def load() -> Any:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(folder), device="cpu", local_files_only=True)

        def tuned(model: Any, added: EncoderAdapter) -> None:

            add_adapter(model, added.folder, tensors_sha256=added.tensors_sha256)

        try:
            with quiet():
                self._model: Any = in_own_team(load)
        except (OSError, ValueError, KeyError, RuntimeError) as fault:
            raise MemoryIndexError(f"the encoder in {folder} cannot be loaded ({fault}); install it anew") from fault
        if adapter is not None:
            in_own_team(lambda: tuned(self._model, adapter))
        self._name = name if adapter is None else tuned_name(name, adapter.id)
        self._batch_size = batch_size
        # The fast tokenizer refuses two threads at once ("Already borrowed").
        self._one_at_a_time = threading.Lock()
        self._dimensions = self.encode(["a"]).shape[1]

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimensions(self) -> int:
        return int(self._dimensions)

    def encode(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)

        def encode() -> Any:
            return self._model.encode(
                list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
            )

        with self._one_at_a_time:
            if len(texts) <= FEW:
                with in_turn:
                    vectors = on_one_core(encode)
            else:
                vectors = in_own_team(encode)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """A text that is longer than the model reads is cut into windows as equal as can be, and has their mean."""
        windows = [self._windows(text) for text in texts]
        vectors = self.encode([window for part in windows for window in part])
        if len(vectors) == len(texts):
            return vectors
        starts = np.cumsum([0, *(len(part) for part in windows[:-1])])
        sums = np.add.reduceat(vectors, starts)
        return np.ascontiguousarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))

    def _windows(self, text: str) -> list[str]:
        """The text, or pieces of it that are short enough to be read."""
        tokenizer = self._model.tokenizer
        # Special tokens take places too.
        most = self._model.max_seq_length - tokenizer.num_special_tokens_to_add()
        # No token is of less than a byte, so that most texts need not be counted.
        if len(text.encode()) <= most:
            return [text]
        with self._one_at_a_time:
            places = tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
        count = math.ceil(len(places) / most)
        if count < 2:
            return [text]
        bounds = [len(places) * number // count for number in range(count + 1)]
        return [text[places[first][0] : places[last - 1][1]] for first, last in pairwise(bounds)]

    def reads(self, text: str) -> float:
        with self._one_at_a_time:
            ids = self._model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        unknown = self._model.tokenizer.unk_token_id
        missed = sum(1 for one in ids if one == unknown)
        return 1.0 - missed / max(1, len(ids))


def tuned_name(base: str, adapter: str) -> str:
    """What an encoder under an adapter is called, so that its vectors are told from those of the bare one."""
    return f"{base}+{adapter}"


class HashEncoder:
    """Words hashed into signed buckets: texts that share words are near, and nothing is to be loaded."""

    def __init__(self, dimensions: int = 256) -> None:
        self._dimensions = dimensions

    @property
    def name(self) -> str:
        return f"hash-{self._dimensions}"

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def encode(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                code = zlib.crc32(word.encode())
                row[(code >> 1) % self._dimensions] += 1.0 if code & 1 else -1.0
            if not row.any():
                row[0] = 1.0
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self.encode(texts)

    def reads(self, text: str) -> float:
        return 1.0


def add_adapter(model: Any, folder: Path, *, tensors_sha256: str) -> None:
    """Add a PEFT folder to a SentenceTransformer, in place.

    Raises AdapterError where it does not fit this encoder, LivenessError where it is not the one that was sealed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from agent.llm.engine.loaded_adapters import AdapterBank

    inner = model.transformers_model
    if inner is None:
        raise AdapterError(f"adapter in {folder} needs an encoder of transformers; this one has no such part")
    bank = AdapterBank(inner)
    bank.load("tuned", folder, tensors_sha256=tensors_sha256)
    if not bank.is_lora("tuned"):
        raise AdapterError(f"adapter in {folder} is no LoRA adapter; an encoder takes no other kind")
    bank.activate("tuned")
    wrapped = [(name, layer) for name, layer in inner.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in wrapped:
        merging: Any = layer
        merging.merge()
        inner.set_submodule(name, merging.get_base_layer())
    inner.__dict__.pop("peft_config", None)
