"""Words in columns, one a line, a blank line between sentences: the CoNLL formats, with any number of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.errors import DatasetError
from tuner.tasks.data.records import Tagged
from tuner.tasks.data.schemes import to_iob2
from tuner.tasks.data.words import join_words

DOCUMENT = "-DOCSTART-"


def parse(text: str, file: str, *, word: str | None = None, tag: str | None = None) -> Iterator[Tagged]:
    """Sentences in IOB2; the word stands in the first column and the tag in the last, unless numbered from 1.

    `-DOCSTART-` and comments are left out. Raises DatasetError with file, line and reason.
    """
    lines = text.split("\n")
    width = _width(lines)
    word_place, tag_place = _place(word, 0, width, file), _place(tag, width - 1, width, file)
    if word_place == tag_place:
        raise DatasetError(f"{file} has one column of text; expected words and their tags in columns")
    words: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate([*lines, ""], 1):
        cells = _cells(line)
        if not line.strip() or cells[0] == DOCUMENT:
            if words:
                yield _sentence(words, tags, file, numbers)
            words, tags, numbers = [], [], []
            continue
        if len(cells) != width:
            if line.startswith("#"):
                continue
            raise DatasetError(f"{file}:{number}: {len(cells)} columns where the others have {width}; mend the line")
        if not cells[word_place]:
            raise DatasetError(f"{file}:{number}: a tag without a word; remove the line")
        words.append(cells[word_place])
        tags.append(cells[tag_place])
        numbers.append(number)


def sentence(words: Sequence[str], tags: Sequence[str], source: str) -> Tagged:
    """One sentence. Raises ValueError where words and tags do not go together."""
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words and {len(tags)} tags; expected one tag a word")
    if not words:
        raise ValueError("no words; every row needs some")
    text, offsets = join_words(words)
    return Tagged(text, offsets, to_iob2(tags), source)


def _sentence(words: Sequence[str], tags: Sequence[str], file: str, numbers: Sequence[int]) -> Tagged:
    try:
        return sentence(words, tags, f"{file}:{numbers[0]}")
    except ValueError as fault:
        wrong = (at for at, tag in zip(numbers, tags, strict=True) if str(fault).startswith(repr(tag)))
        raise DatasetError(
            f"{file}:{next(wrong, numbers[0])}: {fault}; if the tags are not in the last column, number it from 1 with "
            "--label"
        ) from None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def _width(lines: Sequence[str]) -> int:
    for line in lines:
        cells = _cells(line)
        if line.strip() and cells[0] != DOCUMENT and not line.startswith("# "):
            return len(cells)
    return 1


def _place(named: str | None, default: int, width: int, file: str) -> int:
    if named is None:
        return default
    if not named.isdecimal() or not 1 <= int(named) <= width:
        raise DatasetError(f"{file} has {width} columns; expected a number from 1 to {width}, found {named!r}")
    return int(named) - 1
