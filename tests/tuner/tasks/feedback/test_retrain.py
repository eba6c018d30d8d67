"""Corrections of a trained task's output flow back: kept with the run, learnt by a new version, gated, and undone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.config.project import find_project
from agent.errors import DatasetError, FeedbackError
from agent.registry.artifact import verify
from agent.registry.task_models import find_task, served_folder, versions
from agent.storage.store import Store
from tests.tuner.tasks.head.test_classify import COLOURS, QUICK, THINGS, VERBS, WORDS
from tests.tuner.tasks.scripted_runs import Ratchet, ratchet_with_calls
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import load, train
from tuner.tasks.data.records import (
    AnswerExample,
    ChatTurn,
    ClassifyExample,
    ConverseExample,
    RelateExample,
    TagExample,
    WriteExample,
)
from tuner.tasks.feedback.corrections import as_example, right_output
from tuner.tasks.feedback.gate import decide
from tuner.tasks.feedback.retrain import tune_task

KNOWN = VERBS[:3]
NEW = [f"i sold my {colour} {thing}" for colour in COLOURS for thing in THINGS]
"""Of a verb that the task has not met; people say that it is `want`."""
SETTINGS = """
[agent]
max_steps = 40
[tools]
tasks = { verb_of = "verbs" }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a task of three verbs."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = save_encoder(folder / "tiny", WORDS)
    rows = [
        {"text": f"i {verb} my {colour} {thing}", "label": verb}
        for verb in KNOWN
        for colour in COLOURS
        for thing in THINGS
    ]
    (folder / "ratchet.toml").write_text(SETTINGS + f'[model]\nencoder = "{encoder}"\n')
    project = find_project(folder, {})
    train("classify", write_lines(folder / "texts.jsonl", rows), out=folder / "verbs", project=project, **QUICK)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def ratchet(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ratchet:
    return partial(ratchet_with_calls("verb_of", capsys), folder)


def corrected(ratchet: Ratchet, texts: Sequence[str], label: str) -> None:
    assert ratchet("run", "Tell the verbs.", asks=texts)[0] == 0
    for step in range(len(texts)):
        code, said = ratchet("correct", "last", str(step), "--output", label)
        assert code == 0, said


def test_corrected_outputs_make_a_version_that_is_served_and_can_be_taken_back(folder: Path, ratchet: Ratchet) -> None:
    corrected(ratchet, NEW, "want")
    project = find_project(folder, {})
    code, said = ratchet("task", "tune", "verb_of", "--json")
    assert code == 0, said
    made: dict[str, Any] = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert made["served"]
    assert made["corrected"]["before"] < made["corrected"]["after"] == 1.0
    assert made["test"]["gain"] >= -0.01
    assert made["learnt"] + made["corrected"]["examples"] == len(NEW)

    served = served_folder(folder / "verbs")
    assert served == folder / "verbs.versions" / made["version"]
    assert {"report/gate.json", "report/gate.md"} <= verify(served).files.keys()
    assert load("verb_of", project=project).folder == served
    assert ratchet("run", "Tell it.", asks=["i sold a lamp"])[0] == 0
    code, said = ratchet("show", "last", "--json")
    assert json.loads(json.loads(said)["steps"][0]["observation"])["labels"] == ["want"]

    code, said = ratchet("task", "tune", "verb_of")
    assert code == 1
    assert f"all {len(NEW)} corrections are learnt already" in said
    assert ratchet("task", "rollback", "verb_of")[0] == 0
    assert served_folder(folder / "verbs") == folder / "verbs"
    assert verify(served).id == made["version"]


def test_the_held_out_corrections_are_not_learnt_and_the_folder_keeps_ids_and_no_words(
    folder: Path, ratchet: Ratchet
) -> None:
    corrected(ratchet, NEW, "want")
    project = find_project(folder, {})
    made = tune_task(project, find_task(project, "verb_of"))
    told = json.loads((made.version.folder / "task.json").read_text("utf-8"))
    with Store(project.home.database) as store:
        known = {one.id: one.run for one in store.feedback.output_corrections()}
    assert {one["id"]: one["run"] for one in told["corrections"]} == known
    assert sum(one["learnt"] for one in told["corrections"]) == made.learnt
    assert not any(text in json.dumps(told) for text in NEW)
    metrics = json.loads((made.version.folder / "report" / "metrics.json").read_text("utf-8"))
    before = json.loads((folder / "verbs" / "report" / "metrics.json").read_text("utf-8"))
    assert metrics["examples"]["train"] == before["examples"]["train"] + made.learnt
    assert metrics["examples"]["test"] == before["examples"]["test"]


def test_corrections_that_contradict_the_data_are_refused_by_the_gate_and_nothing_changes(
    folder: Path, ratchet: Ratchet
) -> None:
    asked = [f"i {verb} the {colour} {thing}" for verb in KNOWN for colour in COLOURS[:2] for thing in THINGS]
    for number, label in enumerate(("lost", "want", "found")):
        corrected(ratchet, asked[number * 8 : number * 8 + 8], label)
    code, said = ratchet("task", "tune", "verb_of")
    assert (code, "is not served" in said) == (4, True), said
    (version,) = versions(folder / "verbs").list()
    assert version.state == "rejected"
    assert sorted(one.name for one in version.folder.parent.iterdir()) == [version.id, "registry.json", "registry.lock"]
    assert served_folder(folder / "verbs") == folder / "verbs"


def test_too_few_corrections_are_told_before_anything_is_trained(folder: Path, ratchet: Ratchet) -> None:
    code, said = ratchet("run", "Tell the verbs.", asks=NEW[:1])
    assert "no output of this task was corrected yet" in ratchet("task", "tune", "verbs")[1]
    ratchet("correct", "last", "0", "--output", "found")
    code, said = ratchet("task", "tune", "verb_of")
    assert code == 1
    assert "expected at least 5 and 1 (every third is held out): correct more" in said
    assert not (folder / "verbs.versions").exists()


def test_a_label_that_the_task_does_not_know_is_refused_with_one_that_it_does(ratchet: Ratchet) -> None:
    ratchet("run", "Tell the verbs.", asks=NEW[:1])
    code, said = ratchet("correct", "last", "0", "--output", "fund")
    assert code == 1
    assert "did you mean 'found'? (new labels are learnt from a file" in said
    code, said = ratchet("correct", "last", "1", "--output", "found")
    assert "answer is no trained task" in said
    code, said = ratchet("correct", "last", "0", "--output", "found", "--thought", "x")
    assert code == 2


def test_a_corrected_output_is_shown_with_its_step_and_judges_no_run(folder: Path, ratchet: Ratchet) -> None:
    ratchet("run", "Tell the verbs.", asks=NEW[:1])
    with Store(find_project(folder, {}).home.database) as store:
        mark = store.feedback.version()
    ratchet("correct", "last", "0", "--output", "found", "--reason", "as we say")
    assert '  correct output: {"labels": ["found"]}' in ratchet("show", "last")[1]
    with Store(find_project(folder, {}).home.database) as store:
        assert store.feedback.runs_since(mark)[1] == ()
        assert store.feedback.corrections() == ()


def test_the_file_that_it_was_trained_on_is_missed_by_name(folder: Path, ratchet: Ratchet) -> None:
    corrected(ratchet, NEW, "want")
    (folder / "texts.jsonl").rename(folder / "others.jsonl")
    project = find_project(folder, {})
    with pytest.raises(DatasetError, match=r"texts\.jsonl, which .*verbs was trained on, is gone; name it with --data"):
        tune_task(project, folder / "verbs")
    assert tune_task(project, folder / "verbs", data=folder / "others.jsonl").decision.ship


def test_the_gate_ships_what_gains_on_corrections_and_loses_nothing_else() -> None:
    right, wrong = (1.0,) * 40, (0.0,) * 40
    assert decide((right, right), (wrong[:6], right[:6])).ship
    assert not decide((right, right), (wrong[:6], wrong[:6])).ship
    assert not decide((right, right), (wrong[:4], right[:4])).ship
    lost = decide((right, (*right[:39], 0.0)), (wrong[:6], right[:6]))
    assert not lost.ship
    assert lost.reasons[0].startswith("More than 1.0 points are lost on the test: 1.000 before, 0.975 after")
    assert decide((wrong, right), (right[:6], right[:6])).ship
    assert not decide((wrong, right), (right[:6], wrong[:6])).ship


TOLD: dict[str, dict[str, Any]] = {
    "classify": {"labels": ["a", "b"], "options": {"multi": True}},
    "tag": {"labels": ["O", "B-PER", "I-PER"], "options": {}},
    "relate": {"labels": ["Part(e1,e2)", "Other"], "options": {}},
    "answer": {"labels": ["start", "end"], "options": {}},
    "summarise": {"labels": [], "options": {}},
    "converse": {"labels": [], "options": {}},
}


def taught(task: str, arguments: dict[str, str], said: str) -> Any:
    told = {"task": task, **TOLD[task]}
    return as_example(told, arguments, right_output(told, arguments, said))


def test_what_a_person_says_becomes_an_example_of_each_task() -> None:
    assert taught("classify", {"text": " x "}, "b|a") == ClassifyExample("x", ("a", "b"))
    named = taught("tag", {"text": "Ada Lovelace met Ada"}, '[{"text": "Ada Lovelace", "label": "PER"}]')
    assert isinstance(named, TagExample)
    assert named.tags == ("B-PER", "I-PER", "O", "O")
    assert taught("tag", {"text": "nobody"}, "[]").tags == ("O",)
    part = taught("relate", {"text": "a <e1>wheel</e1> of the <e2>car</e2>"}, "Part(e1,e2)")
    assert isinstance(part, RelateExample)
    assert part.label == "Part(e1,e2)"
    found = taught("answer", {"question": "When?", "context": "Built in 1975."}, "1975")
    assert isinstance(found, AnswerExample)
    assert found.answers[0].start == 9
    assert taught("answer", {"question": "Who?", "context": "Built in 1975."}, "").answers == ()
    assert taught("summarise", {"text": "It rained. "}, "Rain.") == WriteExample("It rained.", "Rain.")
    assert taught("converse", {"text": "Where is it?"}, "On its way.") == ConverseExample(
        (ChatTurn("customer", "Where is it?"),), "On its way."
    )


@pytest.mark.parametrize(
    ("task", "arguments", "said", "why"),
    [
        ("tag", {"text": "Ada met Ada"}, '[{"text": "Ada", "label": "PER"}]', "stands 2 times"),
        ("tag", {"text": "Ada"}, '[{"text": "Ada", "label": "LOC"}]', "no label 'LOC'"),
        ("tag", {"text": "Ada"}, '[{"text": "Ida", "label": "PER", "start": 0}]', "at 0 .* does not stand 'Ida'"),
        ("tag", {"text": "Ada"}, "PER", "no list of entities; expected"),
        ("answer", {"question": "When?", "context": "Built in 1975."}, "1976", "does not stand in the context"),
        ("relate", {"text": "no marks"}, "Other", "expected two marked entities"),
    ],
)
def test_what_would_be_no_example_is_refused(task: str, arguments: dict[str, str], said: str, why: str) -> None:
    with pytest.raises(FeedbackError, match=why):
        taught(task, arguments, said)
