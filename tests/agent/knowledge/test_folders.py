from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MemoryIndexError
from agent.knowledge.chunking import Chunk, estimate_tokens, split
from agent.knowledge.folders import Document, read_folder


def document(text: str, name: str = "a.md") -> Document:
    return Document(name, text, "0" * 64, markdown=not name.endswith(".txt"))


def pairs(text: str, name: str = "a.md", chunk_tokens: int = 160) -> list[tuple[str, str]]:
    return [(chunk.heading, chunk.text) for chunk in split(document(text, name), chunk_tokens=chunk_tokens)]


def test_headings_are_carried_along() -> None:
    text = "intro\n\n# A\n\none\n\n## B ##\n\ntwo\n\n# C\n\nthree\n"
    assert pairs(text) == [("", "intro"), ("A", "one"), ("A > B", "two"), ("C", "three")]


def test_underlined_headings_are_headings_and_rules_are_not() -> None:
    assert pairs("Top\n===\n\none\n\nSub\n---\n\ntwo\n\n---\n\nthree") == [
        ("Top", "one"),
        ("Top > Sub", "two\n\n---\n\nthree"),
    ]


def test_a_hash_in_fenced_code_starts_no_heading() -> None:
    assert pairs("# A\n\n```sh\n# no heading\n\nls\n```\n") == [("A", "```sh\n# no heading\n\nls\n```")]


def test_plain_text_has_no_headings() -> None:
    assert pairs("# just text", "a.txt") == [("", "# just text")]


def test_the_front_matter_gives_the_title_once() -> None:
    assert pairs("---\ntitle: Tents\nauthor: x\n---\n# Tents\n\nbody") == [("Tents", "body")]
    assert pairs("---\ntitle: 'Tents'\n---\nbody\n\n# Care\n\nwash") == [
        ("Tents", "body"),
        ("Tents > Care", "wash"),
    ]


def test_a_document_of_headings_alone_is_still_found() -> None:
    assert pairs("# A\n\n## B\n") == [("A", "B")]


def test_a_long_section_is_cut_at_paragraphs_then_sentences_then_words() -> None:
    paragraphs = "First one here.\n\nSecond one here."
    assert pairs(paragraphs, chunk_tokens=5) == [("", "First one here."), ("", "Second one here.")]
    assert pairs("First one here. Second one here.", chunk_tokens=5) == [
        ("", "First one here."),
        ("", "Second one here."),
    ]
    assert [text for _, text in pairs("abcd " * 4, chunk_tokens=2)] == ["abcd"]  # repeated pieces are kept once
    assert pairs("今天很好。明天下雨。", chunk_tokens=5) == [("", "今天很好。"), ("", "明天下雨。")]


@given(st.text(alphabet="ab .\n#-é文", max_size=400), st.integers(3, 30))
def test_no_piece_is_too_long_and_no_word_is_lost(text: str, limit: int) -> None:
    chunks = split(document(text, "a.txt"), chunk_tokens=limit)
    assert all(0 < estimate_tokens(chunk.text) <= limit for chunk in chunks)
    assert set("".join(text.split())) == set("".join("".join(chunk.text.split()) for chunk in chunks))
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@given(
    st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=9), unique=True, max_size=60),
    st.integers(4, 30),
)
def test_words_keep_their_order(words: list[str], limit: int) -> None:
    chunks = split(document(" ".join(words), "a.txt"), chunk_tokens=limit)
    assert " ".join(chunk.text for chunk in chunks).split() == words


def test_ids_follow_the_content_alone() -> None:
    first = split(document("# A\n\none\n\n# B\n\ntwo"))
    second = split(document("new first\n\n# A\n\none\n\n# B\n\ntwo!"))
    assert first[0].id == second[1].id
    assert first[1].id != second[2].id
    assert split(document("# A\n\none", "b.md"))[0].id != first[0].id
    assert len(first[0].id) == 16


def test_the_encoder_reads_the_headings_too() -> None:
    assert Chunk("0", "a.md", "A > B", 0, "text").embedded_text == "A > B\ntext"


def test_records_in_json_become_documents(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"id": 1, "title": "Fees", "content": "## Late\n\nTen."}))
    (tmp_path / "many.json").write_text(json.dumps([{"question": "Why?", "answer": "So."}, {"text": "bare"}, {"n": 1}]))
    (tmp_path / "none.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "bad.json").write_text("{")
    reading = read_folder(tmp_path)
    assert {entry.name: entry.text for entry in reading.documents} == {
        "one.json": "# Fees\n\n## Late\n\nTen.",
        "many.json": "# Why?\n\nSo.\n\nbare",
    }
    reasons = {entry.name: entry.reason for entry in reading.skipped}
    assert reasons["many.json[2]"] == "the record has no text field"
    assert reasons["none.json"].startswith("the JSON has no text field; expected one of content")
    assert reasons["bad.json"].startswith("the file is not JSON")


def test_a_heading_inside_a_record_stays_below_its_title(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"title": "Fees", "content": "# Late\n\nTen.\n\n## More\n\nEleven."}))
    (read,) = read_folder(tmp_path).documents
    assert [chunk.heading for chunk in split(read)] == ["Fees > Late", "Fees > Late > More"]


def test_every_file_not_read_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "wide.txt").write_bytes("weit".encode("utf-16"))
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    (tmp_path / "secret.md").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".hidden.md").write_text("x")
    reading = read_folder(tmp_path)
    assert [(entry.name, entry.text) for entry in reading.documents] == [
        ("good.md", "one\ntwo"),
        ("wide.txt", "weit"),
    ]
    assert {entry.name: entry.reason.partition(";")[0] for entry in reading.skipped} == {
        "binary.txt": "the file is binary, expected text",
        "empty.md": "the file is empty",
        "gone.md": "the file cannot be read (No such file or directory)",
        "latin.md": "the file is not UTF-8 (byte 0xe9 at 3)",
        "loop/": "the folder is a link",
        "picture.png": ".png is not read",
        "secret.md": "the file is a link out of the folder",
    }


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryIndexError, match="does not exist; name a folder"):
        read_folder(tmp_path / "no")


def test_every_piece_of_a_table_begins_with_its_header_and_rows_stay_whole() -> None:
    rows = [f"| model {number} | {number} kg and a few words |" for number in range(12)]
    text = "\n".join(["# Weights", "", "| model | weight |", "| --- | --- |", *rows])
    pieces = [piece for _, piece in pairs(text, chunk_tokens=40)]
    assert len(pieces) > 2
    assert all(piece.startswith("| model | weight |\n| --- | --- |\n") for piece in pieces)
    assert [row for piece in pieces for row in piece.split("\n")[2:]] == rows


def test_the_front_matter_is_metadata(tmp_path: Path) -> None:
    (tmp_path / "tent.md").write_text("---\nproduct: 'tent'\nyear: 2024\n---\n# Tent\n\nIt is dry.")
    (tmp_path / "plain.txt").write_text("---\nproduct: tent\n---\nIt is dry.")
    plain, tent = read_folder(tmp_path).documents
    assert tent.metadata == {"product": "tent", "year": "2024"}
    assert plain.metadata == {}
