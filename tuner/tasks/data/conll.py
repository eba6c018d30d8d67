"""Words in columns, one a line, a blank line between sentences: the CoNLL formats, with any number of columns.

Tables that hold a word a row and say in a column which sentence it is of are read to the same end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns, Guess, Say, find_maybe
from tuner.tasks.data.names import KNOWN
from tuner.tasks.data.records import Tagged
from tuner.tasks.data.schemes import to_iob2
from tuner.tasks.data.sources import Row
from tuner.tasks.data.words import join_words

DOCUMENT = "-DOCSTART-"


def fits(text: str) -> bool:
    """Whether a file that is called a table is none: it has blank lines between others, and no names of columns."""
    cells = _cells(text.lstrip("\n").partition("\n")[0])
    return "\n\n" in text.strip("\n") and len(cells) > 1 and not any(cell.lower() in KNOWN for cell in cells)


def by_sentence(rows: Sequence[Row], columns: Columns, file: str, say: Say) -> list[Row]:
    """A row with `words` and `tags` for each sentence, of rows that hold a word each; empty where they do not.

    A sentence begins where its column says another one; below its first row that may be left empty.
    """
    word = find_maybe(rows, "word", columns.text, file)
    tag = find_maybe(rows, "tag", columns.label, file)
    number = find_maybe(rows, "sentence", None, file)
    if word is None or tag is None or number is None or len({word, tag, number}) < 3:
        return []
    # A sentence a row has tags with spaces between, or spans, where this has one tag.
    if not all(isinstance(row.values[tag], str) and len(row.values[tag].split()) <= 1 for row in rows):
        return []
    told = f"a word a row; word is column {word!r}, tag is column {tag!r}, sentence is column {number!r}"
    say(Guess(file, told, "by name", "--text, --label"))
    found: list[list[Row]] = []
    last = None
    for row in rows:
        own = str(row.values[number] if row.values[number] is not None else "").strip()
        if not found or (own and own != last):
            found.append([])
            last = own
        if not str(row.values[word] or "").strip():
            raise DatasetError(f"{row.source}: no word in column {word!r}; remove the row")
        found[-1].append(row)
    return [
        Row(
            {"words": [str(one.values[word]).strip() for one in many], "tags": [str(one.values[tag]) for one in many]},
            many[0].source,
        )
        for many in found
    ]


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
