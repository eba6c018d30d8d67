"""Reads words in columns, one per line, with a blank line between sentences: the CoNLL formats, any number of columns.

Tables with one word per row and a column that numbers the sentences give the same examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.errors import DatasetError
from tuner.tasks.data.columns import ColumnGuess, Columns, Say, find_column
from tuner.tasks.data.names import COLUMN_NAMES
from tuner.tasks.data.records import TagExample
from tuner.tasks.data.schemes import to_iob2
from tuner.tasks.data.sources import TableRow
from tuner.tasks.data.words import join_words

DOCUMENT = "-DOCSTART-"


def is_conll(text: str) -> bool:
    """Whether a file with a table's ending is in a CoNLL format: blank lines between others, and no column names."""
    cells = _cells(text.lstrip("\n").partition("\n")[0])
    return "\n\n" in text.strip("\n") and len(cells) > 1 and not any(cell.lower() in COLUMN_NAMES for cell in cells)


def rows_by_sentence(rows: Sequence[TableRow], columns: Columns, file: str, say: Say) -> list[TableRow]:
    """Group rows with one word each into one row per sentence, with `words` and `tags`; empty for other tables.

    A sentence begins where its column changes; the column may be empty below the first row of a sentence.
    """
    word = find_column(rows, "word", columns.text, file)
    tag = find_column(rows, "tag", columns.label, file)
    number = find_column(rows, "sentence", None, file)
    if word is None or tag is None or number is None or len({word, tag, number}) < 3:
        return []
    # A table with one sentence per row has spans or several tags, separated by spaces, where this has one tag.
    if not all(isinstance(row.values[tag], str) and len(row.values[tag].split()) <= 1 for row in rows):
        return []
    guess = f"a word a row; word is column {word!r}, tag is column {tag!r}, sentence is column {number!r}"
    say(ColumnGuess(file, guess, "by name", "--text, --label"))
    sentences: list[list[TableRow]] = []
    last = None
    for row in rows:
        own = str(row.values[number] if row.values[number] is not None else "").strip()
        if not sentences or (own and own != last):
            sentences.append([])
            last = own
        if not str(row.values[word] or "").strip():
            raise DatasetError(f"{row.source}: no word in column {word!r}; remove the row")
        sentences[-1].append(row)
    return [
        TableRow(
            {
                "words": [str(row.values[word]).strip() for row in group],
                "tags": [str(row.values[tag]) for row in group],
            },
            group[0].source,
        )
        for group in sentences
    ]


def parse_conll(text: str, file: str, *, word: str | None = None, tag: str | None = None) -> Iterator[TagExample]:
    """Read sentences with IOB2 tags, without `-DOCSTART-` lines and comments.

    Args:
        word: Number of the column of words, from 1; the first column by default.
        tag: Number of the column of tags, from 1; the last column by default.

    Raises:
        DatasetError: A line is malformed or has an unknown tag; the message has file, line and reason.
    """
    lines = text.split("\n")
    width = _width(lines)
    word_place, tag_place = _column_index(word, 0, width, file), _column_index(tag, width - 1, width, file)
    if word_place == tag_place:
        raise DatasetError(f"{file} has one column of text; expected words and their tags in columns")
    words: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate([*lines, ""], 1):
        cells = _cells(line)
        if not line.strip() or cells[0] == DOCUMENT:
            if words:
                yield _sentence_at(words, tags, file, numbers)
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


def make_sentence(words: Sequence[str], tags: Sequence[str], source: str) -> TagExample:
    """Join words to a text with IOB2 tags. Raises ValueError where there are no words, or not one tag per word."""
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words and {len(tags)} tags; expected one tag a word")
    if not words:
        raise ValueError("no words; every row needs some")
    text, offsets = join_words(words)
    return TagExample(text, offsets, to_iob2(tags), source)


def _sentence_at(words: Sequence[str], tags: Sequence[str], file: str, numbers: Sequence[int]) -> TagExample:
    try:
        return make_sentence(words, tags, f"{file}:{numbers[0]}")
    except ValueError as fault:
        wrong = (number for number, tag in zip(numbers, tags, strict=True) if str(fault).startswith(repr(tag)))
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


def _column_index(named: str | None, default: int, width: int, file: str) -> int:
    if named is None:
        return default
    if not named.isdecimal() or not 1 <= int(named) <= width:
        raise DatasetError(f"{file} has {width} columns; expected a number from 1 to {width}, found {named!r}")
    return int(named) - 1
