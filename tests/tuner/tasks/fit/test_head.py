"""Entities, relations and answers are learnt from files by a tiny encoder and told in the original text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.errors import DatasetError
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import TaskResult, load, train
from tuner.tasks.predictions import AnswerPrediction, EntityPrediction, LabelPrediction

NAMES = ("anna", "omar", "ines", "piet", "yuki", "lena")
TOWNS = ("rome", "oslo", "lima", "kyoto", "graz")
VERBS = ("left", "likes", "knows")
WORDS = (*NAMES, *TOWNS, *VERBS, "who", "where", "is", "from", "lee", "in", "now", ".")
QUICK: dict[str, Any] = {"method": "full", "learning_rate": 5e-3, "epochs": 10, "precision": "float32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", WORDS))


@pytest.fixture(scope="module")
def tagger(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("tagger")
    lines = [
        f"{name} B-PER\nlee I-PER\n{verb} O\n{town} B-TOWN\n. O\n\n"
        for name, verb, town in itertools.product(NAMES, VERBS, TOWNS)
    ]
    data = folder / "towns.conll"
    data.write_text("".join(lines), encoding="utf-8")
    return train("tag", data, model=encoder, out=folder / "made", **QUICK)


@pytest.fixture(scope="module")
def answerer(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("answerer")
    rows = []
    for number, (name, verb, town) in enumerate(itertools.product(NAMES, VERBS, TOWNS)):
        context = f"now {name} {verb} {town} ."
        rows.append({"question": "who ?", "context": context, "answer": name})
        rows.append({"question": "where ?", "context": context, "answer": town})
        if number % 3 == 0:
            rows.append({"question": "is lee in ?", "context": context, "answer": ""})
    data = write_lines(folder / "asked.jsonl", rows)
    return train("answer", data, model=encoder, out=folder / "made", **QUICK)


def test_entities_are_learnt_and_predicted_in_the_characters_of_the_text(tagger: TaskResult) -> None:
    assert tagger.scores.figures["entity_f1"].mean > 0.95
    text = "  Anna Lee   likes Oslo."
    (said,) = tagger.predictor.predict([text])
    assert isinstance(said, EntityPrediction)
    assert [(text[one.start : one.end], one.label) for one in said.spans] == [("Anna Lee", "PER"), ("Oslo", "TOWN")]
    assert load(tagger.folder).predict([text]) == [said]


def test_a_text_longer_than_the_encoder_reads_is_tagged_to_its_end(tagger: TaskResult) -> None:
    text = " ".join(f"{name} lee likes {town} ." for name, town in itertools.product(NAMES, TOWNS))
    (said,) = tagger.predictor.predict([text])
    assert isinstance(said, EntityPrediction)
    assert len(text.split()) > 128
    towns = [one for one in said.spans if one.label == "TOWN" and text[one.start : one.end] in TOWNS]
    assert towns[-1].end == len(text) - 2
    assert len(towns) > 0.8 * len(NAMES) * len(TOWNS)


def test_the_report_of_a_tagging_has_entities_and_tags(tagger: TaskResult) -> None:
    told = json.loads((tagger.folder / "report" / "metrics.json").read_text("utf-8"))["after"]
    assert [row["name"] for row in told["classes"]] == ["PER", "TOWN"]
    assert {"B-PER", "I-PER", "B-TOWN", "O", "weighted avg"} <= {row["name"] for row in told["tokens"]}
    assert told["main"] == "entity_f1"


def test_the_direction_of_a_relation_is_learnt(encoder: str, tmp_path: Path) -> None:
    lines = []
    for number, (name, verb, town) in enumerate(itertools.product(NAMES, VERBS, TOWNS)):
        first, second = ("e1", "e2") if number % 2 else ("e2", "e1")
        label = f"Lives({'e1,e2' if number % 2 else 'e2,e1'})"
        lines.append(
            f'{number}\t"<{first}>{name}</{first}> {verb} <{second}>{town}</{second}> ."\n{label}\nComment:\n\n'
        )
    data = tmp_path / "marked.txt"
    data.write_text("".join(lines), encoding="utf-8")
    made = train("relate", data, model=encoder, out=tmp_path / "made", **QUICK)
    assert made.scores.value > 0.95
    said = made.predictor.predict(["<e1>anna</e1> left <e2>rome</e2>", "<e2>anna</e2> left <e1>rome</e1>"])
    assert [one.label for one in said if isinstance(one, LabelPrediction)] == ["Lives(e1,e2)", "Lives(e2,e1)"]
    with pytest.raises(DatasetError, match="mark them in the text"):
        made.predictor.predict(["anna left rome"])


def test_answers_are_stretches_of_the_context_or_none(answerer: TaskResult) -> None:
    assert answerer.scores.figures["f1"].mean > 0.9
    context = "Now  Anna left\nOslo ."
    asked = [("who ?", context), ("where ?", context), ("is lee in ?", context)]
    said = answerer.predictor.predict(asked)
    assert [one.text for one in said if isinstance(one, AnswerPrediction)] == ["Anna", "Oslo", ""]
    assert all(context[one.start : one.end] == one.text for one in said if isinstance(one, AnswerPrediction))
    assert load(answerer.folder).predict(asked) == said


def test_the_margin_is_that_of_the_epoch_that_is_kept(encoder: str, tmp_path: Path) -> None:
    parts = []
    for name, names in (("train", NAMES[:3]), ("validation", NAMES[3:])):
        rows = [
            {"question": question, "context": f"now {person} {verb} {town} .", "answer": answer}
            for person, verb, town in itertools.product(names, VERBS, TOWNS)
            for question, answer in (("where ?", town), ("who ?", person), ("is lee in ?", ""))
        ]
        parts.append(write_lines(tmp_path / f"{name}.jsonl", rows))
    # Rates that ruin what was learnt: with one of them the last epoch is not the best, on any processor.
    for rate in (0.03, 0.06, 0.12, 0.25):
        settings = {**QUICK, "learning_rate": rate, "patience": 20}
        made = train("answer", parts[0], validation=parts[1], model=encoder, out=tmp_path / f"made-{rate}", **settings)
        if made.trained.best_epoch < made.trained.epochs - 1:
            break
    assert made.trained.best_epoch < made.trained.epochs - 1
    assert made.predictor.evaluate_file(parts[1]).value == made.trained.validation


def test_an_answer_is_found_after_the_first_window(answerer: TaskResult) -> None:
    context = ". " * 300 + "now omar knows lima ." + " ." * 300
    (said,) = answerer.predictor.predict([("where ?", context)])
    assert isinstance(said, AnswerPrediction)
    assert said.text in ("lima", "")
    assert context[said.start : said.end] == said.text


def test_a_question_without_its_context_is_refused(answerer: TaskResult) -> None:
    with pytest.raises(DatasetError, match="a question needs its context"):
        answerer.predictor.predict(["who ?"])


def test_predictions_are_lines_of_json_from_arguments_and_stdin(
    tagger: TaskResult, answerer: TaskResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    assert main(["task", "predict", str(answerer.folder), "who ?", "--context", "now ines left graz ."]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "ines"
    monkeypatch.setattr("sys.stdin", io.StringIO("yuki lee left lima\n\npiet lee likes graz\n"))
    assert main(["task", "predict", str(tagger.folder)]) == 0
    said = [json.loads(line)["entities"] for line in capsys.readouterr().out.splitlines()]
    assert [[one["text"] for one in found] for found in said] == [["yuki lee", "lima"], ["piet lee", "graz"]]


@pytest.mark.parametrize("method", ["lora", "head"])
def test_tags_are_learnt_by_every_method(method: str, encoder: str, tagger: TaskResult, tmp_path: Path) -> None:
    data = tagger.folder.parent / "towns.conll"
    made = train("tag", data, model=encoder, out=tmp_path / "made", method=method, learning_rate=1e-2, epochs=10)
    assert made.scores.value > max(0.5, made.before.value)
    assert made.trained.parameters < tagger.trained.parameters
