"""Files of every format become the same records, and their faults are told by line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.errors import DatasetError
from tests.tuner.tasks.tiny_encoder import write_lines
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.readers import read_examples, read_file
from tuner.tasks.data.records import AnswerExample, AnswerSpan, ClassifyExample, RelateExample, TagExample, TaskName
from tuner.tasks.data.words import spans_from_tags


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs(path: Path, columns: Columns | None = None) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.text, one.labels) for one in read_file("classify", path, columns) if isinstance(one, ClassifyExample)]


SAME = [("Where is it?", ("find",)), ("I paid, twice", ("pay",)), ("It is gone", ("find",)), ("Refund", ("pay",))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label\nWhere is it?,find\n"I paid, twice",pay\nIt is gone,find\nRefund,pay\n'),
        ("crlf.csv", 'text,label\r\nWhere is it?,find\r\n"I paid, twice",pay\r\nIt is gone,find\r\nRefund,pay\r\n'),
        ("mark.csv", '\ufefftext,label\nWhere is it?,find\n"I paid, twice",pay\nIt is gone,find\nRefund,pay\n'),
        ("semicolon.csv", "utterance;intent\nWhere is it?;find\nI paid, twice;pay\nIt is gone;find\nRefund;pay\n"),
        ("a.tsv", "label\tsentence\nfind\tWhere is it?\npay\tI paid, twice\nfind\tIt is gone\npay\tRefund\n"),
        ("bare.csv", 'find,Where is it?\npay,"I paid, twice"\nfind,It is gone\npay,Refund\n'),
        ("other.csv", 'was sie sagt,art\nWhere is it?,find\n"I paid, twice",pay\nIt is gone,find\nRefund,pay\n'),
        (
            "fast.txt",
            "__label__find Where is it?\n__label__pay I paid, twice\n__label__find It is gone\n__label__pay Refund\n",
        ),
        ("a.jsonl", "\n".join(json.dumps({"text": text, "label": label[0]}) for text, label in SAME)),
        ("a.json", json.dumps([{"text": text, "label": label[0]} for text, label in SAME])),
    ],
)
def test_every_format_gives_the_same_texts_and_labels(name: str, text: str, tmp_path: Path) -> None:
    assert pairs(write(tmp_path, name, text)) == SAME


def test_a_guess_is_reported_with_the_options_that_override_it(tmp_path: Path) -> None:
    said: list[str] = []
    read_file("classify", write(tmp_path, "a.csv", "utterance,intent\nhi,a\nyo,b\n"), say=said.append)
    assert "text is column 'utterance', label is column 'intent' (guessed by name; else: --text, --label)" in said[0]


def test_columns_that_were_named_go_before_guesses(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,note,label,team\nhi,hello there,a,red\nyo,good day,b,blue\n")
    assert pairs(path, Columns(text="note", label="team")) == [("hello there", ("red",)), ("good day", ("blue",))]


def test_a_field_may_hold_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\nhi,a|b\nyo,\nho,b\n")
    assert [labels for _, labels in pairs(path, Columns(multi_label=True))] == [("a", "b"), (), ("b",)]
    assert pairs(write_lines(tmp_path / "a.jsonl", [{"text": "hi", "labels": ["b", "a"]}])) == [("hi", ("a", "b"))]


def test_utf_16_is_read_and_another_encoding_when_it_is_named(tmp_path: Path) -> None:
    text = "text,label\n去北京,旅行\n退款,付款\n"
    assert pairs(write(tmp_path, "a.csv", text.encode("utf-16")))[0] == ("去北京", ("旅行",))
    other = write(tmp_path, "b.csv", text.encode("gb18030"))
    assert pairs(other, Columns(encoding="gb18030"))[0] == ("去北京", ("旅行",))
    with pytest.raises(DatasetError, match=r"b\.csv:2: byte 0x\w\w is not utf-8; .* --encoding"):
        pairs(other)


@pytest.mark.parametrize(
    ("task", "name", "text", "said"),
    [
        ("classify", "a.csv", "text,label\nhi,a\nyo\n", r"a\.csv:3: 1 fields where the others have 2"),
        ("classify", "a.csv", "text,label\nhi,a\n ,b\n", r"a\.csv:3: no text in column 'text'"),
        ("classify", "a.csv", "text,label\nhi,a\nyo,\n", r"a\.csv:3: no label in column 'label'"),
        ("classify", "a.csv", "text,text\nhi,a\n", r"two columns are called 'text'"),
        ("classify", "a.csv", "\n\n", "is empty"),
        ("classify", "a.jsonl", '{"text": "hi", "label": "a"}\n{"text"\n', r"a\.jsonl:2: not JSON"),
        ("classify", "a.jsonl", '["hi"]\n', r"a\.jsonl:1: found list; expected an object"),
        ("tag", "a.conll", "Anna B-PER\nlives\n", r"a\.conll:2: 1 columns where the others have 2"),
        ("tag", "a.conll", "Anna NNP\nlives VB\n", r"a\.conll:1: 'NNP' is not a tag.*--label"),
        ("tag", "a.jsonl", '{"text": "Anna", "spans": [[0, 9, "PER"]]}\n', r"span 0-9 is empty or outside"),
        (
            "tag",
            "a.jsonl",
            '{"text": "Anna B", "spans": [[0, 4, "A"], [2, 6, "B"]]}\n',
            r"overlaps the one that ends at 4",
        ),
        ("tag", "a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}\n', r"1 words and 2 tags"),
        ("tag", "a.csv", "text,mood\nAnna,good\nOmar,bad\n", "none is known for spans; name it with --label"),
        ("relate", "a.txt", '1\t"The <e1>cat</e1> sat."\nOther\n', r"a\.txt:1: no <e2>"),
        ("relate", "a.txt", '1\t"The <e1>cat</e1> <e2>sat</e2>."\n\n', r"a\.txt:1: no relation in the line below"),
        (
            "answer",
            "a.jsonl",
            '{"question": "q", "context": "a b a", "answer": "a"}\n',
            "is 2 times in the context",
        ),
        ("answer", "a.jsonl", '{"question": "q", "context": "a b", "answer": "c"}\n', "is 0 times in the context"),
    ],
)
def test_an_error_has_file_line_and_reason(task: TaskName, name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        read_file(task, write(tmp_path, name, text))


def test_conll_columns_are_read_whatever_is_around_them(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\n# a comment\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\nEkeus NNP I-NP I-PER\n\n"
        "-DOCSTART- -X- -X- O\n\nParis NNP I-NP I-LOC\n\t\nRome NNP I-NP B-LOC\n# O O O\n"
    )
    found = read_file("tag", write(tmp_path, "news.txt", text))
    assert [one.words for one in found if isinstance(one, TagExample)] == [
        ("U.N.", "official", "Ekeus"),
        ("Paris",),
        ("Rome", "#"),
    ]
    assert [one.tags for one in found if isinstance(one, TagExample)] == [
        ("B-ORG", "O", "B-PER"),
        ("B-LOC",),
        ("B-LOC", "O"),
    ]
    assert [one.source.rsplit(":", 1)[1] for one in found] == ["4", "10", "12"]


def test_word_and_tag_columns_can_be_numbered(tmp_path: Path) -> None:
    path = write(tmp_path, "a.conll", "1\tAnna\tB-PER\tx\n2\tsings\tO\ty\n")
    (one,) = read_file("tag", path, Columns(text="2", label="3"))
    assert isinstance(one, TagExample)
    assert (one.words, one.tags) == (("Anna", "sings"), ("B-PER", "O"))
    with pytest.raises(DatasetError, match="a number from 1 to 4, found '9'"):
        read_file("tag", path, Columns(label="9"))


def test_spans_of_characters_and_words_with_tags_are_the_same_entities(tmp_path: Path) -> None:
    rows = [
        {"text": "Anna Lee lives in Rome.", "entities": [{"start": 0, "end": 8, "label": "PER"}, [18, 22, "LOC"]]},
        {"tokens": ["Anna", "Lee", "sings"], "ner_tags": ["B-PER", "I-PER", "O"]},
    ]
    found = [read_file("tag", write_lines(tmp_path / f"{at}.jsonl", [row]))[0] for at, row in enumerate(rows)]
    spans = [
        [one.text[span.start : span.end] for span in spans_from_tags(one.offsets, one.tags)]
        for one in found
        if isinstance(one, TagExample)
    ]
    assert spans == [["Anna Lee", "Rome"], ["Anna Lee"]]


def test_marked_entities_lose_their_marks_and_keep_their_places(tmp_path: Path) -> None:
    text = '7\t"The <e1>keys</e1> of the <e2>piano</e2>."\r\nPart(e1,e2)\r\nComment: <e1> first\r\n\r\n'
    (one,) = read_file("relate", write(tmp_path, "a.txt", text))
    assert isinstance(one, RelateExample)
    assert one.text == "The keys of the piano."
    assert (one.text[slice(*one.first)], one.text[slice(*one.second)], one.label) == ("keys", "piano", "Part(e1,e2)")
    row = {"sentence": "The keys of the piano.", "head": [4, 8], "tail": "piano", "relation": "Part(e1,e2)"}
    (other,) = read_file("relate", write_lines(tmp_path / "a.jsonl", [row]))
    assert isinstance(other, RelateExample)
    assert (other.first, other.second) == (one.first, one.second)


def test_squad_of_both_versions_is_read_and_small_slips_of_offsets_are_mended(tmp_path: Path) -> None:
    context = "Anna lives in Rome."
    asked = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 14}]},
        {"id": "2", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 2}]},
        {"id": "3", "question": "When?", "answers": [], "is_impossible": True},
    ]
    data = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}
    found = read_file("answer", write(tmp_path, "a.json", json.dumps(data)))
    assert [one.answers for one in found if isinstance(one, AnswerExample)] == [
        (AnswerSpan("Rome", 14),),
        (AnswerSpan("Anna", 0),),
        (),
    ]
    asked[0]["answers"] = [{"text": "Oslo", "answer_start": 14}]
    with pytest.raises(DatasetError, match="question '1': answer 'Oslo' is not at character 14; found 'Rome'"):
        read_file("answer", write(tmp_path, "a.json", json.dumps(data)))


def test_the_white_space_around_an_answer_is_left_out_of_it(tmp_path: Path) -> None:
    context = "Anna lives  in Rome \nnow."
    rows = [
        {"question": "Where?", "context": context, "answers": {"text": [" in Rome \n"], "answer_start": [11]}},
        {"question": "Who?", "context": context, "answers": {"text": ["Anna "], "answer_start": [1]}},
    ]
    found = read_file("answer", write_lines(tmp_path / "a.jsonl", rows))
    assert [one.answers for one in found if isinstance(one, AnswerExample)] == [
        (AnswerSpan("in Rome", 12),),
        (AnswerSpan("Anna", 0),),
    ]
    rows[0]["answers"] = {"text": ["  "], "answer_start": [10]}
    with pytest.raises(DatasetError, match="nothing but white space"):
        read_file("answer", write_lines(tmp_path / "a.jsonl", rows))


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "test.csv", "notes.md"):
        write(tmp_path, name, "text,label\nhi,a\nyo,b\n")
    assert sorted(read_examples("classify", tmp_path).splits) == ["test", "train", "validation"]
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DatasetError, match="expected a file called train"):
        read_examples("classify", tmp_path)


def test_one_file_may_hold_all_splits_and_what_is_out_of_scope(tmp_path: Path) -> None:
    data = {name: [["hi", "greet"], ["yo", "greet"]] for name in ("train", "val", "test")}
    data["oos_train"] = [["is it raining", "oos"]]
    found = read_examples("classify", write(tmp_path, "all.json", json.dumps(data))).splits
    assert {name: len(some) for name, some in found.items()} == {"train": 3, "validation": 2, "test": 2}
    assert [one.labels for one in found["train"] if isinstance(one, ClassifyExample)][-1] == ("oos",)


def test_a_class_that_is_called_like_a_column_makes_no_header(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "question,How are you?\nclaim,I am fine\nquestion,Who is it?\nclaim,It is me\n")
    assert pairs(path)[0] == ("How are you?", ("question",))


@pytest.mark.parametrize(
    ("head", "first"),
    [
        (["kind", "Subject", "Body"], "Lost 0\nWhere is my parcel 0?"),
        (["Class Index", "Title", "Description"], "Lost 0\nWhere is my parcel 0?"),
        (["kind", "name", "message"], "Where is my parcel 0?"),
    ],
)
def test_a_title_goes_before_its_text(tmp_path: Path, head: list[str], first: str) -> None:
    rows = [f"{'ab'[number % 2]},Lost {number},Where is my parcel {number}?" for number in range(8)]
    path = write(tmp_path, "a.csv", "\n".join([",".join(head), *rows]))
    assert pairs(path)[0] == (first, ("a",))


def test_without_a_header_some_words_before_a_longer_text_are_its_title(tmp_path: Path) -> None:
    rows = [
        f"{number % 2},The parcel {number} came,It was nobody's and stood in the yard {number}" for number in range(8)
    ]
    path = write(tmp_path, "a.csv", "\n".join(rows))
    assert pairs(path)[0] == ("The parcel 0 came\nIt was nobody's and stood in the yard 0", ("0",))
    numbered = write(tmp_path, "b.csv", "\n".join(f"a{number},{row}" for number, row in enumerate(rows)))
    assert pairs(numbered) == pairs(path)


def test_a_subject_that_recurs_is_no_title(tmp_path: Path) -> None:
    rows = [f"news {number},{'ab'[number % 2]}" for number in range(8)]
    path = write(tmp_path, "a.csv", "\n".join(["text,subject", *rows]))
    assert pairs(path)[0] == ("news 0", ("a",))


def test_several_columns_that_were_named_are_one_text_and_one_of_them_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "from,said,class\nme,hello,a\nyou,,b\n")
    assert pairs(path, Columns(text="said,from")) == [("hello\nme", ("a",)), ("you", ("b",))]


def test_a_folder_of_texts_for_each_class(tmp_path: Path) -> None:
    for name in ("train/pos/1.txt", "train/pos/2.txt", "train/neg/1.txt", "train/unsup/1.txt", "test/pos/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path, name, f"{name}, a film")
    write(tmp_path, "test/notes.txt", "not a text")
    said: list[str] = []
    with pytest.raises(DatasetError, match=r"test is a folder; expected a file here"):
        read_file("classify", tmp_path / "test")
    (tmp_path / "test" / "neg").mkdir()
    write(tmp_path, "test/neg/9", "no suffix")
    found = read_examples("classify", tmp_path, say=said.append).splits
    assert {
        split: [(one.text, one.labels) for one in some if isinstance(one, ClassifyExample)]
        for split, some in found.items()
    } == {
        "train": [
            ("train/neg/1.txt, a film", ("neg",)),
            ("train/pos/1.txt, a film", ("pos",)),
            ("train/pos/2.txt, a film", ("pos",)),
        ],
        "test": [("no suffix", ("neg",)), ("test/pos/1.txt, a film", ("pos",))],
    }
    assert said == [f"{tmp_path / 'train' / 'unsup'} is left out: its 1 files have no class"]
    assert len(read_file("classify", tmp_path / "test")) == 2


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="pipe is a pipe or a device; save its contents to a file"):
        read_examples("classify", tmp_path / "pipe")


def test_a_saved_datasets_folder_without_the_library_says_what_to_install(tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("datasets") is not None:
        pytest.skip("the library is installed")
    write(tmp_path, "dataset_dict.json", "{}")
    with pytest.raises(DatasetError, match="pip install datasets"):
        read_examples("classify", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"},
        {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"},
        {"train": "ner_train.txt", "test": "ner_eval.txt"},
        {"train": "train.tsv", "test": "test.tsv"},
    ],
)
def test_files_of_a_folder_are_found_by_the_split_in_their_names(names: dict[str, str], tmp_path: Path) -> None:
    for split, name in names.items():
        write(tmp_path, name, f"{split}\tB-PER\nleft\tO\n\nAnna\tB-PER\n")
    write(tmp_path, "README.md", "Split into train and test.")
    said: list[str] = []
    found = read_examples("tag", tmp_path, say=said.append).splits
    assert {split: some[0].text for split, some in found.items() if isinstance(some[0], TagExample)} == {
        split: f"{split} left" for split in names
    }
    assert [f"train is {names['train']}" in one for one in said] == [True] * ("train.tsv" not in names.values())


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train_a.csv", "train_b.csv"):
        write(tmp_path, name, "text,label\nhi,a\nyo,b\n")
    with pytest.raises(DatasetError, match=r"holds train_a\.csv, train_b\.csv; expected a file called train"):
        read_examples("classify", tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        'Sentence #,Word,POS,Tag\nSentence: 1,Anna,NNP,B-per\n,"""",``,O\nSentence: 2,Oslo,NNP,B-geo\n,Bay,NNP,I-geo\n',
        'sentence_id,token,label\n7,Anna,B-per\n7,"""",O\n8,Oslo,B-geo\n8,Bay,I-geo\n',
    ],
)
def test_a_table_may_hold_a_word_a_row(rows: str, tmp_path: Path) -> None:
    found = read_file("tag", write(tmp_path, "words.csv", rows))
    assert [(one.words, one.tags) for one in found if isinstance(one, TagExample)] == [
        (("Anna", '"'), ("B-per", "O")),
        (("Oslo", "Bay"), ("B-geo", "I-geo")),
    ]
    with pytest.raises(DatasetError, match=r"more\.csv:3: no word in column 'token'; remove the row"):
        read_file("tag", write(tmp_path, "more.csv", "sentence_id,token,label\n7,Anna,B-per\n7,,O\n"))


def test_columns_of_words_and_of_sentences_may_be_named(tmp_path: Path) -> None:
    words = write(tmp_path, "words.csv", "id,wort,art\n1,Anna,B-per\n1,Bo,I-per\n2,left,O\n")
    found = read_file("tag", words, Columns(text="wort", label="art"))
    assert [one.tags for one in found if isinstance(one, TagExample)] == [("B-per", "I-per"), ("O",)]
    rows = [{"id": 1, "body": "Anna left", "found": [{"start": 0, "end": 4, "label": "PER"}]}]
    (one,) = read_file("tag", write_lines(tmp_path / "spans.jsonl", rows), Columns(text="body", label="found"))
    assert isinstance(one, TagExample)
    assert one.tags == ("B-PER", "O")
