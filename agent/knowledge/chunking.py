"""A document's text becomes chunks: pieces short enough to embed, each with the headings above it.

Cut is at headings, then at paragraphs, lines, sentences and words. Rows of a table stay whole as long as they fit,
and every piece of a table begins with its header.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent.knowledge.folders import FRONT_MATTER, Document
from agent.knowledge.formats import HEADING

TokenCounter = Callable[[str], int]


@dataclass(frozen=True)
class Chunk:
    """A piece of a document."""

    id: str
    """16 hexadecimal digits, the same for the same document name, heading and text."""
    document: str
    heading: str
    """Headings from the top down, joined by ` > `; empty above the first one."""
    ordinal: int
    """Place in the document, from 0."""
    text: str

    @property
    def embedded_text(self) -> str:
        """What the encoder reads: the headings say what the piece is about."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def estimate_tokens(text: str) -> int:
    """About how many tokens a model makes of `text`: by words, by characters, and one for each CJK sign."""
    wide = len(_WIDE.findall(text))
    narrow = len(text) - wide
    return wide + max(len(text.split()) if not wide else 0, (narrow + 3) // 4)


def split(
    document: Document, *, chunk_tokens: int = 160, count_tokens: TokenCounter = estimate_tokens
) -> tuple[Chunk, ...]:
    """Cut a document at its headings, and what is still longer than `chunk_tokens` at paragraphs, lines,
    sentences, words. The headings carried along are not counted. A piece that recurs under the same heading
    is kept once."""
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, expected at least 1")
    chunks: dict[str, Chunk] = {}
    for heading, body in _sections(document):
        for text in _pieces(body, chunk_tokens, count_tokens):
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
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f\uff1b])")


def _sections(document: Document) -> Iterator[tuple[str, str]]:
    """Heading path and text of every section that has text; of the last headings when none has."""
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
        # A front matter title equal to the first heading is said once.
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
    """Every line, with the level and words of the heading it is; fenced code holds no headings."""
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
    alone = position == 0 or not lines[position - 1].strip()
    return alone and not _NOT_PARAGRAPH.match(lines[position]) and "|" not in lines[position]


def _pieces(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    """Paragraphs packed up to the limit."""
    yield from _packed(_paragraphs(text), "\n\n", limit, count, _lines)


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


def _lines(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 3 or not _RULE.match(lines[1]) or "|" not in lines[0]:
        yield from _packed(lines, "\n", limit, count, _sentences)
        return
    header = "\n".join(lines[:2])
    room = max(1, limit - count(header))
    for rows in _packed(lines[2:], "\n", room, count, _sentences):
        yield f"{header}\n{rows}"


def _sentences(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    parts = [part for part in _SENTENCE_END.split(text) if part and part.strip()]
    yield from _packed(parts, "" if _WIDE.search(text) else " ", limit, count, _words)


def _words(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    yield from _packed(text.split(), " ", limit, count, _halves)


def _halves(text: str, limit: int, count: TokenCounter) -> Iterator[str]:
    if len(text) < 2 or count(text) <= limit:
        yield text
        return
    middle = len(text) // 2
    yield from _halves(text[:middle], limit, count)
    yield from _halves(text[middle:], limit, count)


def _packed(
    parts: Sequence[str],
    joint: str,
    limit: int,
    count: TokenCounter,
    finer: Callable[[str, int, TokenCounter], Iterator[str]],
) -> Iterator[str]:
    """Join neighbours while they fit; what does not fit alone is cut finer."""
    held = ""
    for part in parts:
        joined = f"{held}{joint}{part}" if held else part
        if count(joined) <= limit:
            held = joined
            continue
        if held:
            yield held.strip()
        held = ""
        if count(part) <= limit:
            held = part
        else:
            yield from finer(part, limit, count)
    if held.strip():
        yield held.strip()
