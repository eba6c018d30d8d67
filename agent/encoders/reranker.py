"""Rerankers: cross-encoders read query and passage together, slower than two vectors and often more accurate.

Optional: none is packaged. If the settings name one, it orders the best results of a search.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from agent.errors import MemoryIndexError

RERANKED = 20
"""Results that are reranked: the first ones in the order of the search."""


class Reranker(Protocol):
    """Scores how well texts answer a query."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return a score per text, higher is better. Safe to call from several threads."""
        ...


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers from a local folder, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load the model. Raises MemoryIndexError if the folder holds no cross-encoder with a single score."""
        from agent.llm.weights.convert import hide_progress_bars

        try:
            with hide_progress_bars():
                from sentence_transformers import CrossEncoder

                self._model: Any = CrossEncoder(
                    str(folder),
                    num_labels=1,
                    device="cpu",
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, RuntimeError) as fault:
            raise MemoryIndexError(
                f"the reranker in {folder} cannot be loaded ({fault}); name the folder of a cross-encoder with one "
                "score, with its weights in safetensors"
            ) from fault
        # The fast tokenizer cannot be used by two threads at once.
        self._tokenizer_lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        pairs = [(query, text) for text in texts]
        with self._tokenizer_lock:
            scores = self._model.predict(pairs, show_progress_bar=False)
        return [float(score) for score in scores]
