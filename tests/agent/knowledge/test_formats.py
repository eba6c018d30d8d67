from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from agent.knowledge.chunking import split
from agent.knowledge.folders import read_folder
from agent.knowledge.formats import FORMATS, NotReadError, from_csv, from_docx, from_html, from_json_lines, from_pdf

PAGE = """<!doctype html><html><head><title>Tents</title><style>p {color: red}</style></head><body>
<nav>Home | Shop</nav><script>alert(1)</script>
<h2>Care</h2><p>Wash by <b>hand</b>. See <a href="https://example.org/x">this page</a>.</p>
<table><tr><th>Model</th><th>Weight</th></tr><tr><td>Fox</td><td>2 kg</td></tr></table>
<h2>Returns</h2><ul><li>Thirty days</li><li>Unused</li></ul></body></html>"""


def test_a_page_becomes_sections_without_what_is_no_text() -> None:
    text, _ = from_html(PAGE.encode())
    assert "Wash by **hand**. See this page." in text
    assert "| Model | Weight |\n| --- | --- |\n| Fox | 2 kg |" in text
    assert "## Care" in text
    for absent in ("alert", "color", "Home", "example.org", "Tents"):
        assert absent not in text


def test_the_title_of_a_page_without_headings_is_its_heading() -> None:
    text, _ = from_html("<head><title>返品</title></head><body><p>三十日以内。</p></body>".encode())
    assert text.split("\n\n") == ["# 返品", "三十日以内。"]


def test_questions_and_answers_in_a_table_become_sections() -> None:
    text, left_out = from_csv(
        b'Question;Answer;Product\nHow long?;"Five; days.";tent\nWhere?;;desk\n"Two\nlines?";Yes.;\n'
    )
    assert text == "# How long?\n\nFive; days.\n\n# Two lines?\n\nYes."
    assert left_out == [(1, "the record has no text field")]


def test_any_other_table_becomes_a_section_a_row() -> None:
    text, _ = from_csv(b"model,weight\nFox,2 kg\nOwl,\n")
    assert text == "model: Fox\nweight: 2 kg\n\nmodel: Owl"


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        (".csv", b"a,b\n1,2\n1,2,3\n", "row 2 has 3 cells, the header has 2"),
        (".csv", b"a,b\n", "the table has no row below its header"),
        (".jsonl", b'{"text": "a"}\n{', "line 2 is not JSON"),
        (".jsonl", b'{"n": 1}\n', "the JSON has no text field"),
        (".pdf", b"%PDF-1.7 broken", "the file is no readable PDF"),
        (".docx", b"PK broken", "the file is no readable Word document"),
    ],
)
def test_what_cannot_be_read_says_why(suffix: str, content: bytes, reason: str) -> None:
    with pytest.raises(NotReadError, match=reason):
        FORMATS[suffix](content)


def test_lines_of_json_are_records() -> None:
    lines = [{"question": "Why?", "answer": "So."}, {"text": "bare"}]
    text, _ = from_json_lines("\n".join(map(json.dumps, lines)).encode())
    assert text == "# Why?\n\nSo.\n\nbare"


def test_a_word_document_keeps_headings_lists_and_tables() -> None:
    docx: Any = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("Tents", 1)
    made.add_paragraph("Wash by hand.")
    made.add_heading("Returns", 2)
    made.add_paragraph("Unused", style="List Bullet")
    table = made.add_table(2, 2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ["Model", "Weight", "Fox", "2kg"], strict=True
    ):
        cell.text = text
    file = io.BytesIO()
    made.save(file)
    text, _ = from_docx(file.getvalue())
    assert text.split("\n\n") == [
        "# Tents",
        "Wash by hand.",
        "## Returns",
        "- Unused",
        "| Model | Weight |\n| --- | --- |\n| Fox | 2kg |",
    ]


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF of one line a page, written by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects) + 2} 0 R "
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    return f"{body}{head}{table}trailer\n{trailer}\nstartxref\n{len(body)}\n%%EOF".encode()


def test_each_page_of_a_pdf_is_a_section(tmp_path: Path) -> None:
    (tmp_path / "manual.pdf").write_bytes(pdf("Wash by hand.", "", "Dry it well.", title="The Fox"))
    (document,) = read_folder(tmp_path).documents
    assert [(chunk.heading, chunk.text) for chunk in split(document)] == [
        ("The Fox > Page 1", "Wash by hand."),
        ("The Fox > Page 3", "Dry it well."),
    ]


def test_a_pdf_of_pictures_is_refused() -> None:
    with pytest.raises(NotReadError, match="the PDF has no text"):
        from_pdf(pdf("", ""))
