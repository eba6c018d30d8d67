"""Translations and summaries are read from columns and from files of parallel lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import DatasetError
from tests.tuner.tasks.tiny_encoder import write_lines
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.readers import read_examples, read_file
from tuner.tasks.data.records import WriteExample

SAME = [("Good morning.", "早上好。"), ("Where is it?", "在哪里。"), ("I paid, twice", "我付了两次")]


def pairs(path: Path, columns: Columns | None = None) -> list[tuple[str, str]]:
    return [(one.text, one.target) for one in read_file("translate", path, columns) if isinstance(one, WriteExample)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'source,target\nGood morning.,早上好。\nWhere is it?,在哪里。\n"I paid, twice",我付了两次\n'),
        ("a.tsv", "en\tzh\nGood morning.\t早上好。\nWhere is it?\t在哪里。\nI paid, twice\t我付了两次\n"),
        ("a.txt", "Good morning.\t早上好。\tby Ann\nWhere is it?\t在哪里。\tby Bo\nI paid, twice\t我付了两次\tby Cy\n"),
        ("a.jsonl", "\n".join(json.dumps({"translation": {"en": one, "zh": other}}) for one, other in SAME)),
        ("a.json", json.dumps([{"text": one, "translation": other} for one, other in SAME])),
    ],
)
def test_every_format_gives_the_same_translations(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert pairs(tmp_path / name) == SAME


def test_parallel_lines_are_two_files(tmp_path: Path) -> None:
    for at, ending in enumerate(("en", "zh")):
        lines = "".join(f"{pair[at]}\n" for pair in SAME)
        (tmp_path / f"train.{ending}").write_text(lines, encoding="utf-8")
        (tmp_path / f"test.{ending}").write_text(lines.replace("?", "??"), encoding="utf-8")
    assert pairs(tmp_path / "train.en", Columns(target="zh")) == SAME
    assert pairs(tmp_path / "train.en", Columns(target=str(tmp_path / "train.zh"))) == SAME
    said: list[str] = []
    found = read_examples("translate", tmp_path, say=said.append).splits
    assert [one.text for one in found["test"] if isinstance(one, WriteExample)][1] == "Where is it??"
    assert "from .en into .zh (guessed by alphabet; else: --text, --target)" in said[0]
    turned = read_examples("translate", tmp_path, Columns(text="zh", target="en")).train[0]
    assert turned == WriteExample("早上好。", "Good morning.", "English", f"{tmp_path / 'train.zh'}:1")


def test_lines_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "a.de").write_text("eins\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.en has 2 lines and .*a\.de has 1"):
        read_file("translate", tmp_path / "a.en", Columns(target="de"))
    (tmp_path / "a.de").write_text("eins\n\n", encoding="utf-8")
    (tmp_path / "a.en").write_text("one\ntwo\n\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="has 2 lines"):
        read_file("translate", tmp_path / "a.en", Columns(target="de"))
    (tmp_path / "a.de").write_text("eins\n  \n", encoding="utf-8")
    (tmp_path / "a.en").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.en:2: no text in column 'de'"):
        read_file("translate", tmp_path / "a.en", Columns(target="de"))


def test_an_error_asks_for_columns_that_cannot_be_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("nummer,links,rechts\n1,hello there you,hallo\n2,yes,ja\n3,no,nein\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"columns '1', '2', '3'.*--text"):
        read_file("translate", path)
    assert pairs(path, Columns(text="links", target="rechts"))[1] == ("yes", "ja")


def test_dialogues_and_summaries_are_found_by_the_names_of_their_columns(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"fname": "1", "dialogue": "A: Hi.\nB: Bye.", "summary": "They part."}])
    assert read_file("summarise", path) == [WriteExample("A: Hi.\nB: Bye.", "They part.", "", f"{path}:1")]


def test_a_quote_in_a_tab_separated_file_is_an_ordinary_character(tmp_path: Path) -> None:
    rows = [f"text {number}\ttarget {number}" for number in range(40)]
    rows += ['He said "no".\t"Nein", sagte er.', '"Yes", she said.\tJa.']
    path = tmp_path / "a.txt"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert pairs(path)[-1] == ('"Yes", she said.', "Ja.")
