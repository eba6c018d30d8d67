"""Forgetting a person in a whole home: log, documents, datasets, tunings and reports; and who learnt of them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.config.project import Project, find_project
from agent.encoders.encoder import HashEncoder
from agent.errors import MemoryIndexError
from agent.knowledge.vector_index import IndexLock
from agent.llm.scripted import ScriptedModel
from agent.privacy.erasure import AdapterTrace, ErasurePlan, find, forget
from agent.privacy.subject import Subject
from agent.records.feedback import Correction, OutputCorrection, Rating
from agent.records.run import Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from agent.registry.artifact import seal, verify
from agent.registry.registry import Registry, State
from agent.registry.task_models import versions
from agent.runtime import Runtime
from agent.storage.store import Store
from agent.text.normalise import normalise_task
from tuner.data.curate import curate
from tuner.data.dataset import Dataset, write_dataset
from tuner.encoder.dataset import FirstCallTask, make_dataset, write_encoder_dataset
from tuner.evaluation.checks import RunScores
from tuner.evaluation.evaluate import EvaluatedTask, Evaluation
from tuner.pipeline.run_folder import TuningStart, begin, checkpoints_of, latest_unfinished
from tuner.privacy.erasure import HomeTraining, retraining

REPOSITORY = Path(__file__).parents[3]
NOW = "2026-01-01T00:00:00Z"
WHO = "zqxvkowalski77"
SAID = "quokkatelescope"
"""Stands in what the person said, and never beside the ID."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "ratchet.toml").write_text('[gate]\nsuite = "suite.jsonl"\n')
    return find_project(folder, {})


def opened(project: Project, say: Callable[[str], None] = lambda text: None) -> Runtime:
    return Runtime(project, model=ScriptedModel([]), encoder=HashEncoder(), progress=say)


def record(store: Store, id: str, text: str, *, facts: dict[str, str] | None = None, **made: Any) -> None:
    """A run of one step that was accepted."""
    store.begin(Trajectory(id, Task(f"t-{id}", text, facts or {}), Provenance(**made), NOW))
    step = Step(ToolCall("answer", {"text": f"about {text}"}), plan=("say it",))
    store.intend(id, 0, step)
    store.add_step(id, 0, step)
    store.end(id, Outcome.ANSWERED, NOW)
    store.feedback.add_rating(Rating(f"f-{id}", id, "up", "ann", "", NOW))


def dataset_of(project: Project, *runs: str) -> Dataset:
    """A dataset of these runs, made by the tuner's own code."""
    with Store(project.home.database) as store:
        curated = curate(store)
    rows = tuple(row for row in curated.rows if row.run in runs)
    return write_dataset(
        replace(curated, rows=rows), project.home.datasets, validation_share=0.0, created_at=NOW, provenance={}
    )


def tuning_on(project: Project, id: str, dataset: Dataset) -> Path:
    folder = begin(project.home.tunings, TuningStart(id, dataset.folder.name, None, "p", "r", NOW))
    (checkpoints_of(folder) / "step-000001").mkdir()
    (folder / "report.html").write_text(f"<p>{SAID}</p>")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    return folder


def adapter(
    project: Project, id: str, dataset: str, *, parent: str | None = None, merged: Sequence[str] = (), page: str = ""
) -> Path:
    folder = project.home.adapters / id
    (folder / "report").mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "auto_mapping": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    (folder / "README.md").write_text("# An adapter\n")
    if page:
        (folder / "report" / "gate.html").write_text(page)
    seal(
        folder,
        id=id,
        base="b",
        base_revision="1",
        dataset_hash=dataset,
        parent=parent,
        tuning="t",
        created_at=NOW,
        code_version="0",
        merged=dict.fromkeys(merged, 0.5),
    )
    Registry(project.home.adapters).add(folder)
    return folder


def task(project: Project, folder: Path, *, page: str = "", **told: Any) -> Path:
    """The folder of a trained task, with this in its `task.json`."""
    (folder / "report").mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LN_TUNING", "auto_mapping": None}))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    (folder / "task.json").write_text(json.dumps({"version": 1, "task": "classify", **told}))
    if page:
        (folder / "report" / "report.html").write_text(page)
    known: dict[str, Any] = {"base": "b", "base_revision": "1", "dataset_hash": "0", "parent": None, "tuning": "t"}
    seal(folder, id=folder.name, created_at=NOW, code_version="0", **known)
    return folder


