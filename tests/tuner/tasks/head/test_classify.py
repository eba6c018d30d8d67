"""A file of labelled texts becomes a model that labels texts, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.errors import AdapterError, DatasetError
from agent.llm.weights.load import encoder_weights
from agent.registry.artifact import verify
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import TaskResult, load, train
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.records import ClassifyExample
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.linear_probe import fit_head
from tuner.tasks.head.model import TaskModel, load_encoder
from tuner.tasks.head.tasks import learn_task
from tuner.tasks.metrics import TaskScores
from tuner.tasks.predictions import LabelPrediction
from tuner.tasks.settings import choose

COLOURS = ("red", "blue", "green", "grey")
THINGS = ("coat", "tent", "lamp", "rope")
VERBS = ("lost", "found", "want", "sold")
WORDS = (*COLOURS, *THINGS, *VERBS, "i", "my", "the", "a")


def texts() -> list[dict[str, str]]:
    """The verb decides, the rest is noise."""
    return [
        {"text": f"i {verb} my {colour} {thing}", "label": verb}
        for verb in VERBS
        for colour in COLOURS
        for thing in THINGS
    ]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", WORDS))


@pytest.fixture(scope="module")
def made(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    folder = tmp_path_factory.mktemp("made")
    data = write_lines(folder / "texts.jsonl", texts())
    return train("classify", data, model=encoder, out=folder / "verbs", **QUICK)


QUICK: dict[str, Any] = {
    **{"method": "full", "epochs": 12, "learning_rate": 5e-3, "precision": "float32", "patience": 12},
    # There is nothing to fit a head to on an encoder of random weights.
    "head_first": False,
    "head_last": False,
}


def test_a_trained_task_classifies_unseen_texts_and_an_untrained_one_does_not(made: TaskResult) -> None:
    assert made.scores.figures["accuracy"].mean == 1.0
    assert made.before.figures["accuracy"].mean < 0.8
    assert 0 < made.scores.figures["accuracy"].count < len(texts())


def test_a_label_that_only_another_model_knows_is_a_wrong_one() -> None:
    task = ClassifyTask(("lost", "found"))
    said = [LabelPrediction(("lost",), 1.0, {}), LabelPrediction(("refund",), 1.0, {})]
    scores = task.measure([ClassifyExample("a", ("lost",)), ClassifyExample("b", ("found",))], said)
    assert scores.value == 0.5
    assert scores.figures["macro_f1"].mean == pytest.approx(1 / 3)


def test_a_saved_task_predicts_the_same_as_before(made: TaskResult) -> None:
    asked = ["i found a rope", "the grey lamp i sold"]
    before, after = made.predictor.predict(asked), load(made.folder).predict(asked)
    assert before == after
    assert [one.labels for one in after if isinstance(one, LabelPrediction)] == [("found",), ("sold",)]


def test_a_text_has_the_same_prediction_alone_and_among_longer_texts(made: TaskResult) -> None:
    asked = ["i lost my coat", "i want the red coat and the blue coat and the green coat and the grey coat"]
    alone = made.predictor.predict(asked[:1])[0]
    among = made.predictor.predict(asked)[0]
    assert isinstance(alone, LabelPrediction)
    assert isinstance(among, LabelPrediction)
    assert alone.scores == pytest.approx(among.scores, abs=1e-5)


def test_the_folder_is_sealed_and_holds_page_figures_and_card(made: TaskResult) -> None:
    manifest = verify(made.folder)
    assert {"task.json", "README.md", "report/report.html", "report/metrics.json"} <= manifest.files.keys()
    assert not list(made.folder.rglob("*.bin")) + list(made.folder.rglob("*.pkl"))
    page = (made.folder / "report" / "report.html").read_text("utf-8")
    assert "before training" in page
    assert "Confusion" in page


def test_a_folder_whose_task_was_changed_is_refused(made: TaskResult, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    told = json.loads((copy / "task.json").read_text("utf-8"))
    told["labels"].reverse()
    (copy / "task.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"task\.json is not what was sealed"):
        load(copy)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "lora+", "head"])
def test_an_adapter_and_a_head_alone_are_trained_and_come_back(method: str, encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    made = train("classify", data, model=encoder, out=tmp_path / "out", method=method, epochs=15, learning_rate=1e-2)
    assert made.scores.value > made.before.value
    asked = [str(row["text"]) for row in texts()[::7]]
    assert load(made.folder).predict(asked) == made.predictor.predict(asked)


def test_a_head_that_was_fitted_first_stays_where_training_on_makes_it_worse(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    head = train("classify", data, model=encoder, out=tmp_path / "head", method="head")
    ruinous = {**QUICK, "head_first": True, "head_last": True, "learning_rate": 0.9, "head_rate": 0.9, "epochs": 2}
    made = train("classify", data, model=encoder, out=tmp_path / "full", **ruinous)
    assert made.trained.best_epoch == -1
    assert made.trained.validation == head.trained.validation
    assert made.scores.value == pytest.approx(head.scores.value)


def test_the_head_is_fitted_again_after_the_last_epoch(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    head = train("classify", data, model=encoder, out=tmp_path / "head", method="head")
    settings = {**QUICK, "head_first": True, "head_last": True, "epochs": 3}
    made = train("classify", data, model=encoder, out=tmp_path / "full", **settings)
    steps = [step for step, _ in made.trained.validation_curve]
    assert steps[0] == 0
    assert len(steps) == 1 + 3 + 1
    assert steps[-1] == steps[-2]
    assert made.trained.validation >= head.trained.validation == made.trained.validation_curve[0][1]


def test_how_loose_a_head_of_few_texts_is_folds_of_them_tell(encoder: str, tmp_path: Path) -> None:
    """Where one validation text is right by every fit, the folds choose; where there is plenty of it, it does."""
    some = [ClassifyExample(row["text"], (row["label"],)) for row in texts()]
    loaded = load_encoder(encoder_weights(encoder, tmp_path))
    task = learn_task("classify", some)
    settings = choose("classify", len(some), 16, loaded.sizes, {"method": "head"})
    model = TaskModel(loaded, task, settings)
    windows = task.windows(some, loaded.tokenizer, 64)

    def check(scores: list[Any]) -> TaskScores:
        asked = (some * 4)[: len(scores)]
        return task.measure(asked, task.predict(asked, windows, scores), resamples=0)

    few = fit_head(model, windows, check, windows[:1])
    assert {value for _, value in few.figures[1:]} == {1.0}
    assert few.best > 0
    many = fit_head(model, windows, check, windows * 4)
    assert many.validation == max(value for _, value in many.figures[1:])


@pytest.mark.parametrize("kind", ["fgm", "freelb", "typos"])
def test_training_against_changed_embeddings_or_texts_learns_too(kind: str, encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    made = train("classify", data, model=encoder, out=tmp_path / "out", adversarial=kind, **QUICK)
    assert made.scores.figures["accuracy"].mean > 0.8


def test_a_head_alone_learns_from_mistyped_texts_and_says_the_same_again(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    train("classify", data, model=encoder, out=tmp_path / "plain", method="head")
    for name in ("one", "other"):
        train("classify", data, model=encoder, out=tmp_path / name, method="head", adversarial="typos")
    hashes = [verify(tmp_path / name).tensors_sha256 for name in ("plain", "one", "other")]
    assert hashes[0] != hashes[1] == hashes[2]


def test_the_same_seed_gives_the_same_tensors(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    quick = {**QUICK, "epochs": 2}
    for name in ("one", "other"):
        train("classify", data, model=encoder, out=tmp_path / name, **quick)
    train("classify", data, model=encoder, out=tmp_path / "third", seed=1, **quick)
    hashes = [verify(tmp_path / name).tensors_sha256 for name in ("one", "other", "third")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_pairs_of_texts_are_told_apart_by_both(encoder: str, tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"i lost my {one} {thing}", "sentence2": f"found a {other} {thing}", "label": str(one == other)}
        for one in COLOURS
        for other in COLOURS
        for thing in THINGS
    ]
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    made = train("classify", data, model=encoder, out=tmp_path / "out", **{**QUICK, "epochs": 2})
    one, other = made.predictor.predict(
        [("i lost my red coat", "found a red coat"), ("i lost my red coat", "a blue tent")]
    )
    assert one != other


def test_several_labels_a_text_are_learnt_from_columns_of_0_and_1(encoder: str, tmp_path: Path) -> None:
    rows = ["text,red,tent"]
    rows += [
        f"i {verb} my {colour} {thing},{int(colour == 'red')},{int(thing == 'tent')}"
        for verb in VERBS
        for colour in COLOURS
        for thing in THINGS
    ]
    data = tmp_path / "many.csv"
    data.write_text("\n".join(rows), encoding="utf-8")
    made = train("classify", data, model=encoder, out=tmp_path / "out", columns=Columns(label="red,tent"), **QUICK)
    assert made.scores.main == "micro_f1"
    said = made.predictor.predict(["i sold my red tent", "i sold my blue rope"])
    assert [set(one.labels) for one in said if isinstance(one, LabelPrediction)] == [{"red", "tent"}, set()]


def test_unknown_tokens_are_reported(encoder: str, tmp_path: Path) -> None:
    rows = [{"text": f"{'去北京' * (at % 4 + 1)} {at}", "label": "ab"[at % 2]} for at in range(40)]
    data = write_lines(tmp_path / "texts.jsonl", rows)
    made = train("classify", data, model=encoder, out=tmp_path / "out", method="head")
    assert any("does not know" in note and "(--model)" in note for note in made.notes)


def test_a_full_folder_is_not_written_over(made: TaskResult, encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", texts())
    with pytest.raises(DatasetError, match="is there already"):
        train("classify", data, model=encoder, out=made.folder)


def test_the_commands_train_measure_and_predict(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "texts.csv"
    data.write_text("\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in texts())]), encoding="utf-8")
    options = ["--model", encoder, "--method", "full", "--rate", "0.005", "--epochs", "12", "--json"]
    assert main(["task", "train", "classify", "--data", str(data), "--out", "made", *options]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["figures"]["accuracy"]["mean"] == 1.0

    assert main(["task", "eval", "made", "--data", str(data)]) == 0
    assert "| accuracy | 100.0 %" in capsys.readouterr().out

    asked = tmp_path / "asked.txt"
    asked.write_text("i lost a rope\n\ni want the lamp\n", encoding="utf-8")
    assert main(["task", "predict", "made", "--file", str(asked)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["labels"] for one in said] == [["lost"], ["want"]]


def test_a_fault_in_the_data_ends_the_command_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "texts.csv"
    data.write_text("text,label\nfine,a\n,b\n", encoding="utf-8")
    assert main(["task", "train", "classify", "--data", str(data)]) == 1
    assert "texts.csv:3: no text in column 'text'" in capsys.readouterr().err
