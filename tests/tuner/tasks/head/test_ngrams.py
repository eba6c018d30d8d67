"""Texts in a script that the encoder does not know are classified by their character n-grams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AdapterError, DatasetError
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import TaskResult, load, train
from tuner.tasks.data.columns import Columns
from tuner.tasks.predictions import LabelPrediction

KINDS = {"退款": "我想把{}退掉 请退钱", "维修": "{}坏了 能修一下吗", "物流": "我的{}什么时候能送到"}
THINGS = ("帐篷", "雨伞", "水壶", "登山鞋", "睡袋", "手电筒", "背包", "毛衣", "绳子", "炉子", "地图", "手套")


def rows(*labels: str) -> list[dict[str, str]]:
    chosen = labels or tuple(KINDS)
    return [{"text": KINDS[label].format(one), "label": label} for label in chosen for one in THINGS]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", ["english", "words"]))


@pytest.fixture(scope="module")
def made(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("made")
    return train("classify", write_lines(folder / "texts.jsonl", rows()), model=encoder, out=folder / "kinds")


def test_ngrams_are_chosen_for_unknown_scripts_and_classify_unseen_texts(made: TaskResult) -> None:
    told = json.loads((made.folder / "task.json").read_text("utf-8"))
    assert told["settings"]["method"] == "ngrams"
    assert any("so character n-grams are used instead" in note for note in made.notes)
    assert made.scores.value == 1.0 > made.before.value
    assert not any(thing in json.dumps(told, ensure_ascii=False) for thing in THINGS)


def test_a_saved_model_predicts_the_same_and_other_tensors_are_refused(made: TaskResult) -> None:
    asked = ["这个杯子坏了 能不能修", "请把鞋子的钱退给我"]
    again = load(made.folder)
    assert again.predict(asked) == made.predictor.predict(asked)
    assert [one.labels for one in again.predict(asked) if isinstance(one, LabelPrediction)] == [("维修",), ("退款",)]
    model: Any = again._model
    with pytest.raises(AdapterError, match=r"ngrams\.bias"):
        model.load_state({**model.state(), "ngrams.bias": model.state()["ngrams.bias"][:1]})


def test_two_labels_and_several_labels_a_text(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "two.jsonl", rows("退款", "维修"))
    two = train("classify", data, model=encoder, out=tmp_path / "two", method="ngrams")
    assert two.scores.value == 1.0
    both = [{"text": f"{one['text']}。{other['text']}", "label": "退款|维修"} for one, other in _pairs()]
    data = write_lines(tmp_path / "many.jsonl", [*rows(), *both])
    many = train("classify", data, model=encoder, out=tmp_path / "many", columns=Columns(multi_label=True))
    (said,) = many.predictor.predict(["请把围巾退掉 退钱。围巾坏了 能修一下吗"])
    assert isinstance(said, LabelPrediction)
    assert said.labels == ("维修", "退款")


def _pairs() -> list[tuple[dict[str, str], dict[str, str]]]:
    return list(zip(rows("退款"), rows("维修"), strict=True))


def test_what_cannot_be_is_refused(encoder: str, made: TaskResult, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", rows())
    given: dict[str, Any] = {"model": encoder, "out": tmp_path / "out"}
    with pytest.raises(DatasetError, match="adversarial typos is not for method ngrams"):
        train("classify", data, method="ngrams", adversarial="typos", **given)
    with pytest.raises(DatasetError, match="train on the examples of both together, without --from"):
        train("classify", data, start=made.folder, **given)
    tags = write_lines(tmp_path / "tags.jsonl", [{"tokens": ["a", f"b{at}"], "tags": ["O", "B-X"]} for at in range(30)])
    with pytest.raises(DatasetError, match="method ngrams is for task classify"):
        train("tag", tags, method="ngrams", **given)