def version(project: Project, folder: Path, id: str, *runs: str, held_out: Sequence[str] = (), **told: Any) -> Path:
    """A version that learnt corrections of these runs, and is served."""
    corrections = [{"id": f"c-{run}", "run": run, "learnt": run in runs} for run in (*runs, *held_out)]
    registry = versions(folder)
    made = task(project, registry.folder / id, corrections=corrections, **told)
    registry.add(made)
    registry.transition(id, State.GATED, "better", NOW)
    registry.promote(id, "better", NOW)
    return made


def serve(project: Project, *ids: str) -> None:
    registry = Registry(project.home.adapters)
    for id in ids:
        registry.transition(id, State.GATED, "better", NOW)
        registry.promote(id, "better", NOW)


def look(project: Project, subject: str = WHO, **options: Any) -> ErasurePlan:
    return find(project.home, Subject(subject), HomeTraining(project), **options)


def take_out(project: Project, subject: str = WHO, *, pages: bool = False, **options: Any) -> ErasurePlan:
    found = look(project, subject, **options)
    with opened(project) as runtime:
        assert forget(project.home, found, HomeTraining(project), open_memory=runtime.open_memory, at=NOW, pages=pages)
    return found


def holding(folder: Path, *texts: str) -> list[str]:
    """The files with one of these texts in their bytes, in capitals or not, whole or as far as a stem goes."""
    wanted = [text[:-1].encode() for text in texts]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and any(text in path.read_bytes().lower() for text in wanted)
    )


def ids(adapters: Sequence[AdapterTrace]) -> list[str]:
    return [one.id for one in adapters]


def test_nothing_of_a_forgotten_person_is_left_in_any_file(project: Project, tmp_path: Path) -> None:
    home = project.home
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "hers.md").write_text(f"---\ncustomer: {WHO}\n---\n# Letter\n\nThe {SAID} is broken.\n")
    (letters / "other.md").write_text("# Tents\n\nA tent is dried before it is packed.\n")
    with opened(project) as runtime:
        runtime.memory.add_folder(letters)
        (passage,) = runtime.memory.search(f"the {SAID} is broken", 1)
        tenant = runtime.open_memory("shop")
        tenant.add_folder(letters)
        tenant.close()
    with Store(home.database) as store:
        record(store, "hers", f"my {SAID} is lost", facts={"customer_id": WHO.upper()})
        record(store, "his", "where is my tent", recalled=(Recalled(f"my {SAID} is lost", "answer"),))
        record(store, "plain", "dry my tent")
    for id in ("hers", "his"):
        (home.workspaces / id).mkdir(parents=True)
        (home.workspaces / id / "note.txt").write_text(SAID if id == "hers" else "tent")
    with_her = dataset_of(project, "hers", "plain")
    shows_her = dataset_of(project, "his")
    without = dataset_of(project, "plain")
    begun = tuning_on(project, "t-1", with_her)
    scores = RunScores(success=True, refusal=False, reasons=())
    for name, answer in (("e1", f"Ask\n{WHO}"), ("e2", "A tent.")):
        rows = (EvaluatedTask("t", "g", "x", False, scores, Outcome.ANSWERED, answer),)
        Evaluation("s", "b", "1", None, None, rows).save(home.evaluations / f"{name}.json")
    assert any(path.startswith("index/") for path in holding(home.root, passage.id))
    held = holding(home.root, WHO, SAID)
    assert {path.partition("/")[0] for path in held} == {
        "ratchet.db",
        "datasets",
        "tunings",
        "evaluations",
        "workspaces",
    }

    found = take_out(project)

    assert holding(home.root, WHO, SAID, passage.id) == []
    assert dict(found.runs.runs) == {"hers": "fact"}
    assert [(one.tenant, one.name) for one in found.documents] == [("", "hers.md"), ("shop", "hers.md")]
    assert [(one.name, one.examples) for one in found.learnt.datasets] == sorted(
        [(with_her.folder.name, ("hers",)), (shows_her.folder.name, ())]
    )
    assert [path.name for path in home.datasets.iterdir()] == [without.folder.name]
    assert sorted(path.name for path in begun.iterdir()) == ["metrics.jsonl", "tuning.json"]
    assert [path.name for path in home.evaluations.iterdir()] == ["e2.json"]
    assert [path.name for path in home.workspaces.iterdir()] == ["his"]
    with Store(home.database) as store:
        assert [one.id for one in store.runs()] == ["plain", "his"]
        assert store.get("his").provenance.recalled == ()
        (kept,) = store.forgettings()
    assert (kept.runs, kept.documents, kept.at) == (("hers",), 2, NOW)
    assert kept.datasets == {with_her.folder.name: ("hers", "plain"), shows_her.folder.name: ("his",)}
    with opened(project) as runtime:
        assert [one.document for one in runtime.memory.search("a tent", 5)] == ["other.md"]


