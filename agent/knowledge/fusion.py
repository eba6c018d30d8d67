"""Two scores of the same chunks, one by meaning and one by words, become one ranking.

A chunk's score is a weighted sum of its cosine and of its BM25 over the best BM25 of this search. Raw cosines, not
ranks: how far the first is ahead of the second says something. Source: Bruch, Gai and Ingber, "An analysis of fusion
functions for hybrid retrieval" (2023), whose weight for meaning is about the same on sets of their own, and who have
both scores of all candidates: what was found by its meaning is not taken to hold none of the words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

MEANING = 0.8
"""What the cosine counts, where the encoder can read all of the question; the words count the rest."""
ALIKE = 0.9
"""Share of groups of three words that two texts must have in common to say the same."""


def fuse(by_meaning: Mapping[str, float], by_words: Mapping[str, float], *, read: float = 1.0) -> list[str]:
    """All ids, best first. Cosines of all of them; BM25 of those that hold words of the question.

    `read` is the share of the question that the encoder can read: what it cannot read, it knows nothing of.
    """
    weight = MEANING * read
    best = max(by_words.values(), default=0.0)
    scores = {key: weight * cosine for key, cosine in by_meaning.items()}
    if best > 0:
        for key, score in by_words.items():
            scores[key] = scores.get(key, 0.0) + (1.0 - weight) * score / best
    return sorted(scores, key=lambda key: (-scores[key], key))


def alike(one: str, other: str) -> bool:
    """Whether two texts say the same: all but the same words, and the very same numbers."""
    numbers, first = _wording(one)
    others, second = _wording(other)
    return numbers == others and len(first & second) >= ALIKE * len(first | second)


@lru_cache(maxsize=256)
def _wording(text: str) -> tuple[tuple[str, ...], frozenset[tuple[str, ...]]]:
    """Its numbers and its groups of three words. Kept, for each is held against many others."""
    words = re.findall(r"\w+", text.lower())
    groups = frozenset(tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2)))
    return tuple(re.findall(r"\d+", text)), groups
