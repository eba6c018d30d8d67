"""Files of translations, summaries and chats become records; their figures are those of the libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import DatasetError
from tests.tuner.tasks.tiny_encoder import write_lines
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.languages import language_named, language_of
from tuner.tasks.data.readers import read, read_file
from tuner.tasks.data.records import Conversed, Turn, Written
from tuner.tasks.data.splits import part
from tuner.tasks.text_metrics import replies, rouge, summaries, translations

SAME = [("Good morning.", "早上好。"), ("Where is it?", "在哪里。"), ("I paid, twice", "我付了两次")]


def pairs(path: Path, columns: Columns | None = None) -> list[tuple[str, str]]:
    return [(one.text, one.target) for one in read_file("translate", path, columns) if isinstance(one, Written)]


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
    found = read("translate", tmp_path, say=said.append).splits
    assert [one.text for one in found["test"] if isinstance(one, Written)][1] == "Where is it??"
    assert "from .en into .zh (guessed by alphabet; else: --text, --target)" in said[0]
    turned = read("translate", tmp_path, Columns(text="zh", target="en")).train[0]
    assert turned == Written("早上好。", "Good morning.", "English", f"{tmp_path / 'train.zh'}:1")


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


def test_columns_that_say_nothing_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("nummer,links,rechts\n1,hello there you,hallo\n2,yes,ja\n3,no,nein\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"columns '1', '2', '3'.*--text"):
        read_file("translate", path)
    assert pairs(path, Columns(text="links", target="rechts"))[1] == ("yes", "ja")


def test_a_quote_in_a_tab_separated_file_is_a_character_wherever_it_stands(tmp_path: Path) -> None:
    rows = [f"text {number}\ttarget {number}" for number in range(40)]
    rows += ['He said "no".\t"Nein", sagte er.', '"Yes", she said.\tJa.']
    path = tmp_path / "a.txt"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert pairs(path)[-1] == ('"Yes", she said.', "Ja.")


def test_a_dialogue_and_its_summary_are_known_by_their_names(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"fname": "1", "dialogue": "A: Hi.\nB: Bye.", "summary": "They part."}])
    assert read_file("summarise", path) == [Written("A: Hi.\nB: Bye.", "They part.", "", f"{path}:1")]


def test_answers_that_were_rated_low_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer,rating\nWhere?,Here.,5\nWhen?,No idea!,1\nHow?,So.,\nWhy?,Hm.,3\n", "utf-8")
    said: list[str] = []
    kept = read_file("converse", path, say=said.append)
    assert [one.answer for one in kept if isinstance(one, Conversed)] == ["Here.", "So."]
    assert "2 of 4 answers are left out, rated not above 3 of 1 to 5 in column 'rating'" in said[0]
    assert len(read_file("converse", path, Columns(least_rating=3))) == 3
    path.write_text("question,answer,rating\nWhere?,Here.,good\nWhen?,No!,bad\n", "utf-8")
    assert len(read_file("converse", path)) == 1
    path.write_text("question,answer,rating\nWhere?,Here.,fair\nWhen?,No!,bad\n", "utf-8")
    with pytest.raises(DatasetError, match=r"a\.csv:2: rating 'fair'"):
        read_file("converse", path)


CHAT = [
    {"role": "usr", "content": "Hello"},
    {"role": "usr", "content": "Is it open?"},
    {"role": "sys", "content": "Until six."},
    {"role": "usr", "content": "Thanks"},
    {"role": "sys", "content": "Welcome!"},
]


def test_every_answer_of_a_chat_is_an_example_and_a_chat_is_never_torn(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({f"c{number}": {"messages": CHAT} for number in range(12)}), "utf-8")
    found = read_file("converse", path)
    assert len(found) == 24
    first, second = found[:2]
    assert isinstance(first, Conversed)
    assert isinstance(second, Conversed)
    assert first.turns == (Turn("customer", "Hello\nIs it open?"),)
    assert (first.answer, second.answer) == ("Until six.", "Welcome!")
    assert [one.speaker for one in second.turns] == ["customer", "agent", "customer"]
    path.write_text(
        json.dumps(
            {f"c{n}": {"messages": [{**one, "content": f"{one['content']} {n}"} for one in CHAT]} for n in range(12)}
        )
    )
    splits = part(read_file("converse", path), [], [])
    chats = [{one.chat for one in some} for some in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, chats)) == 12


def test_a_turn_a_row_is_a_chat_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("chat_id,speaker,text\n1,customer,Hi\n1,agent,Hello!\n2,user,Open?\n2,assistant,Yes.\n", "utf-8")
    assert [one.answer for one in read_file("converse", path) if isinstance(one, Conversed)] == ["Hello!", "Yes."]
    path.write_text("chat_id,speaker,text\n1,customer,Hi\n1,ghost,Hello!\n", "utf-8")
    with pytest.raises(DatasetError, match="turn 2 is by 'ghost'"):
        read_file("converse", path)


def test_translations_score_as_sacrebleu_says() -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    gold = ["The cat sat on the mat today.", "It rains in spring.", "Nobody knows why he left us."]
    said = ["The cat sat on a mat today.", "It is raining in spring.", "Nobody knows why he left."]
    figures = translations(gold, said).figures
    assert figures["bleu"].mean == pytest.approx(corpus_bleu(said, [gold]).score / 100)
    assert figures["chrf"].mean == pytest.approx(corpus_chrf(said, [gold]).score / 100)
    assert figures["chrf"].low < figures["chrf"].mean < figures["chrf"].high
    assert translations(gold, gold).value == pytest.approx(1.0)


def test_chinese_is_counted_by_characters() -> None:
    from sacrebleu import corpus_bleu

    gold, said = ["今天的天气很好。", "我们明天去北京。"], ["今天天气很好。", "我们明天去上海。"]
    assert translations(gold, said).figures["bleu"].mean == pytest.approx(
        corpus_bleu(said, [gold], tokenize="zh").score / 100
    )
    # Of 7 and 6 characters 6 are shared in their order.
    assert rouge(gold[:1], said[:1])["rouge_l"] == [pytest.approx(2 * 6 / 13)]
    assert replies(gold, gold).value == 1.0


def test_summaries_score_as_rouge_says() -> None:
    scores = summaries(["police killed the gunman"], ["police kill the gunman"])
    # Stemmed, they are the same; the worked example of Lin (2004) has them unstemmed.
    assert scores.value == 1.0
    other = rouge(["police ended the gunman"], ["the gunman police ended"])
    assert other["rouge_1"] == [1.0]
    assert other["rouge_2"] == [pytest.approx(2 / 3)]
    assert other["rouge_l"] == [pytest.approx(0.5)]


def test_languages_are_told_by_name_letters_and_words() -> None:
    assert [language_named(one) for one in ("zh", ".zh-CN", "German", "target")] == ["Chinese", "Chinese", "German", ""]
    assert language_of(["今天天气很好"]) == "Chinese"
    assert language_of(["これは猫です", "東京"]) == "Japanese"
    assert language_of(["Ich habe das nicht gesehen und er ist mit mir zu den Bergen gegangen"]) == "German"
    assert language_of(["Where is the cat that you have?"]) == "English"
    assert language_of(["xyzzy plugh"]) == ""