def test_a_document_that_only_names_the_id_stays_unless_it_is_asked_for(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "rules.md").write_text(f"# What {WHO} asked\n\nTents are dried.\n")
    (folder / f"{WHO}.md").write_text("A letter.\n")
    (folder / "tents.md").write_text("Tents are packed.\n")
    with opened(project) as runtime:
        runtime.memory.add_folder(folder)
    found = take_out(project)
    assert (found.documents, [(one.name, one.place) for one in found.mentions]) == (
        (),
        [("rules.md", "text"), (f"{WHO}.md", "name")],
    )
    assert not found.goes(pages=False)
    with opened(project) as runtime:
        assert len(runtime.memory.documents()) == 3
    assert look(project, documents=True).goes(pages=False)
    take_out(project, documents=True)
    with opened(project) as runtime:
        assert [one.name for one in runtime.memory.documents()] == ["tents.md"]
    assert holding(project.home.root, WHO) == []


def test_a_run_that_was_shown_a_document_of_theirs_goes_with_it(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "hers.md").write_text(f"---\ncustomer: {WHO}\n---\nThe {SAID} is broken.\n")
    with opened(project) as runtime:
        runtime.memory.add_folder(folder)
        (passage,) = runtime.memory.search("broken", 1)
    with Store(project.home.database) as store:
        store.begin(Trajectory("shown", Task("t", "x"), Provenance(), NOW, (Step(None, passages=(passage,)),)))
    assert dict(look(project).runs.runs) == {"shown": "passage"}
    assert dict(look(project, own_tenant="shop").runs.runs) == {}


def test_a_dataset_that_shows_a_document_of_theirs_where_no_run_was_shown_it_goes(
    project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "hers.md").write_text(f"---\ncustomer: {WHO}\n---\nThe {SAID} is broken.\n")
    with opened(project) as runtime:
        runtime.memory.add_folder(folder)
        (passage,) = runtime.memory.search("broken", 1)
    with Store(project.home.database) as store:
        record(store, "plain", "dry my tent")
        curated = curate(store)
    (row,) = curated.rows
    without = dataset_of(project, "plain")
    step = replace(row.trajectory.steps[0], passages=(passage,))
    drawn = replace(row, kind="drawn", trajectory=replace(row.trajectory, steps=(step,)))
    shows_it = write_dataset(
        replace(curated, rows=(row, drawn)),
        project.home.datasets,
        validation_share=0.0,
        created_at=NOW,
        provenance={},
    )
    found = take_out(project)
    assert [(one.name, one.examples) for one in found.learnt.datasets] == [(shows_it.folder.name, ())]
    assert [path.name for path in project.home.datasets.iterdir()] == [without.folder.name]


def test_what_was_interrupted_is_finished_by_the_same_call(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "hers.md").write_text(f"---\ncustomer: {WHO}\n---\nThe {SAID} is broken.\n")
    with opened(project) as runtime:
        runtime.memory.add_folder(folder)
    with Store(project.home.database) as store:
        # Theirs by a correction's reason alone, of which a dataset says nothing.
        record(store, "hers", SAID)
        call = ToolCall("answer", {"text": "so"})
        store.feedback.add_correction(Correction("c", "hers", 0, call, "", (), "ann", f"asked by {WHO}", NOW))
    made = dataset_of(project, "hers")
    begun = tuning_on(project, "t-1", made)
    for path in (made.folder, begun):
        shutil.copytree(path, tmp_path / "before" / path.name)
    (project.home.workspaces / "hers").mkdir(parents=True)
    with IndexLock(project.home.index / "lock").hold(), pytest.raises(MemoryIndexError, match="is locked"):
        take_out(project)
    assert holding(project.home.root, SAID) != []
    # As if it had been killed before these were removed.
    for path in (made.folder, begun):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "before" / path.name, path)
    again = take_out(project)
    assert (dict(again.runs.runs), [one.name for one in again.documents]) == ({}, ["hers.md"])
    assert [(one.name, one.examples) for one in again.learnt.datasets] == [(made.folder.name, ("hers",))]
    assert holding(project.home.root, WHO, SAID) == []
    assert list(project.home.workspaces.iterdir()) == []
    assert not look(project).goes(pages=True)


