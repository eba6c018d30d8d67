"""Texts with two marked entities, as SemEval-2010 task 8 has them: `<e1>…</e1>` and `<e2>…</e2>`.

A numbered text in quotes, a line with the relation, perhaps a comment, and a blank line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.errors import DatasetError
from tuner.tasks.data.records import Related

_TAG = re.compile(r"</?e[12]>")
_COMMENT = "Comment"
_NUMBERED = re.compile(r'\d+\s+"?(.*?)"?\s*')


def fits(text: str) -> bool:
    """Whether a file is of this format."""
    return _NUMBERED.fullmatch(text.lstrip().split("\n", 1)[0]) is not None and "<e1>" in text


def parse(text: str, file: str) -> Iterator[Related]:
    """The examples of a file. Raises DatasetError with file, line and reason."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(_COMMENT) or ("<e1>" not in line and "<e2>" not in line):
            continue
        source = f"{file}:{number + 1}"
        label = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if not label or "<e1>" in label:
            raise DatasetError(f"{source}: no relation in the line below; expected its name")
        found = _NUMBERED.fullmatch(line)
        try:
            yield related(line.strip() if found is None else found.group(1), label, source)
        except ValueError as fault:
            raise DatasetError(f"{source}: {fault}") from None


def related(text: str, label: str, source: str = "") -> Related:
    """A marked text without its marks. Raises ValueError unless each of the four stands there once, in pairs."""
    places: dict[str, int] = {}
    parts: list[str] = []
    length = last = 0
    for mark in _TAG.finditer(text):
        parts.append(text[last : mark.start()])
        length += mark.start() - last
        last = mark.end()
        if mark.group() in places:
            raise ValueError(f"{mark.group()} stands there twice; expected it once")
        places[mark.group()] = length
    parts.append(text[last:])
    spans = []
    for name in ("e1", "e2"):
        start, end = places.get(f"<{name}>", -1), places.get(f"</{name}>", -1)
        if not 0 <= start < end:
            raise ValueError(f"no <{name}>…</{name}> with something between; expected two marked entities")
        spans.append((start, end))
    return Related("".join(parts), spans[0], spans[1], label, source)
