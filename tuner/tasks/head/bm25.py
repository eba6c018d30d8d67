"""How well texts match a query by the words that they share (BM25; Robertson and Zaragoza, 2009)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SATURATION = 1.2
"""How soon a term that is there again and again says nothing more; k1."""
LENGTH = 0.75
"""How far a long text is held against its terms; b."""


def bm25(query: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """A score for each text, of token ids; a term counts more the fewer of these texts have it."""
    terms = dict.fromkeys(query)
    counts = [Counter(text) for text in texts]
    having = {term: sum(term in count for count in counts) for term in terms}
    rarity = {term: math.log(1 + (len(texts) - held + 0.5) / (held + 0.5)) for term, held in having.items()}
    mean = sum(map(len, texts)) / max(1, len(texts))

    def of(count: Counter[int], length: int) -> float:
        norm = SATURATION * (1 - LENGTH + LENGTH * length / mean) if mean else 0.0
        shared = (term for term in terms if count[term])
        return sum(rarity[term] * count[term] * (SATURATION + 1) / (count[term] + norm) for term in shared)

    return [of(count, len(text)) for count, text in zip(counts, texts, strict=True)]
