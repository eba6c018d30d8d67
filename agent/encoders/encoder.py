"""Sentence encoders: texts to unit vectors, whose dot product is their cosine.

`SentenceEncoder` loads a model from a local folder; `HashEncoder` is the double for tests and compares words only.
Downloads nothing.
"""

from __future__ import annotations

import math
import re
import threading
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.errors import AdapterError, MemoryIndexError
from agent.util.threads import compute_lock

FEW = 8
"""At most so many texts are embedded in turn with the language model's passes, so that neither slows the other."""

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Embeds texts. `HashEncoder` is the double for tests."""

    @property
    def name(self) -> str:
        """Stored with every vector: vectors of different names are never compared."""
        ...

    @property
    def dimensions(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors [len(texts), dimensions]. Texts are truncated to what the model reads. Thread-safe."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors [len(texts), dimensions] of queries, which are not truncated."""
        ...

    def coverage(self, text: str) -> float:
        """Return the share of a text's tokens that are in the vocabulary, 0 to 1."""
        ...


@dataclass(frozen=True)
class EncoderAdapter:
    """A LoRA adapter of a sentence encoder, as the registry stores it."""

    id: str
    folder: Path
    tensors_sha256: str
    """Hash that the loaded tensors must have; see `agent.registry.artifact.hash_tensors`."""


class SentenceEncoder:
    """A sentence-transformers model from a local folder, on the CPU, float32."""

    def __init__(self, folder: Path, *, name: str, adapter: EncoderAdapter | None = None, batch_size: int = 32) -> None:
        """Load the model.

        Args:
            adapter: Merged into the weights; its id becomes part of the name.

        Raises:
            MemoryIndexError: The folder does not contain an encoder.
            AdapterError: The adapter does not fit the encoder.
            LivenessError: The adapter's loaded tensors are not those of its hash.
        """
        if not (folder / "modules.json").is_file():
            raise MemoryIndexError(f"no sentence encoder in {folder}: modules.json is missing; name its local folder")
        from agent.llm.weights.convert import hide_progress_bars

        try:
            with hide_progress_bars():
                from sentence_transformers import SentenceTransformer

                self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as fault:
            raise MemoryIndexError(f"the encoder in {folder} cannot be loaded ({fault}); install it anew") from fault
        if adapter is not None:
            add_adapter(self._model, adapter.folder, tensors_sha256=adapter.tensors_sha256)
        self._name = name if adapter is None else name_with_adapter(name, adapter.id)
        self._batch_size = batch_size
        # The fast tokenizer cannot be used by two threads at once ("Already borrowed").
        self._tokenizer_lock = threading.Lock()
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

        with self._tokenizer_lock, compute_lock if len(texts) <= FEW else nullcontext():
            vectors = self._model.encode(
                list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Split texts that are longer than the model reads into windows of equal length, and average their vectors."""
        windows = [self._split_windows(text) for text in texts]
        vectors = self.encode([window for part in windows for window in part])
        if len(vectors) == len(texts):
            return vectors
        starts = np.cumsum([0, *(len(part) for part in windows[:-1])])
        sums = np.add.reduceat(vectors, starts)
        return np.ascontiguousarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))

    def _split_windows(self, text: str) -> list[str]:
        tokenizer = self._model.tokenizer
        # Special tokens count too.
        limit = self._model.max_seq_length - tokenizer.num_special_tokens_to_add()
        # A token has at least one byte, so short texts need not be tokenized.
        if len(text.encode()) <= limit:
            return [text]
        with self._tokenizer_lock:
            offsets = tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
        count = math.ceil(len(offsets) / limit)
        if count < 2:
            return [text]
        bounds = [len(offsets) * number // count for number in range(count + 1)]
        return [text[offsets[first][0] : offsets[last - 1][1]] for first, last in pairwise(bounds)]

    def coverage(self, text: str) -> float:
        with self._tokenizer_lock:
            ids = self._model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        unknown = list(ids).count(self._model.tokenizer.unk_token_id)
        return 1.0 - unknown / max(1, len(ids))


def name_with_adapter(base: str, adapter: str) -> str:
    """Return the name of an encoder with an adapter, which distinguishes its vectors from the base encoder's."""
    return f"{base}+{adapter}"


class HashEncoder:
    """Hashes words into signed buckets, so that texts that share words are similar. Loads nothing."""

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

    def coverage(self, text: str) -> float:
        return 1.0


def add_adapter(model: Any, folder: Path, *, tensors_sha256: str) -> None:
    """Merge a LoRA adapter into a SentenceTransformer, in place.

    Args:
        folder: A PEFT folder.

    Raises:
        AdapterError: The adapter does not fit this encoder, or is no LoRA adapter.
        LivenessError: The loaded tensors do not have the hash.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from agent.llm.engine.loaded_adapters import LoadedAdapters

    inner = model.transformers_model
    if inner is None:
        raise AdapterError(f"adapter in {folder} needs an encoder of transformers; this encoder has no such part")
    adapters = LoadedAdapters(inner)
    adapters.load("tuned", folder, tensors_sha256=tensors_sha256)
    if not adapters.is_lora("tuned"):
        raise AdapterError(f"adapter in {folder} is no LoRA adapter; an encoder takes no other kind")
    adapters.activate("tuned")
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in inner.named_modules() if isinstance(layer, BaseTunerLayer)
    ]
    for name, layer in layers:
        layer.merge()
        inner.set_submodule(name, layer.get_base_layer())
    inner.__dict__.pop("peft_config", None)
