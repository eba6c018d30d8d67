"""Text in words, and spans of characters as tags of words and back.

A word is a run of letters and digits, or one character that is neither; scripts without spaces go character by
character. Words never overlap, and together they hold every character but white space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from tuner.tasks.data.records import Span, Tagged
from tuner.tasks.data.schemes import chunks, from_chunks

_UNSPACED = "\u2e80-\u2fdf\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    """Where the words of a text stand, in characters."""
    return tuple(match.span() for match in _WORD.finditer(text))


def join_words(words: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Words as a text, with their places; no space goes between two that are written without."""
    parts: list[str] = []
    offsets = []
    length = 0
    for place, word in enumerate(words):
        if place and not (is_unspaced(words[place - 1][-1:]) and is_unspaced(word[:1])):
            parts.append(" ")
            length += 1
        parts.append(word)
        offsets.append((length, length + len(word)))
        length += len(word)
    return "".join(parts), tuple(offsets)


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces."""
    return bool(character) and _IS_UNSPACED.match(character) is not None


def tagged(text: str, spans: Sequence[Span], source: str = "") -> Tagged:
    """A text whose words are cut at the spans' ends, so that each span is whole words.

    Raises ValueError for a span that is empty, outside the text or overlaps another.
    """
    cuts = {0, len(text)}
    before = 0
    for span in sorted(spans, key=lambda one: (one.start, one.end)):
        if not 0 <= span.start < span.end <= len(text) or not text[span.start : span.end].strip():
            raise ValueError(f"span {span.start}-{span.end} is empty or outside of a text of {len(text)} characters")
        if span.start < before:
            raise ValueError(f"span {span.start}-{span.end} overlaps the one that ends at {before}; keep one of them")
        before = span.end
        cuts |= {span.start, span.end}
    edges = sorted(cuts)
    offsets = tuple(
        (start + left, start + right) for start, end in pairwise(edges) for left, right in split_words(text[start:end])
    )
    found = []
    for span in spans:
        inside = [place for place, (start, end) in enumerate(offsets) if span.start <= start and end <= span.end]
        found.append((span.label, inside[0], inside[-1] + 1))
    return Tagged(text, offsets, from_chunks(found, len(offsets)), source)


def spans_of(offsets: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
    """The chunks of tags as stretches of the text that the words stand in."""
    return [Span(offsets[first][0], offsets[end - 1][1], kind) for kind, first, end in chunks(tags)]
