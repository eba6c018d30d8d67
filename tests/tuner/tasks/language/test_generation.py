"""A language model learns a task, is served beside another on one base, and is asked without having learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.config.project import find_project
from agent.errors import AdapterError, DatasetError, WeightsError
from agent.llm.weights.load import kind_of
from agent.registry.artifact import verify
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tests.tuner.tiny import save_base
from tuner.tasks.api import TaskResult, load, read_splits, train
from tuner.tasks.fit.zero_shot import choose_model_kind, measure, open_untrained
from tuner.tasks.origin import Origin
from tuner.tasks.predictions import EntityPrediction, LabelPrediction, TextPrediction

PLACES = {"north": "Lund", "south": "Bari", "east": "Lviv", "west": "Cork"}
THINGS = ("road", "rail", "boat", "path", "wind", "bird")
NEW = ("tram", "goat")
QUICK: dict[str, Any] = {
    **{"epochs": 10, "learning_rate": 2e-2, "precision": "float32", "patience": 10, "batch": 40, "r": 8}
}


def rows(things: Sequence[str] = THINGS) -> list[dict[str, str]]:
    """The direction decides, the rest is noise."""
    return [{"source": f"{thing} {way}", "target": f"{place}!"} for way, place in PLACES.items() for thing in things]


def labelled(things: Sequence[str] = THINGS) -> list[dict[str, str]]:
    return [{"text": row["source"], "label": row["source"].split()[1]} for row in rows(things)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    texts = [f"{row['source']} {row['target']}" for row in rows((*THINGS, *NEW))]
    return str(save_base(tmp_path_factory.mktemp("base") / "tiny", texts))


def files(folder: Path, made: Callable[[Sequence[str]], list[dict[str, str]]]) -> Path:
    """A folder with a file for each part; the test has things of its own."""
    for name, things in (("train", THINGS[1:]), ("validation", THINGS[:1]), ("test", NEW)):
        write_lines(folder / f"{name}.jsonl", made(things))
    return folder


@pytest.fixture(scope="module")
def labels(base: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("labels")
    settings = {**QUICK, "batch": 5, "epochs": 2}
    return train("classify", files(folder, labelled), model=base, out=folder / "ways", **settings)


@pytest.fixture(scope="module")
def places(base: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("places")
    return train("translate", files(folder, rows), model=base, into="Placish", out=folder / "places", **QUICK)


def test_it_learns_to_write_and_its_folder_says_how(places: TaskResult) -> None:
    assert places.scores.value > places.before.value + 0.2
    assert places.trained.validation_curve[0][1] > places.trained.validation
    verify(places.folder)
    told = json.loads((places.folder / "task.json").read_text("utf-8"))
    assert (told["way"], told["task"], told["options"]) == ("generation", "translate", {"into": "Placish"})
    assert told["origin"]["data"]
    page = (places.folder / "report" / "report.html").read_text("utf-8")
    assert "before training" in page
    assert "validation loss" in page
    card = (places.folder / "README.md").read_text("utf-8")
    assert "A LoRA adapter for the task `translate`" in card


def test_two_tasks_beside_each_other_on_one_base_say_what_each_says_alone(
    labels: TaskResult, places: TaskResult
) -> None:
    texts = [row["source"] for row in rows()[::5]]
    alone = load(labels.folder).predict(texts), load(places.folder).predict(texts)
    first = load(labels.folder)
    second = load(places.folder, beside=first)
    assert first.generator is not None
    assert second.generator is not None
    assert first.generator.model.engine is second.generator.model.engine
    for one, other in zip((first.predict(texts), second.predict(texts)), alone, strict=True):
        assert [said.to_dict().get("labels", said.to_dict().get("said")) for said in one] == [
            said.to_dict().get("labels", said.to_dict().get("said")) for said in other
        ]
    assert all(isinstance(said, LabelPrediction) and said.label in PLACES for said in alone[0])
    assert all(isinstance(said, TextPrediction) for said in alone[1])


@pytest.mark.slow
def test_the_real_base_learns_to_sort_messages_and_is_measured_before_and_after(
    models_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / ".ratchet").mkdir()
    (tmp_path / ".ratchet" / "models").symlink_to(models_folder)
    kinds = {"refund": "I want my money back for the {}", "repair": "The {} is broken, can you mend it?"}
    train_on, test_on = ("tent", "lamp", "stove", "rope", "bag", "coat", "boat", "pan"), ("kettle", "chair", "bike")
    for name, things in (("train", train_on), ("validation", ("tarp", "sledge")), ("test", test_on)):
        made = [{"text": text.format(one), "label": kind} for kind, text in kinds.items() for one in things]
        write_lines(tmp_path / f"{name}.jsonl", made)
    result = train(
        "classify",
        tmp_path,
        model="smollm2-135m-instruct",
        out=tmp_path / "kinds",
        epochs=8,
        batch=8,
        project=find_project(tmp_path),
    )
    assert result.scores.figures["accuracy"].mean == 1.0
    assert result.before.figures["accuracy"].mean < 1.0
    again = load(tmp_path / "kinds", project=find_project(tmp_path))
    assert again.predict(["I want my money back for the sofa"])[0].to_dict()["labels"] == ["refund"]


def test_a_changed_folder_and_another_base_are_refused(places: TaskResult, tmp_path: Path, labels: TaskResult) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(places.folder, copy)
    (copy / "task.json").write_text("{}", "utf-8")
    with pytest.raises(AdapterError):
        load(copy)
    other = save_base(tmp_path / "other", ["other words"], seed=5)
    asked = open_untrained("classify", model=str(other), labels=["a", "b"])
    with pytest.raises(AdapterError, match="open it by itself"):
        load(labels.folder, beside=asked)


def test_an_untrained_model_keeps_to_the_grammar_with_and_without_few_shot_examples(base: str, tmp_path: Path) -> None:
    project = find_project(tmp_path, {})
    splits = read_splits("classify", Origin.of(project, files(tmp_path, labelled)), project)
    for shots in (0, 4):
        asked = open_untrained("classify", splits, model=base, few_shot=shots, selection="coverage")
        said = asked.predict(["boat north", "bird west"])
        assert all(isinstance(one, LabelPrediction) and one.label in PLACES for one in said)
        assert measure(asked, splits, most=3).figures["accuracy"].count == 3
    found = open_untrained("tag", model=base, labels=["place", "thing"]).predict(["The boat to Lund and Cork"])[0]
    assert isinstance(found, EntityPrediction)
    assert all(found.text[one.start : one.end] in found.text and one.label in ("place", "thing") for one in found.spans)


def test_what_cannot_be_is_refused_with_what_to_do(base: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", rows())
    encoder = str(save_encoder(tmp_path / "encoder", ["aa"]))
    project = find_project(tmp_path)
    assert choose_model_kind("translate", None, project) == "generation"
    assert choose_model_kind("classify", None, project) == choose_model_kind("classify", encoder, project) == "head"
    assert choose_model_kind("classify", base, project) == "generation"
    assert (kind_of("smollm2-135m-instruct"), kind_of("all-minilm-l6-v2")) == ("model", "encoder")
    with pytest.raises(WeightsError):
        kind_of("there is no such name")
    with pytest.raises(DatasetError, match="is an encoder, and task translate writes text; name a language model"):
        train("translate", data, model=encoder)
    with pytest.raises(DatasetError, match="is yet to be trained"):
        open_untrained("tag", model=encoder, labels=["a", "b"])
    with pytest.raises(DatasetError, match=r"the label 'b' is no word that .* knows, so they cannot be classified"):
        open_untrained("classify", model=encoder, labels=["aa", "b"])
    with pytest.raises(DatasetError, match="name the language with --into"):
        open_untrained("translate", model=base)
    with pytest.raises(DatasetError, match="method 'head'; expected one of lora, rslora, "):
        train("translate", data, model=base, method="head")
    with pytest.raises(DatasetError, match="not trained with 'class_weights'"):
        train("translate", data, model=base, class_weights=True)
    with pytest.raises(DatasetError, match="method prompt leaves all layers as they are; leave out --freeze"):
        train("translate", data, model=base, method="prompt", frozen_layers=1)
    with pytest.raises(DatasetError, match="2 layers are to be frozen"):
        train("translate", data, model=base, frozen_layers=2)


def test_the_command_line_asks_by_name_and_by_folder(
    places: TaskResult, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(files(tmp_path, labelled))
    assert main(["task", "eval", "classify", "--data", data, "--model", base, "--most", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["accuracy"]["count"] == 2
    assert main(["task", "predict", "classify", "boat north", "--model", base, "--labels", "north,south"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"][0] in ("north", "south")
    asked = ["--shots", "2", "--data", data, "--model", base]
    assert main(["task", "predict", "classify", *asked, "boat north", "bird west"]) == 0, "texts behind options"
    assert [json.loads(one)["text"] for one in capsys.readouterr().out.splitlines()] == ["boat north", "bird west"]
    assert main(["task", "predict", "classify", *asked, "boat north", "--nothing"]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    assert main(["task", "predict", str(places.folder), "boat north", "bird west"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [set(json.loads(one)) for one in lines] == [{"text", "said", "score"}] * 2
    assert main(["task", "predict", str(places.folder), "boat north", "--shots", "3"]) == 1
    assert "--shots is for a task by its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "rate", "told"),
    [
        ("full", 3e-3, "A copy of all weights"),
        ("rslora", 3e-3, "A LoRA adapter"),
        ("dora", 1e-2, "A LoRA adapter"),
        ("lora+", 1e-3, "A LoRA adapter"),
        ("prompt", 0.3, "Virtual tokens"),
        ("prefix", 0.3, "Virtual tokens"),
    ],
)
def test_every_method_trains_saves_and_can_be_continued(
    method: str, rate: float, told: str, base: str, tmp_path: Path
) -> None:
    # Rounded products tell a text read at once from one read behind another's beginning, where weights are so wild.
    (tmp_path / "ratchet.toml").write_text('[model]\ndtype = "float32"\n', encoding="utf-8")
    project = find_project(tmp_path)
    data = write_lines(tmp_path / "pairs.jsonl", rows())
    settings = {**QUICK, "method": method, "learning_rate": rate, "epochs": 3}
    made = train("translate", data, model=base, into="Placish", out=tmp_path / "made", project=project, **settings)
    assert made.trained.validation_curve[-1][1] < made.trained.validation_curve[0][1]
    assert f"{told} for the task" in (made.folder / "README.md").read_text("utf-8")
    said = [one.to_dict()["said"] for one in made.predictor.predict(["boat north"])]
    assert [one.to_dict()["said"] for one in load(made.folder, project=project).predict(["boat north"])] == said
    more = train(
        "translate", data, start=made.folder, out=tmp_path / "more", learning_rate=rate / 10, epochs=1, project=project
    )
    assert json.loads((more.folder / "task.json").read_text("utf-8"))["settings"]["method"] == method
    assert more.trained.validation_curve[0][1] < made.trained.validation_curve[0][1]
