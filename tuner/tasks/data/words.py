"""Splits texts into words, and converts spans of characters to tags of words and back.

A word is a run of letters and digits, or one character that is neither; in scripts without spaces each character is a
word. Words never overlap, and together they cover every character but white space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from tuner.tasks.data.records import Span, TagExample
from tuner.tasks.data.schemes import chunks_to_iob2, find_chunks

_UNSPACED = "\u2e80-\u2fdf\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    """Return the start and end of each word of a text, in characters."""
    return tuple(match.span() for match in _WORD.finditer(text))


def join_words(words: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Join words to a text and return their offsets; words of scripts without spaces are joined without."""
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
    """Whether a character belongs to a script that is written without spaces."""
    return bool(character) and _IS_UNSPACED.match(character) is not None


def tag_words(text: str, spans: Sequence[Span], source: str = "") -> TagExample:
    """Split a text into words that end where spans end, and tag them in IOB2.

    Raises:
        ValueError: A span is empty, outside the text, or overlaps another.
    """
    cuts = {0, len(text)}
    before = 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
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
    chunks = []
    for span in spans:
        inside = [place for place, (start, end) in enumerate(offsets) if span.start <= start and end <= span.end]
        chunks.append((span.label, inside[0], inside[-1] + 1))
    return TagExample(text, offsets, chunks_to_iob2(chunks, len(offsets)), source)


def spans_from_tags(offsets: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
    """Return the chunks of tags as spans of the text, by the offsets of its words."""
    return [Span(offsets[first][0], offsets[end - 1][1], kind) for kind, first, end in find_chunks(tags)]
