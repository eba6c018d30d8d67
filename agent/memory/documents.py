"""A folder of documents becomes chunks: pieces short enough to embed, each with the headings above it.

Reads Markdown, plain text and JSON records that hold a text. Every file that is not read is named with its
reason; only hidden files and folders are passed over without a word. Tables, HTML and code inside a document
are kept as the text they are. Not for PDF or office files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import MemoryIndexError

SUFFIXES = (".md", ".markdown", ".txt", ".json")
TITLE_FIELDS = ("title", "name", "heading", "question", "subject")
TEXT_FIELDS = ("content", "text", "body", "answer", "markdown", "description")
MAX_BYTES = 10_000_000
EMPTY = "the file is empty"

TokenCounter = Callable[[str], int]


@dataclass(frozen=True)
class Document:
    """One file's text."""

    name: str
    """Its path inside the folder that was added, with `/`; what an answer cites."""
    text: str
    """Line ends are `\\n`; JSON records are written as Markdown with their title as a heading."""
    sha256: str
    """Of the file's bytes."""
    markdown: bool = True
    """False for plain text, where `#` starts no heading."""


@dataclass(frozen=True)
class Skipped:
    """A file, folder or JSON record that was not read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a folder held, sorted by name."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


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


def read_folder(folder: Path) -> Reading:
    """Read every document below `folder`. Raises MemoryIndexError when there is no such folder."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise MemoryIndexError(f"{folder} {found}; name a folder of {', '.join(SUFFIXES)} files")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for path in _files(folder, skipped):
        name = path.relative_to(folder).as_posix()
        try:
            documents.append(_read(path, folder, name, skipped))
        except _NotReadError as fault:
            skipped.append(Skipped(_printable(name), str(fault)))
    return Reading(
        tuple(sorted(documents, key=lambda document: document.name)),
        tuple(sorted(skipped, key=lambda entry: entry.name)),
    )


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


class _NotReadError(Exception):
    """Why a file is skipped; never leaves this module."""


_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uff00-\uffef\u3000-\u303f]")
_ATX = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_NOT_PARAGRAPH = re.compile(r"^\s*(?:[-*+>|]|\d+[.)]|$)")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f\uff1b])")


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def note(fault: OSError) -> None:
        name = Path(str(fault.filename)).relative_to(folder).as_posix()
        skipped.append(Skipped(_printable(f"{name}/"), f"the folder cannot be listed ({fault.strerror})"))

    for root, folders, files in os.walk(folder, onerror=note):
        kept = sorted(name for name in folders if not name.startswith("."))
        for name in kept:
            if Path(root, name).is_symlink():
                inner = Path(root, name).relative_to(folder).as_posix()
                skipped.append(Skipped(_printable(f"{inner}/"), "the folder is a link; add its target instead"))
        folders[:] = kept
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _read(path: Path, folder: Path, name: str, skipped: list[Skipped]) -> Document:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise _NotReadError(f"{suffix or 'a name without suffix'} is not read; {', '.join(SUFFIXES)} are")
    if name != _printable(name):
        raise _NotReadError("the file's name is not UTF-8; rename it")
    content = _bytes(path, folder)
    text = _decode(content)
    if suffix == ".json":
        text = _from_json(text, name, skipped)
    if not text.strip():
        raise _NotReadError(EMPTY)
    return Document(name, text, hashlib.sha256(content).hexdigest(), markdown=suffix != ".txt")


def _bytes(path: Path, folder: Path) -> bytes:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise _NotReadError("the file is a link out of the folder; copy what it points at")
        if not path.is_file():
            raise _NotReadError("it is not a regular file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _NotReadError(f"the file has {size:,} bytes, at most {MAX_BYTES:,} are read; split it")
        return path.read_bytes()
    except OSError as fault:
        raise _NotReadError(f"the file cannot be read ({fault.strerror or fault})") from fault


def _decode(content: bytes) -> str:
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in content and not wide:
        raise _NotReadError("the file is binary, expected text")
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as fault:
        found = f"byte {fault.object[fault.start]:#04x} at {fault.start}"
        raise _NotReadError(f"the file is not UTF-8 ({found}); save it as UTF-8") from fault
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _from_json(text: str, name: str, skipped: list[Skipped]) -> str:
    try:
        data = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as fault:
        raise _NotReadError(f"the file is not JSON ({fault})") from fault
    if data == []:
        raise _NotReadError(EMPTY)
    records: list[Any] = data if isinstance(data, list) else [data]
    sections = [_record(record) for record in records]
    if not any(sections):
        raise _NotReadError(f"the JSON has no text field; expected one of {', '.join(TEXT_FIELDS)}")
    for position, section in enumerate(sections):
        if not section:
            skipped.append(Skipped(f"{name}[{position}]", "the record has no text field"))
    return "\n\n".join(section for section in sections if section)


def _record(record: Any) -> str:
    """One record as Markdown; empty without a text. The headings of its text go below its title."""
    if not isinstance(record, dict):
        return ""
    title_field = next((key for key in TITLE_FIELDS if _is_text(record.get(key))), None)
    text = next((record[key] for key in TEXT_FIELDS if key != title_field and _is_text(record.get(key))), "")
    text = text.replace("\r\n", "\n").strip()
    if not text or title_field is None:
        return text
    title = " ".join(record[title_field].split())
    lines = text.split("\n")
    first = _ATX.match(lines[0])
    if first and " ".join((first[2] or "").split()) == title:
        return text
    top = any(heading and len(heading[1]) == 1 for heading in map(_ATX.match, lines))
    # An H1 inside the text would end the title's section: every heading goes one level down.
    body = "\n".join(f"#{line.lstrip()}" if top and _ATX.match(line) else line for line in lines)
    return f"# {title}\n\n{body}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _sections(document: Document) -> Iterator[tuple[str, str]]:
    """Heading path and text of every section that has text; of the last headings when none has."""
    if not document.markdown:
        yield "", document.text
        return
    text, path = document.text, list[tuple[int, str]]()
    front = _FRONT_MATTER.match(text)
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
        elif atx := _ATX.match(line):
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
    yield from _packed([line for line in text.split("\n") if line.strip()], "\n", limit, count, _sentences)


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
