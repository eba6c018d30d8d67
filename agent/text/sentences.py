"""Texts cut into sentences, English and Chinese alike, in one place: what is quoted is what an answer is checked by.

A sentence ends at `.`, `!` or `?` before a space, or at the full-width ones, with the quotation marks and brackets that
close it. Known are a few abbreviations; behind any other the sentence is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+|#>]|\d+[.)])\s)")
"""Between paragraphs, and before an element of a list or a line of a table."""
_MARK = re.compile(r"(?:[-*+>]|#{1,6})\s+")
"""What makes a line an element of a list, a heading or a quotation."""
_CLOSING = r"\"'\u201d\u2019"
_END = re.compile(rf"[.!?]+([{_CLOSING})\]]*)(?=\s)|[\u3002\uff01\uff1f]+[{_CLOSING}\u300d\u300f\uff09\u3011]*")
_SHORTENED = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|approx|e\.g|i\.e)|\b[A-Z]\.[A-Z])\.$")
_NUMBERED = re.compile(r"\b(?:[Nn]o|[Ff]ig|p|pp)\.$")
"""Shortened where a number follows, else a sentence's last word."""


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text in paragraphs, their spaces evened out; what holds no letter or digit is none."""
    return _cut(_BLOCK.split(text))


def sentences_by_line(text: str) -> Iterator[str]:
    """The sentences of a text in which every line stands for itself."""
    return _cut(text.splitlines())


def _cut(blocks: Sequence[str]) -> Iterator[str]:
    for block in blocks:
        line = " ".join(block.split())
        mark = _MARK.match(line)
        for sentence in _ended(line[mark.end() :] if mark else line):
            if any(character.isalnum() for character in sentence):
                yield sentence


def _ended(line: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(line):
        following = line[end.end() :].lstrip()
        said = line[start : end.end()]
        if end[1] and following[:1].islower():
            continue  # a quotation in the middle of a sentence
        if _SHORTENED.search(said) or (_NUMBERED.search(said) and following[:1].isdigit()):
            continue
        yield said
        start = end.end() + len(line[end.end() :]) - len(following)
    yield line[start:]
