"""Splits text into sentences, English and Chinese alike. Quoting and checking answers use the same split.

A sentence ends at `.`, `!` or `?` before whitespace, or at a full-width mark, together with the closing quotation marks
and brackets. A few abbreviations are known; after any other the text is split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+|#>]|\d+[.)])\s)")
"""Between paragraphs, and before a list item or a table row."""
_MARK = re.compile(r"(?:[-*+>]|#{1,6})\s+")
"""Starts a list item, a heading or a block quotation."""
_CLOSING = r"\"'\u201d\u2019"
_END = re.compile(rf"[.!?]+([{_CLOSING})\]]*)(?=\s)|[\u3002\uff01\uff1f]+[{_CLOSING}\u300d\u300f\uff09\u3011]*")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|approx|e\.g|i\.e)|\b[A-Z]\.[A-Z])\.$")
_BEFORE_NUMBER = re.compile(r"\b(?:[Nn]o|[Ff]ig|p|pp)\.$")
"""Abbreviations only if a number follows."""


def split_sentences(text: str) -> Iterator[str]:
    """Iterate over the sentences of a text in paragraphs, whitespace collapsed. Skips those without letter or digit."""
    return _split_blocks(_BLOCK.split(text))


def split_sentences_by_line(text: str) -> Iterator[str]:
    """Like `split_sentences`, but a sentence ends at each line break too."""
    return _split_blocks(text.splitlines())


def split_line(line: str) -> Iterator[str]:
    """Iterate over the sentences of a single line. Nothing but the whitespace between them is dropped."""
    start = 0
    for end in _END.finditer(line):
        rest = line[end.end() :].lstrip()
        sentence = line[start : end.end()]
        if end[1] and rest[:1].islower():
            continue  # A quotation in the middle of a sentence.
        if _ABBREVIATION.search(sentence) or (_BEFORE_NUMBER.search(sentence) and rest[:1].isdigit()):
            continue
        yield sentence
        start = len(line) - len(rest)
    yield line[start:]


def _split_blocks(blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        line = " ".join(block.split())
        mark = _MARK.match(line)
        for sentence in split_line(line[mark.end() :] if mark else line):
            if any(character.isalnum() for character in sentence):
                yield sentence
