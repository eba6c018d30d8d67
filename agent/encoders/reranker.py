"""A cross-encoder reads a question and a passage together: slower than two vectors, and often a better judge.

Optional: none is packaged. Where one is named, it orders the best passages that the search found.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from agent.errors import MemoryIndexError
from agent.util.threads import in_own_team

RERANKED = 20
"""Passages that are read with the question: the first of the search's own order."""


class Reranker(Protocol):
    """Says how well texts answer a query."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One number for each text, higher is better. Safe to call from several threads."""
        ...


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers from a local folder, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Loads at once. Raises MemoryIndexError on a folder that holds none."""
        from agent.llm.weights.convert import quiet

        def load() -> Any:
            from sentence_transformers import CrossEncoder

            return CrossEncoder(
                str(folder),
                num_labels=1,
                device="cpu",
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )

        try:
            with quiet():
                self._model = in_own_team(load)
        except (OSError, ValueError, KeyError, RuntimeError) as fault:
            raise MemoryIndexError(
                f"the reranker in {folder} cannot be loaded ({fault}); name the folder of a cross-encoder with one "
                "score, with its weights in safetensors"
            ) from fault
        # The fast tokenizer refuses two threads at once.
        self._one_at_a_time = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        pairs = [(query, text) for text in texts]
        with self._one_at_a_time:
            found = in_own_team(lambda: self._model.predict(pairs, show_progress_bar=False))
        return [float(score) for score in found]
