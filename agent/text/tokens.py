"""TODO: agent/text/tokens.py"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)


_RUN = re.compile(f"[{_DENSE}]+")


_TERM = re.compile(f"[{_DENSE}]+|(?:(?![{_DENSE}])\\w)+")


def segmented(text: str) -> str:
    """The text with runs of characters without spaces cut into pairs; the last character stands alone as well."""
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", normal(text))


def terms(text: str) -> list[str]:
    """Its words in lower case and its pairs of characters, in their order and as often as they stand there."""
    found: list[str] = []
    for part in _TERM.findall(normal(text)):
        if _RUN.fullmatch(part) and len(part) > 1:
            found.extend(_pairs(part))
        else:
            found.append(part.lower())
    return found


def normal(text: str) -> str:
    """Full-width letters and digits as the plain ones they mean."""
    return unicodedata.normalize("NFKC", text)


def _grams(run: str) -> list[str]:
    return [*_pairs(run), *run]


def _pairs(run: str) -> Iterator[str]:
    return (run[start : start + 2] for start in range(len(run) - 1))