def test_a_half_written_dataset_goes_when_it_holds_the_run(project: Project) -> None:
    with Store(project.home.database) as store:
        record(store, "hers", SAID, facts={"id": WHO})
        record(store, "plain", "dry my tent")
    for run in ("hers", "plain"):
        folder = dataset_of(project, run).folder
        (folder / "manifest.json").unlink()
        folder.rename(folder.with_name(f".{run}.new"))
    assert [one.name for one in take_out(project).learnt.datasets] == [".hers.new"]
    assert [path.name for path in project.home.datasets.iterdir()] == [".plain.new"]


def test_what_the_encoder_learnt_tasks_from_goes_when_it_holds_one_of_theirs(project: Project) -> None:
    with Store(project.home.database) as store:
        record(store, "run-7", f"{SAID} of 12345 is late", facts={"customer": WHO})
        record(store, "his", "nothing of hers")
    for name, text in (("theirs", f"{SAID} of 12345 is late"), ("other", "nothing of hers")):
        lessons = make_dataset((), {}, [FirstCallTask(normalise_task(text), f"{name}()", "", "train")])
        write_encoder_dataset(lessons, project.home.datasets, created_at=NOW)
    take_out(project)
    (left,) = project.home.datasets.iterdir()
    assert "nothing of hers" in (left / "tasks.jsonl").read_text()


def test_an_unfinished_tuning_on_a_dataset_that_goes_cannot_be_gone_on_with(project: Project) -> None:
    with Store(project.home.database) as store:
        record(store, "hers", SAID, facts={"id": WHO})
        record(store, "plain", "dry my tent")
    for id, run in (("t-1", "plain"), ("t-2", "hers")):
        tuning_on(project, id, dataset_of(project, run))
    assert latest_unfinished(project.home.tunings, "").id == "t-2"
    take_out(project)
    assert latest_unfinished(project.home.tunings, "").id == "t-1"
    assert (project.home.tunings / "t-1" / "report.html").is_file()


def test_every_adapter_that_learnt_of_the_runs_is_listed_with_what_trains_without_them(project: Project) -> None:
    with Store(project.home.database) as store:
        record(store, "hers", SAID, facts={"id": WHO})
        record(store, "his", "where is my tent", facts={"id": "B2"})
        record(store, "plain", "dry my tent")
    with_her, without = dataset_of(project, "hers", "his").hash, dataset_of(project, "plain").hash
    adapter(project, "clean", without)
    adapter(project, "first", with_her)
    adapter(project, "child", without, parent="first")
    adapter(project, "sum", "of lists", merged=("clean", "child"))
    adapter(project, "lost", "a dataset that was deleted")
    serve(project, "clean", "first", "child")
    found = take_out(project)
    listed = {one.id: one for one in found.learnt.adapters}
    assert list(listed) == ["first", "child", "sum", "lost"]
    assert [(one.runs, one.through) for one in listed.values()] == [
        (1, ("first",)),
        (1, ("first",)),
        (1, ("first",)),
        (0, ()),
    ]
    assert [(one.state, one.served) for one in listed.values()] == [
        ("retired", False),
        ("active", True),
        ("trained", False),
        ("trained", False),
    ]
    assert [id for id, one in listed.items() if one.unknown] == ["lost"]
    assert found.learnt.commands == ("ratchet rollback", "ratchet rollback", "ratchet tune --promote")

    # The dataset is gone now, and it is still known what it held.
    later = {one.id: one for one in take_out(project, "B2").learnt.adapters}
    assert {id: (one.runs, one.earlier, one.unknown) for id, one in later.items()} == {
        "first": (1, 1, False),
        "child": (1, 1, False),
        "sum": (1, 1, False),
        "lost": (0, 0, True),
    }
    for command in found.learnt.commands:
        if command == "ratchet rollback":
            Registry(project.home.adapters).rollback("forgotten", NOW)
    last = look(project, "B2").learnt
    assert not any(one.served for one in last.adapters)
    assert last.commands == ("ratchet tune --promote",)


