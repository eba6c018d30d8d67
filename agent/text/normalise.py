"""Normalises the texts of tasks, so that two of the same wording compare as equal and embed alike."""

from __future__ import annotations

import re

MAX_TEXT = 160
"""Characters that a normalised text has at most."""

SAME_SCORE = 0.95
"""Cosine from which two texts count as the same wording."""


def normalise_task(text: str) -> str:
    """Put a task's text on one line, mask numbers of three and more digits, and truncate it to `MAX_TEXT` characters.

    Long numbers are identifiers mostly: which order is meant does not change what is requested.
    """
    line = " ".join(re.sub(r"\d{3,}", "#", text).split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"
