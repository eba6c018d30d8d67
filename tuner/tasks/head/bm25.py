"""Ranks texts by the words they share with a query (BM25).

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SATURATION = 1.2
"""k1: how soon further occurrences of a term stop adding to the score."""
LENGTH = 0.75
"""b: how much the length of a text lowers the weight of its terms."""


def bm25(query: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """Return a score for each text, given as token ids; terms that fewer of these texts have count more."""
    terms = dict.fromkeys(query)
    counts = [Counter(text) for text in texts]
    texts_with = {term: sum(term in count for count in counts) for term in terms}
    rarity = {
        term: math.log(1 + (len(texts) - with_term + 0.5) / (with_term + 0.5)) for term, with_term in texts_with.items()
    }
    mean = sum(map(len, texts)) / max(1, len(texts))

    def score(count: Counter[int], length: int) -> float:
        norm = SATURATION * (1 - LENGTH + LENGTH * length / mean) if mean else 0.0
        shared = (term for term in terms if count[term])
        return sum(rarity[term] * count[term] * (SATURATION + 1) / (count[term] + norm) for term in shared)

    return [score(count, len(text)) for count, text in zip(counts, texts, strict=True)]
