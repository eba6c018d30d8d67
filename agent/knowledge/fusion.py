"""Fuses the cosines and the BM25 scores of a search into one ranking, and detects near-duplicates.

A chunk's score is a weighted sum of its cosine and its BM25 divided by the best BM25 of the search. Scores are used
rather than ranks, since the distance between results carries information. Source: Bruch, Gai and Ingber, "An analysis
of fusion functions for hybrid retrieval" (2023), whose weight for meaning is about the same on other data sets. As
there, all candidates need both scores: a chunk that only the vectors retrieved may contain the words too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

MEANING = 0.8
"""Weight of the cosine if all of the query is in the encoder's vocabulary; the words have the rest."""
ALIKE = 0.9
"""Share of word trigrams that near-duplicates have in common."""


def fuse(by_meaning: Mapping[str, float], by_words: Mapping[str, float], *, coverage: float = 1.0) -> list[str]:
    """Rank all ids, best first.

    Args:
        by_meaning: The cosine of every candidate.
        by_words: The BM25 of the candidates that contain words of the query.
        coverage: The share of the query that is in the encoder's vocabulary, 0 to 1; scales the weight of the cosine.
    """
    weight = MEANING * coverage
    best = max(by_words.values(), default=0.0)
    scores = {key: weight * cosine for key, cosine in by_meaning.items()}
    if best > 0:
        for key, score in by_words.items():
            scores[key] = scores.get(key, 0.0) + (1.0 - weight) * score / best
    return sorted(scores, key=lambda key: (-scores[key], key))


def is_near_duplicate(text: str, other: str) -> bool:
    """Return whether two texts have nearly the same words, and exactly the same numbers."""
    numbers, trigrams = _fingerprint(text)
    other_numbers, other_trigrams = _fingerprint(other)
    return numbers == other_numbers and len(trigrams & other_trigrams) >= ALIKE * len(trigrams | other_trigrams)


@lru_cache(maxsize=256)
def _fingerprint(text: str) -> tuple[tuple[str, ...], frozenset[tuple[str, ...]]]:
    """Return a text's numbers and word trigrams. Cached, since each text is compared with many others."""
    words = re.findall(r"\w+", text.lower())
    trigrams = frozenset(tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2)))
    return tuple(re.findall(r"\d+", text)), trigrams
