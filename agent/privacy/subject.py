"""The person whose data is searched for: matching an id, an address or a name in texts and values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agent.errors import RatchetError


@dataclass(frozen=True)
class Subject:
    """A person, by an id, an e-mail address or a name."""

    id: str

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.id):
            raise RatchetError(f"the subject {self.id!r} has no letter and no digit; give an id, an address or a name")

    def equals(self, value: Any) -> bool:
        """Return whether a value, or an item of a list, is the ID."""
        if isinstance(value, list | tuple):
            return any(map(self.equals, value))
        return _normal(str(value)).casefold().split() == _normal(self.id).casefold().split()

    def is_in(self, value: Any) -> bool:
        """Return whether a text or number anywhere in a JSON value contains the ID as a whole word."""
        if isinstance(value, str):
            return self._pattern.search(_normal(value)) is not None
        if isinstance(value, Mapping):
            return any(self.is_in(part) for pair in value.items() for part in pair)
        if isinstance(value, list | tuple):
            return any(map(self.is_in, value))
        return isinstance(value, int | float) and not isinstance(value, bool) and self.is_in(str(value))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = r"\s+".join(map(re.escape, _normal(self.id).split()))
        # jane@shop.example is neither mary.jane@shop.example nor jane@shop.example.org.
        before, after = (r"(?<!\w[.+%-])", r"(?![.-]\w)") if "@" in self.id else ("", "")
        return re.compile(rf"(?<!\w){before}{words}(?!\w){after}", re.IGNORECASE)


def _normal(text: str) -> str:
    """The composed form of letters that have two spellings."""
    return unicodedata.normalize("NFC", text)
