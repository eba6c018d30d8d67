"""Converts files to text by their format: to Markdown if they have headings, lists or tables.

Records (JSON, JSON lines, CSV) become sections: a title or question as the heading, the text or answer below it. HTML,
PDF and Word files need the libraries of the extra `files`; a scanned PDF has no text and is skipped.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

TITLE_FIELDS = ("title", "name", "heading", "question", "subject")
TEXT_FIELDS = ("content", "text", "body", "answer", "markdown", "description")
EMPTY = "the file is empty"

Text = tuple[str, list[tuple[int, str]]]
"""A file's text, and the indices of records that were left out, each with the reason."""


class NotReadError(Exception):
    """The reason why a file is skipped; caught by `read_folder`."""


def from_text(content: bytes) -> Text:
    return decode(content), []


def from_json(content: bytes) -> Text:
    text = decode(content)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise NotReadError(f"the file is not JSON ({fault})") from fault
    if data == []:
        raise NotReadError(EMPTY)
    return _from_records(data if isinstance(data, list) else [data], "JSON")


def from_json_lines(content: bytes) -> Text:
    records = []
    for number, line in enumerate(decode(content).split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as fault:
                raise NotReadError(f"line {number} is not JSON ({fault})") from fault
    return _from_records(records, "JSON")


def from_csv(content: bytes) -> Text:
    """Convert records to sections; any other table to a paragraph per row, with `column: value` lines."""
    text = decode(content)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:10_000], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), dialect, strict=True))
    except csv.Error as fault:
        raise NotReadError(f"the file is not CSV ({fault})") from fault
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise NotReadError("the table has no row below its header")
    header = [name.strip() for name in rows[0]]
    wrong = next((number for number, row in enumerate(rows) if len(row) != len(header)), None)
    if wrong is not None:
        raise NotReadError(f"row {wrong} has {len(rows[wrong])} cells, the header has {len(header)}")
    keys = [name.lower() for name in header]
    if set(keys) & set(TITLE_FIELDS) and set(keys) & set(TEXT_FIELDS):
        return _from_records([dict(zip(keys, row, strict=True)) for row in rows[1:]], "table")
    sections = (
        "\n".join(f"{name}: {cell.strip()}" for name, cell in zip(header, row, strict=True) if cell.strip())
        for row in rows[1:]
    )
    return "\n\n".join(sections), []


def from_html(content: bytes) -> Text:
    soup = _import("bs4", "beautifulsoup4").BeautifulSoup(content, "html.parser")
    for part in soup(["script", "style", "noscript", "template", "svg", "nav", "head"]):
        # The page title serves as heading if there is no other.
        part.replace_with(part.find("title").extract() if part.name == "head" and part.find("title") else "")
    title = soup.find("title")
    if title is not None:
        title.name = "h1" if soup.find(["h1", "h2"]) is None else "span"
        if title.name == "span":
            title.decompose()
    convert = _import("markdownify", "markdownify").markdownify
    text = convert(str(soup), heading_style="ATX", strip=["a", "img"], table_infer_header=True)
    return re.sub(r"\n{3,}", "\n\n", text).strip(), []


def from_pdf(content: bytes) -> Text:
    """Convert each page to a section, so that answers cite the page."""
    pypdf = _import("pypdf", "pypdf")
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise NotReadError("the PDF is encrypted; save it without a password")
        pages = [page.extract_text().strip() for page in reader.pages]
        title = str((reader.metadata or {}).get("/Title") or "").strip()
    except NotReadError:
        raise
    except Exception as fault:  # pypdf raises any exception on damaged files
        raise NotReadError(f"the file is no readable PDF ({type(fault).__name__}: {fault})") from fault
    if not any(pages):
        raise NotReadError("the PDF has no text (scanned pages?); make it searchable first")
    level = "#" if not title else "##"
    # Lines that look like Markdown headings are text.
    sections = [f"{level} Page {number}\n\n{_without_headings(text)}" for number, text in enumerate(pages, 1) if text]
    return "\n\n".join([f"# {title}", *sections] if title else sections), []


def from_docx(content: bytes) -> Text:
    docx = _import("docx", "python-docx")
    try:
        document = docx.Document(io.BytesIO(content))
        blocks = [_to_markdown(block) for block in document.iter_inner_content()]
    except Exception as fault:  # a damaged archive raises many kinds
        raise NotReadError(f"the file is no readable Word document ({type(fault).__name__}: {fault})") from fault
    return "\n\n".join(block for block in blocks if block), []


def decode(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, and normalise line ends to `\\n`.

    Raises:
        NotReadError: The content is binary, or in another encoding.
    """
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in content and not wide:
        raise NotReadError("the file is binary, expected text")
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as fault:
        position = f"byte {fault.object[fault.start]:#04x} at {fault.start}"
        raise NotReadError(f"the file is not UTF-8 ({position}); save it as UTF-8") from fault
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


FORMATS: dict[str, Callable[[bytes], Text]] = {
    ".md": from_text,
    ".markdown": from_text,
    ".txt": from_text,
    ".json": from_json,
    ".jsonl": from_json_lines,
    ".csv": from_csv,
    ".tsv": from_csv,
    ".html": from_html,
    ".htm": from_html,
    ".pdf": from_pdf,
    ".docx": from_docx,
}
"""Converters by file suffix."""

HEADING = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
"""A Markdown heading: its marks, and its text."""


def _from_records(records: Sequence[Any], kind: str) -> Text:
    sections = [_record(record) for record in records]
    if not any(sections):
        raise NotReadError(f"the {kind} has no text field; expected one of {', '.join(TEXT_FIELDS)}")
    left_out = [(place, "the record has no text field") for place, section in enumerate(sections) if not section]
    return "\n\n".join(section for section in sections if section), left_out


def _record(record: Any) -> str:
    """Convert a record to Markdown; empty if it has no text. Headings in the text are put below its title."""
    if not isinstance(record, dict):
        return ""
    title_field = next((key for key in TITLE_FIELDS if _is_text(record.get(key))), None)
    text = next((record[key] for key in TEXT_FIELDS if key != title_field and _is_text(record.get(key))), "")
    text = text.replace("\r\n", "\n").strip()
    if not text or title_field is None:
        return text
    title = " ".join(record[title_field].split())
    lines = text.split("\n")
    first = HEADING.match(lines[0])
    if first and " ".join((first[2] or "").split()) == title:
        return text
    top = any(heading and len(heading[1]) == 1 for heading in map(HEADING.match, lines))
    # An H1 in the text would end the title's section: all headings move one level down.
    body = "\n".join(f"#{line.lstrip()}" if top and HEADING.match(line) else line for line in lines)
    return f"# {title}\n\n{body}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _without_headings(text: str) -> str:
    return re.sub(r"(?m)^( {0,3})#", r"\1\\#", text)


def _to_markdown(block: Any) -> str:
    """Convert a paragraph or table of a Word document."""
    if hasattr(block, "rows"):
        return _table([[" ".join(cell.text.split()) for cell in row.cells] for row in block.rows])
    text = block.text.strip()
    style = (block.style.name or "") if block.style is not None else ""
    level = re.fullmatch(r"(?:Heading|heading) (\d)", style)
    if not text or (not level and style != "Title"):
        return f"- {text}" if text and style.startswith("List") else _without_headings(text)
    return f"{'#' * (int(level[1]) if level else 1)} {' '.join(text.split())}"


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    if len(lines) > 1:
        lines.insert(1, f"|{' --- |' * (lines[0].count('|') - 1)}")
    return "\n".join(lines)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise NotReadError(f"{package} is not installed; pip install ratchet-loop[files]") from None
