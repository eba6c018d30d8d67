"""A trained task is a tool of the agent: named in the settings, checked when it is opened, asked in a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage

from agent.cli.doctor import diagnose
from agent.cli.main import main
from agent.config.project import find_project
from agent.config.reader import load_settings, settings_template
from agent.encoders.encoder import HashEncoder
from agent.errors import AdapterError, SettingsError, ToolsError
from agent.llm.scripted import ScriptedModel, answer, call
from agent.records.run import Task, Trajectory
from agent.registry.task_models import find_task
from agent.runtime import Runtime
from tests.tuner.tasks.head.test_classify import QUICK, WORDS, texts
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.api import open_runtime
from tuner.tasks.api import train
from tuner.tasks.feedback.agent_tools import TaskTools, describe_task

FOUND = 'tasks = { verb_of = "verbs" }'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `verbs`, which tells the verb of a text."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = save_encoder(folder / "tiny", WORDS)
    train("classify", write_lines(folder / "texts.jsonl", texts()), model=str(encoder), out=folder / "verbs", **QUICK)
    return folder / "verbs"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A project with that task."""
    shutil.copytree(trained, tmp_path / "verbs")
    (tmp_path / "ratchet.toml").write_text(f"[tools]\n{FOUND}\n")
    return tmp_path


def run(folder: Path, *replies: AIMessage) -> Trajectory:
    project = find_project(folder, {})
    model = ScriptedModel([*replies, answer("done")])
    with Runtime(project, model=model, encoder=HashEncoder(), tasks=TaskTools(project)) as runtime:
        return runtime.run(Task("t", "i found my tent"))


def test_the_agent_asks_a_trained_task_and_is_told_on_one_line(folder: Path) -> None:
    done = run(folder, call("verb_of", text="i found my tent"), call("verb_of", text="i lost a rope"))
    said = [json.loads(step.observation) for step in done.steps[:2]]
    assert [one["labels"] for one in said] == [["found"], ["lost"]]
    assert set(said[0]) == {"labels", "score"}
    assert "\n" not in done.steps[0].observation
    assert done.provenance.tools["verb_of"]


def test_the_model_is_told_what_the_task_is_for_and_copies_what_it_asks_with(folder: Path) -> None:
    project = find_project(folder, {})
    with Runtime(project, model=ScriptedModel([]), tasks=TaskTools(project)) as runtime:
        told = {tool.name: tool for tool in runtime.frame().tools}["verb_of"]
    assert told.description == "Say which label a text has: found, lost, sold, want."
    assert list(told.parameters["properties"]) == ["text"]
    assert told.copied == ("text",)


def test_a_blank_text_is_refused_to_the_model_and_the_run_goes_on(folder: Path) -> None:
    done = run(folder, call("verb_of", text=" "))
    assert done.steps[0].error == "the text is empty; expected something to read"
    assert done.answer == "done"


def test_a_task_that_is_not_there_is_told_before_anything_is_asked(folder: Path) -> None:
    (folder / "ratchet.toml").write_text('[tools]\ntasks = { verb_of = "verb" }\n')
    with pytest.raises(AdapterError, match=r"no trained task 'verb': looked for .*verb and .*tasks/verb; .*`ratchet"):
        run(folder)


def test_a_task_whose_folder_was_changed_is_refused_by_the_name_of_its_tool(folder: Path) -> None:
    told = (folder / "verbs" / "task.json").read_text("utf-8")
    (folder / "verbs" / "task.json").write_text(told.replace('"found"', '"finds"'), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"\[tools\] tasks, verb_of: .*task\.json is not what was sealed"):
        run(folder)


def test_a_task_in_the_home_is_found_by_its_name(folder: Path) -> None:
    (folder / ".ratchet" / "tasks").mkdir(parents=True)
    shutil.move(folder / "verbs", folder / ".ratchet" / "tasks" / "verbs")
    done = run(folder, call("verb_of", text="i want a lamp"))
    assert json.loads(done.steps[0].observation)["labels"] == ["want"]


def test_what_the_settings_name_is_not_looked_for_where_the_command_is_called(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder / "verbs", elsewhere / "verbs")
    monkeypatch.chdir(elsewhere)
    project = find_project(folder, {})
    assert find_task(project, "verb_of") == folder / "verbs"
    assert find_task(project, "verbs") == Path("verbs")


def test_a_tool_cannot_have_the_name_of_another(folder: Path) -> None:
    (folder / "ratchet.toml").write_text('[tools]\ntasks = { calculator = "verbs" }\n')
    with pytest.raises(ToolsError, match=r"tasks in ratchet\.toml.*'calculator' is taken by the built-in tools"):
        run(folder)


def test_a_runtime_without_them_says_so(folder: Path) -> None:
    project = find_project(folder, {})
    with (
        Runtime(project, model=ScriptedModel([answer("done")]), encoder=HashEncoder()) as runtime,
        pytest.raises(ToolsError, match="opened without the trained tasks"),
    ):
        runtime.frame()


def test_what_opens_a_project_brings_its_tasks(folder: Path) -> None:
    with open_runtime(find_project(folder, {}), lambda text: None) as runtime:
        assert "verb_of" in [tool.name for tool in runtime.frame().tools]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{ "a b" = "x" }', "names of letters, digits and _"),
        ('{ a = " " }', "a text that is not empty"),
        ("{ a = 1 }", r'such as \{ name = "text" \}'),
        ('["a"]', r'such as \{ name = "text" \}'),
    ],
)
def test_settings_say_what_names_a_task(given: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "ratchet.toml").write_text(f"[tools]\ntasks = {given}\n")
    with pytest.raises(SettingsError, match=expected):
        load_settings(tmp_path / "ratchet.toml")


def test_the_template_has_no_task_and_a_note() -> None:
    assert "name in the home, such as { classify_intent" in settings_template()
    assert "\ntasks = {}\n" in settings_template()


def test_the_doctor_and_the_list_know_the_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = (one for one in diagnose(find_project(folder, {})) if one.what == "task verb_of")
    assert found.level == "ok"
    assert found.found.endswith(str(folder / "verbs"))
    assert main(["--project", str(folder), "task", "list"]) == 0
    assert "verb_of" in capsys.readouterr().out

    shutil.rmtree(folder / "verbs")
    (found,) = (one for one in diagnose(find_project(folder, {})) if one.what == "task verb_of")
    assert found.level == "missing"


def test_descriptions_say_what_each_task_does_and_stay_short() -> None:
    many = [f"l{number}" for number in range(77)]
    told = {
        "classify": ({"multi": True}, many),
        "tag": ({}, ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]),
        "relate": ({}, ["Part(e1,e2)", "Other"]),
        "answer": ({}, ["start", "end"]),
    }
    said = {
        task: describe_task({"task": task, "labels": labels, "options": options})
        for task, (options, labels) in told.items()
    }
    assert said["classify"] == f"Say which labels a text has: {', '.join(many[:12])} and 65 more."
    assert said["tag"] == "Find the entities in a text: PER, LOC."
    assert "<e1>…</e1>" in said["relate"]
    assert said["answer"] == "Find the answer to a question in a context."


def test_a_language_models_task_says_what_it_is_for_as_well() -> None:
    told = {"task": "translate", "labels": [], "options": {"into": "German"}}
    assert describe_task(told) == "Translate a text into German."
    assert describe_task({**told, "task": "tag", "labels": ["PER", "LOC"]}) == "Find the entities in a text: PER, LOC."
    assert describe_task({**told, "task": "tag", "labels": ["B-PER", "I-PER", "O"]}).endswith(": PER.")
