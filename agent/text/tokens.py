"""Splits text into words; scripts without spaces between words into overlapping pairs of characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_UNSPACED_CHARACTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)

UNSPACED = re.compile(f"[{_UNSPACED_CHARACTERS}]+")
"""A run of characters of a script without spaces: Chinese, Japanese, Korean, Thai and their neighbours."""

WORD = re.compile(f"[{_UNSPACED_CHARACTERS}]+|(?:(?![{_UNSPACED_CHARACTERS}])\\w)+")
"""A run of such characters, or a word of any other script."""


def tokenize(text: str) -> list[str]:
    """Return the words in lower case and the pairs of characters, in order and with repetitions."""
    tokens: list[str] = []
    for word in WORD.findall(normal(text)):
        if UNSPACED.fullmatch(word) and len(word) > 1:
            tokens.extend(bigrams(word))
        else:
            tokens.append(word.lower())
    return tokens


def bigrams(run: str) -> Iterator[str]:
    """Iterate over the overlapping pairs of characters."""
    return (run[start : start + 2] for start in range(len(run) - 1))


def normal(text: str) -> str:
    """Apply Unicode normalisation NFKC, which turns full-width letters and digits into plain ones."""
    return unicodedata.normalize("NFKC", text)
