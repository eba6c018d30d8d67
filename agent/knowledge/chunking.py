"""Splits documents into chunks: parts short enough to embed, each with the headings above it.

Text is split at headings, then at paragraphs, lines, sentences and words. Table rows stay whole as long as they fit,
and every chunk of a table begins with the table's header.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent.knowledge.folders import FRONT_MATTER, Document
from agent.knowledge.formats import HEADING
from agent.text.sentences import split_line

TokenCounter = Callable[[str], int]


@dataclass(frozen=True)
class Chunk:
    """A part of a document."""

    id: str
    """16 hexadecimal digits, the same for the same document name, heading and text."""
    document: str
    heading: str
    """Headings from the top down, joined by ` > `; empty above the first heading."""
    ordinal: int
    """Position in the document, from 0."""
    text: str

    @property
    def embedded_text(self) -> str:
        """What the encoder reads: the headings give the chunk its context."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens of a text from its words and characters; each CJK character counts as one."""
    wide = len(_WIDE.findall(text))
    narrow = len(text) - wide
    return wide + max(len(text.split()) if not wide else 0, (narrow + 3) // 4)


def split(
    document: Document, *, chunk_tokens: int = 160, count_tokens: TokenCounter = estimate_tokens
) -> tuple[Chunk, ...]:
    """Split a document into chunks. Text that recurs under the same heading becomes one chunk.

    Args:
        chunk_tokens: Maximum length of a chunk's text; its headings do not count.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, expected at least 1")
    chunks: dict[str, Chunk] = {}
    for heading, body in _sections(document):
        for text in _pack_paragraphs(body, chunk_tokens, count_tokens):
            key = chunk_id(document.name, heading, text)
            chunks.setdefault(key, Chunk(key, document.name, heading, len(chunks), text))
    return tuple(chunks.values())


def chunk_id(document: str, heading: str, text: str) -> str:
    return hashlib.sha256("\0".join((document, heading, text)).encode()).hexdigest()[:16]


_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uff00-\uffef\u3000-\u303f]")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_NOT_PARAGRAPH = re.compile(r"^\s*(?:[-*+>|]|\d+[.)]|$)")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?$")
_CLAUSE_END = re.compile("(?<=\uff1b)")
"""Chinese sentences can be long: the full-width semicolon separates them as well."""


def _sections(document: Document) -> Iterator[tuple[str, str]]:
    """Iterate over heading path and text of sections with text; if none has text, the last heading is the text."""
    if not document.markdown:
        yield "", document.text
        return
    text, path = document.text, list[tuple[int, str]]()
    front = FRONT_MATTER.match(text)
    if front:
        text = text[front.end() :]
        title = _FRONT_TITLE.search(front[1])
        if title:
            path.append((0, title[1].strip("\"'")))
    any_text, body = False, list[str]()
    for line, heading in _headings(text.split("\n")):
        if heading is None:
            body.append(line)
            continue
        joined = "\n".join(body)
        if joined.strip():
            any_text = True
            yield _joined(path), joined
        level, title_text = heading
        # A front matter title equal to the first heading is not repeated.
        while path and (path[-1][0] >= level or path[-1] == (0, title_text)):
            path.pop()
        if title_text:
            path.append((level, title_text))
        body = []
    joined = "\n".join(body)
    if joined.strip():
        yield _joined(path), joined
    elif not any_text and path:
        yield _joined(path[:-1]), path[-1][1]


def _joined(path: Sequence[tuple[int, str]]) -> str:
    return " > ".join(title for _, title in path)


def _headings(lines: Sequence[str]) -> Iterator[tuple[str, tuple[int, str] | None]]:
    """Iterate over lines, with level and text of those that are headings. Lines of fenced code are not."""
    fence = ""
    position = 0
    while position < len(lines):
        line = lines[position]
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
            yield line, None
        elif mark:
            fence = mark[1]
            yield line, None
        elif atx := HEADING.match(line):
            yield line, (len(atx[1]), " ".join((atx[2] or "").split()))
        elif _is_underlined(lines, position):
            yield line, (1 if "=" in lines[position + 1] else 2, " ".join(line.split()))
            position += 1
        else:
            yield line, None
        position += 1


def _is_underlined(lines: Sequence[str], position: int) -> bool:
    if position + 1 >= len(lines) or not _UNDERLINE.match(lines[position + 1]):
        return False
    starts_paragraph = position == 0 or not lines[position - 1].strip()
    return starts_paragraph and not _NOT_PARAGRAPH.match(lines[position]) and "|" not in lines[position]


def _pack_paragraphs(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    yield from _pack(_paragraphs(text), "\n\n", limit, count, _pack_lines)


def _paragraphs(text: str) -> list[str]:
    """Split at blank lines, but not inside fenced code."""
    paragraphs: list[list[str]] = [[]]
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if line.strip() or fence:
            paragraphs[-1].append(line.rstrip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(lines) for lines in paragraphs if lines]


def _pack_lines(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 3 or not _RULE.match(lines[1]) or "|" not in lines[0]:
        yield from _pack(lines, "\n", limit, count, _pack_sentences)
        return
    header = "\n".join(lines[:2])
    room = max(1, limit - count(header))
    for rows in _pack(lines[2:], "\n", room, count, _pack_sentences):
        yield f"{header}\n{rows}"


def _pack_sentences(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    sentences = (clause for sentence in split_line(text) for clause in _CLAUSE_END.split(sentence))
    parts = [sentence for sentence in sentences if sentence.strip()]
    yield from _pack(parts, "" if _WIDE.search(text) else " ", limit, count, _pack_words)


def _pack_words(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    yield from _pack(text.split(), " ", limit, count, _halves)


def _halves(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    if len(text) < 2 or count(text) <= limit:
        yield text
        return
    middle = len(text) // 2
    yield from _halves(text[:middle], limit, count)
    yield from _halves(text[middle:], limit, count)


def _pack(
    parts: Sequence[str],
    separator: str,
    limit: int,
    count: TokenCounter,
    finer: Callable[[str, int, TokenCounter], Iterator[str]],
) -> Iterator[str]:
    """Join consecutive parts while they fit; `finer` splits a part that does not fit alone."""
    current = ""
    for part in parts:
        joined = f"{current}{separator}{part}" if current else part
        if count(joined) <= limit:
            current = joined
            continue
        if current:
            yield current.strip()
        current = ""
        if count(part) <= limit:
            current = part
        else:
            yield from finer(part, limit, count)
    if current.strip():
        yield current.strip()
