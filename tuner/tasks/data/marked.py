"""Reads texts with two marked entities in the format of SemEval-2010 task 8: `<e1>…</e1>` and `<e2>…</e2>`.

A numbered text in quotes, a line with the relation, an optional comment, and a blank line.
Source: Hendrickx et al., "SemEval-2010 Task 8: Multi-Way Classification of Semantic Relations" (2010).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.errors import DatasetError
from tuner.tasks.data.records import RelateExample

_TAG = re.compile(r"</?e[12]>")
_COMMENT = "Comment"
_NUMBERED = re.compile(r'\d+\s+"?(.*?)"?\s*')


def is_marked_text(text: str) -> bool:
    """Whether a file is in this format."""
    return _NUMBERED.fullmatch(text.lstrip().split("\n", 1)[0]) is not None and "<e1>" in text


def parse_marked_file(text: str, file: str) -> Iterator[RelateExample]:
    """Read the examples of a file. Raises DatasetError with file, line and reason."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(_COMMENT) or ("<e1>" not in line and "<e2>" not in line):
            continue
        source = f"{file}:{number + 1}"
        label = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if not label or "<e1>" in label:
            raise DatasetError(f"{source}: no relation in the line below; expected its name")
        match = _NUMBERED.fullmatch(line)
        try:
            yield parse_marked_text(line.strip() if match is None else match.group(1), label, source)
        except ValueError as fault:
            raise DatasetError(f"{source}: {fault}") from None


def parse_marked_text(text: str, label: str, source: str = "") -> RelateExample:
    """Remove the marks from a text. Raises ValueError unless both pairs of marks are there once, with text between."""
    places: dict[str, int] = {}
    parts: list[str] = []
    length = last = 0
    for mark in _TAG.finditer(text):
        parts.append(text[last : mark.start()])
        length += mark.start() - last
        last = mark.end()
        if mark.group() in places:
            raise ValueError(f"{mark.group()} is there twice; expected it once")
        places[mark.group()] = length
    parts.append(text[last:])
    spans = []
    for name in ("e1", "e2"):
        start, end = places.get(f"<{name}>", -1), places.get(f"</{name}>", -1)
        if not 0 <= start < end:
            raise ValueError(f"no <{name}>…</{name}> with text between; expected two marked entities")
        spans.append((start, end))
    return RelateExample("".join(parts), spans[0], spans[1], label, source)
