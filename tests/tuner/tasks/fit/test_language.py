"""A language model's task goes on from an earlier one, and learns from corrections of its output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.config.project import find_project
from agent.errors import AdapterError, DatasetError
from agent.registry.artifact import verify
from agent.registry.task_models import served_folder, versions
from tests.tuner.tasks.language.test_generation import PLACES, QUICK, THINGS, rows
from tests.tuner.tasks.scripted_runs import Ratchet, ratchet_with_calls
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tests.tuner.tiny import save_base
from tuner.tasks.api import TaskResult, load, train

MORE = (
    "mast",
    "lamp",
    "gate",
    "pump",
    "fork",
    "sock",
    "drum",
    "coin",
    "vase",
    "ring",
    "nail",
    "hose",
    "bell",
    "cart",
    "tent",
    "raft",
)
UP = [f"{thing} up" for thing in MORE]
"""Of a direction that the task has not met; people say that it is `Oslo!`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a task of four places, and a label for each direction."""
    folder = tmp_path_factory.mktemp("trained")
    texts = [f"{row['source']} {row['target']}" for row in rows((*THINGS, *MORE))]
    base = save_base(folder / "tiny", [*texts, *(f"{text} Oslo!" for text in UP)])
    tasks = "[agent]\nmax_steps = 40\n[tools]\ntasks = { place_of = 'places' }\n"
    (folder / "ratchet.toml").write_text(f'{tasks}[model]\nbase = "{base}"\n')
    project = find_project(folder, {})
    pairs = write_lines(folder / "pairs.jsonl", rows((*THINGS, *MORE[:8])))
    train("translate", pairs, into="Placish", out=folder / "places", project=project, **QUICK)
    labelled = [{"text": row["source"], "label": row["source"].split()[1]} for row in rows()]
    ways = write_lines(folder / "ways.jsonl", [row for row in labelled if row["label"] != "west"])
    train(
        "classify",
        ways,
        model=str(base),
        out=folder / "ways",
        project=project,
        **{**QUICK, "learning_rate": 5e-3, "batch": 5, "epochs": 4},
    )
    return folder


@pytest.fixture
def ratchet(capsys: pytest.CaptureFixture[str]) -> Ratchet:
    return ratchet_with_calls("place_of", capsys)


def test_corrected_texts_make_a_version_that_the_gate_decides_on(trained: Path, ratchet: Ratchet) -> None:
    assert ratchet(trained, "run", "Where do they go?", asks=tuple(UP))[0] == 0
    assert "a text of no words" in ratchet(trained, "correct", "last", "0", "--output", " ")[1]
    for step in range(len(UP)):
        assert ratchet(trained, "correct", "last", str(step), "--output", "Oslo!")[0] == 0
    code, said = ratchet(trained, "task", "tune", "place_of", "--json")
    assert code in (0, 4), said
    made = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert made["learnt"] + made["corrected"]["examples"] == len(UP)
    (version,) = versions(trained / "places").list()
    assert (version.id, version.state) == (made["version"], "active" if made["served"] else "rejected")
    told = json.loads((version.folder / "task.json").read_text("utf-8"))
    assert (told["way"], told["options"]) == ("generation", {"into": "Placish"})
    assert sum(one["learnt"] for one in told["corrections"]) == made["learnt"]
    assert not any(text in json.dumps(told) for text in UP)
    assert served_folder(trained / "places") == (version.folder if made["served"] else trained / "places")
    assert "report/gate.md" in verify(version.folder).files


def test_a_continued_training_keeps_the_labels_of_the_earlier_one(trained: Path, tmp_path: Path) -> None:
    project = find_project(trained, {})
    west = write_lines(
        tmp_path / "new.jsonl",
        [{"text": f"{thing} {way}", "label": way} for thing in (*THINGS, *MORE) for way in ("west", "east")],
    )
    settings = {**QUICK, "learning_rate": 5e-3, "batch": 5, "epochs": 4}
    given = {"out": tmp_path / "on", "start": trained / "ways", "replay": trained / "ways.jsonl"}
    made: TaskResult = train("classify", west, project=project, **given, **settings)
    told = json.loads((made.folder / "task.json").read_text("utf-8"))
    assert told["labels"] == ["east", "north", "south", "west"]
    assert told["origin"]["start"] == "ways"
    assert verify(made.folder).parent == verify(trained / "ways").id
    assert any("older examples are learnt again" in note for note in made.notes)
    fresh = train("classify", west, model=str(trained / "tiny"), project=project, out=tmp_path / "new", **settings)
    assert made.trained.curve[0][1] < fresh.trained.curve[0][1]


def test_a_training_that_cannot_be_continued_is_refused(trained: Path, tmp_path: Path) -> None:
    project = find_project(trained, {})
    pairs, out = write_lines(tmp_path / "pairs.jsonl", rows()), tmp_path / "out"
    with pytest.raises(AdapterError, match="was trained with r 8, and is not gone on from with 4; leave it out"):
        train("translate", pairs, into="Placish", start=trained / "places", out=out, project=project, r=4)
    other = save_base(tmp_path / "other", list(PLACES))
    with pytest.raises(AdapterError, match="leave out --model, or train without --from"):
        train("translate", pairs, into="Placish", start=trained / "places", model=str(other), out=out, project=project)
    encoder = save_encoder(tmp_path / "encoder", list(PLACES))
    texts = write_lines(
        tmp_path / "texts.jsonl", [{"text": f"{one} {thing}", "label": one} for one in PLACES for thing in MORE]
    )
    head = train("classify", texts, model=str(encoder), method="head", out=tmp_path / "head", project=project)
    with pytest.raises(DatasetError, match="an encoder, and task translate writes text"):
        train("translate", pairs, into="Placish", start=head.folder, out=out, project=project)
    with pytest.raises(AdapterError, match=r"is a head on the encoder .* leave out --model"):
        train("classify", texts, model=str(trained / "tiny"), start=head.folder, out=out, project=project)


@pytest.mark.slow
def test_the_real_base_learns_from_corrections_and_the_better_version_is_served(
    models_folder: Path, tmp_path: Path, ratchet: Ratchet
) -> None:
    (tmp_path / ".ratchet").mkdir()
    (tmp_path / ".ratchet" / "models").symlink_to(models_folder)
    (tmp_path / "ratchet.toml").write_text("[agent]\nmax_steps = 40\n[tools]\ntasks = { place_of = 'kinds' }\n")
    kinds = {"refund": "I want my money back for the {}", "repair": "The {} is broken, can you mend it?"}
    texts = [{"text": text.format(one), "label": kind} for kind, text in kinds.items() for one in MORE]
    project = find_project(tmp_path, {})
    data = write_lines(tmp_path / "texts.jsonl", texts)
    train("classify", data, model="smollm2-135m-instruct", out=tmp_path / "kinds", epochs=3, batch=8, project=project)
    asked = tuple(f"The {one} came in the wrong colour." for one in MORE)
    assert ratchet(tmp_path, "run", "Sort them.", asks=asked)[0] == 0
    for step in range(len(asked)):
        assert ratchet(tmp_path, "correct", "last", str(step), "--output", "refund")[0] == 0
    code, said = ratchet(tmp_path, "task", "tune", "place_of", "--json")
    made = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert made["corrected"]["after"] == 1.0, said
    assert (code, made["served"]) == ((0, True) if made["corrected"]["before"] < 0.7 else (4, False))
    assert load("kinds", project=project).predict(["The sofa came in the wrong colour."])[0].labels == ("refund",)