def test_where_all_that_was_served_learnt_of_them_the_base_is_what_is_left() -> None:
    def learnt(id: str, runs: int) -> AdapterTrace:
        return AdapterTrace(id, "retired", False, runs, 0, (id,), False, ())

    assert retraining([learnt("a", 1), learnt("b", 2)], ["b", "a"])[:-1] == ("ratchet rollback",) * 2
    assert retraining([learnt("a", 1)], ["b", "a"]) == ("ratchet tune --promote",)
    assert retraining([learnt("a", 0)], ["a"]) == ()


def test_pages_of_a_sealed_folder_stay_until_they_are_asked_for(project: Project) -> None:
    with Store(project.home.database) as store:
        record(store, "plain", "dry my tent")
    folder = adapter(project, "first", dataset_of(project, "plain").hash, page=f"<td>&#x20;{WHO}</td>")
    other = adapter(project, "other", dataset_of(project, "plain").hash, page="<td>tents</td>")
    serve(project, "first")
    (project.folder / "suite.jsonl").write_text(json.dumps({"task": f"by\n{WHO}"}) + "\n")
    found = take_out(project)
    assert [(one.id, one.pages, one.runs) for one in found.learnt.adapters] == [("first", ("report/gate.html",), 0)]
    assert found.learnt.suite == project.folder / "suite.jsonl"
    assert (folder / "report" / "gate.html").is_file()
    assert not found.goes(pages=False)
    assert found.goes(pages=True)
    take_out(project, pages=True)
    assert set(verify(folder).files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    served = Registry(project.home.adapters).active()
    assert served is not None
    assert served.id == "first"
    assert holding(project.home.root, WHO) == []
    assert (other / "report" / "gate.html").is_file()


def test_a_home_without_anything_has_nothing_to_forget(project: Project) -> None:
    found = look(project)
    assert not found.goes(pages=True)
    assert not project.home.root.exists()


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def ratchet(project: Project) -> Callable[..., int]:
    return lambda *words: main(["--project", str(project.folder), *words], open_runtime=opened)


@pytest.fixture
def hers(project: Project) -> Project:
    """A home with one run of hers, and an adapter that learnt of it."""
    with Store(project.home.database) as store:
        record(store, "hers", SAID, facts={"id": WHO})
        record(store, "plain", "dry my tent")
    adapter(project, "first", dataset_of(project, "hers", "plain").hash)
    serve(project, "first")
    return project


def test_a_dry_run_tells_and_removes_nothing(
    hers: Project, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = holding(hers.home.root, WHO, SAID)
    assert ratchet("forget", "--subject", WHO, "--dry-run") == 0
    shown = capsys.readouterr().out
    for line in (
        "Would be removed:",
        "1 runs (1 by fact)",
        "with examples of 1 of the runs",
        "first (active, served); trained on 1 of the runs",
        "  ratchet rollback\n  ratchet tune --promote",
    ):
        assert line in shown
    assert "Removed" not in shown
    assert ratchet("forget", "--subject", WHO, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] is False
    assert holding(hers.home.root, WHO, SAID) == before != []


def test_what_went_is_told_as_json(
    hers: Project, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ratchet("forget", "--subject", WHO, "--yes", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["removed"], told["log_emptied"]) == ({"hers": "fact"}, True, True)
    assert [one["examples"] for one in told["datasets"]] == [["hers"]]
    assert [(one["id"], one["served"], one["runs"]) for one in told["adapters"]] == [("first", True, 1)]
    assert told["commands"] == ["ratchet rollback", "ratchet tune --promote"]
    assert holding(hers.home.root, WHO, SAID) == []
    assert ratchet("forget", "--subject", WHO, "--yes") == 0
    assert "There is nothing to remove." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--subject", WHO], 2, "the confirmation needs a terminal; check with --dry-run, then give --yes"),
        (["--subject", WHO, "--json"], 2, "the confirmation needs a terminal"),
        (["--subject", " ", "--yes"], 1, "no letter and no digit"),
        (["--yes"], 2, "required: --subject"),
    ],
)
def test_nothing_is_removed_unasked(
    hers: Project,
    ratchet: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    assert ratchet("forget", *words) == code
    assert said in capsys.readouterr().err
    assert holding(hers.home.root, WHO) != []


def test_the_help_says_the_rule_and_a_masked_address_is_warned_of(
    ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ratchet("forget", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "A run is the person's when a value of its task context is the ID" in told
    assert "A document is the person's when a value of its metadata is the ID" in told
    assert ratchet("forget", "--subject", "jane@shop.example", "--dry-run") == 0
    assert "The log masks texts such as jane@shop.example" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["n", "y"])
def test_on_a_terminal_it_asks(hers: Project, reply: str) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "agent.cli.main", "--project", str(hers.folder), "forget", "--subject", WHO]
    with os.fdopen(leader, "r+b", buffering=0) as terminal:
        terminal.write(f"{reply}\n".encode())
        done = subprocess.run(
            command, cwd=REPOSITORY, stdin=follower, capture_output=True, text=True, timeout=120, check=False
        )
        os.close(follower)
    assert done.returncode == 0, done.stderr
    assert "Remove this for good? [y/N]" in done.stdout
    assert ("Removed." in done.stdout, holding(hers.home.root, WHO, SAID) == []) == (reply == "y",) * 2


def test_a_task_that_learnt_of_the_runs_is_listed_with_what_serves_one_that_did_not(project: Project) -> None:
    (project.folder / "ratchet.toml").write_text('[tools]\ntasks = { intent = "intents" }\n')
    project = find_project(project.folder, {})
    (project.folder / "texts.csv").write_text("text,label\nx,a\n")
    origin = {"data": "texts.csv"}
    base = task(project, project.folder / "intents", origin=origin)
    version(project, base, "v1", "theirs", origin=origin)
    version(project, base, "v2", "theirs", "another", origin=origin)
    task(project, project.home.tasks / "apart", origin=origin)
    with opened(project) as runtime:
        record(runtime.store, "theirs", "broken", facts={"customer": WHO})
        record(runtime.store, "another", "also broken")
    learnt = look(project).learnt
    assert [(one.id, one.runs, one.served, one.tools) for one in learnt.tasks] == [
        ("v1", 1, False, ("intent",)),
        ("v2", 1, True, ("intent",)),
    ]
    assert learnt.commands == (
        "ratchet task rollback intent",
        "ratchet task rollback intent",
        "ratchet task tune intent",
    )

    take_out(project)
    assert [(one.id, one.runs, one.earlier) for one in look(project).learnt.tasks] == [("v1", 0, 1), ("v2", 0, 1)]


def test_held_out_corrections_are_not_learnt_and_what_is_gone_on_from_is(project: Project) -> None:
    (project.folder / "texts.csv").write_text("text,label\nx,a\n")
    origin = {"data": "texts.csv"}
    base = task(project, project.home.tasks / "intents", origin=origin)
    version(project, base, "v1", "another", held_out=["theirs"], origin=origin)
    task(project, project.home.tasks / "more", origin=origin, before={"runs": ["theirs"], "data": []})
    with opened(project) as runtime:
        record(runtime.store, "theirs", "broken", facts={"customer": WHO})
    learnt = look(project).learnt
    assert [(one.id, one.runs) for one in learnt.tasks] == [("more", 1)]
    assert learnt.commands == ()


def test_files_and_pages_of_a_task_that_name_the_id_are_listed_and_pages_are_taken_out(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "texts.csv").write_text(f"text,label\ni am {WHO},a\n")
    folder = task(
        project, project.home.tasks / "intents", page=f"<p>{WHO}</p>", origin={"data": "texts.csv", "test": "gone.csv"}
    )
    (one,) = look(project).learnt.tasks
    assert (one.data, one.unknown, one.pages) == ((project.folder / "texts.csv",), True, ("report/report.html",))
    assert main(["--project", str(project.folder), "forget", "--subject", WHO, "--pages", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"trained on {project.folder / 'texts.csv'}, which mentions the ID; it is your own file" in said
    assert "it is unknown whether it was trained on them" in said
    verify(folder)
    assert holding(project.home.root, WHO) == []
    assert main(["--project", str(project.folder), "forget", "--subject", WHO, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["pages"] == []


def test_a_correction_of_an_output_that_names_the_id_makes_its_run_theirs(project: Project) -> None:
    with opened(project) as runtime:
        record(runtime.store, "one", "a text")
        output = {"entities": [{"text": WHO, "label": "PER", "start": 0, "end": 3}]}
        runtime.store.feedback.add_output_correction(OutputCorrection("c", "one", 0, "names", output, "ann", "", NOW))
    assert take_out(project).runs.runs == {"one": "feedback"}
    assert holding(project.home.root, WHO) == []
