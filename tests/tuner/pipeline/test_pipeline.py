"""The whole loop on a tiny random base: run, correct, tune, gate, promote, serve, roll back, all for real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.config.project import Project
from agent.config.settings import TuningSettings
from agent.encoders.encoder import HashEncoder
from agent.errors import AdapterError, DatasetError, LivenessError, TuningError
from agent.llm.prompt.render import Renderer, recalled_text
from agent.llm.weights.load import load_tokenizer, resolve_model
from agent.records.run import Task
from agent.registry.artifact import tensors_hash, verify
from agent.registry.registry import State
from agent.runtime import Runtime
from agent.text.normalise import normalise_task
from tests.tuner.desks import BOXES, TINY_SETTINGS, make_desk, review_all, save_tiny_base
from tests.tuner.desks import TINY_ROWS as ROWS
from tests.tuner.tiny import copying_examples, tiny_model
from tuner.demo.reviewer import Review
from tuner.evaluation.evaluate import Evaluation
from tuner.pipeline.candidate import check_lives
from tuner.pipeline.pipeline import tune
from tuner.pipeline.promote import evaluate_adapter, project_suite, promote
from tuner.training.trainer import train


@dataclass
class Loop:
    """A desk on the tiny base whose tickets were reviewed."""

    project: Project
    runtime: Runtime
    review: Review


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("loop") / "desk"
    project = make_desk(folder, ROWS, TINY_SETTINGS.format(base=tiny_base))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RATCHET_HOME", raising=False)
        with Runtime(project) as runtime:
            review = review_all(runtime)
            yield Loop(project, runtime, review)


def with_tuning(loop: Loop, **changes: Any) -> Project:
    settings = loop.project.settings
    return replace(loop.project, settings=replace(settings, tuning=replace(settings.tuning, **changes)))


def test_a_candidate_that_is_no_better_is_rejected_with_a_report(loop: Loop) -> None:
    with Runtime(with_tuning(loop, learning_rate=1e-7, epochs=1)) as runtime:
        made = tune(runtime)
        assert made.adapter.state is State.TRAINED
        gated = promote(runtime, made.adapter.id)
        assert not gated.decision.ship
        assert "The gain is not sure" in gated.decision.reasons[0]
        assert runtime.registry.get(made.adapter.id).state is State.REJECTED
        assert runtime.serving() is None
        assert gated.report == made.adapter.folder / "report"
        assert {"gate.json", "gate.md", "gate.html", "loss.svg"} <= {path.name for path in gated.report.iterdir()}
        assert {"report/gate.json", "README.md"} <= set(verify(made.adapter.folder).files)
        with pytest.raises(AdapterError, match="is rejected; only a trained, gated or retired one"):
            promote(runtime, made.adapter.id)
        # The same feedback and settings give the same tensors, which are known, and so is what was said of them.
        assert tune(runtime).adapter.state is State.REJECTED
        assert len(runtime.registry.list()) == 1


def test_the_loop_turns_once(loop: Loop) -> None:
    runtime = loop.runtime
    assert (loop.review.tickets, loop.review.rated_up, loop.review.right_at_once) == (8, 8, 0)
    suite = project_suite(loop.project)
    assert evaluate_adapter(runtime, suite, None).success == 0
    heard: list[str] = []
    made = tune(runtime, say=heard.append)
    assert made.trained.loss < 0.2
    assert heard[0].startswith(f"dataset {made.dataset.hash[:12]}")
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "loss.svg",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "tuning.json",
    ]
    page = (made.folder / "report.html").read_text("utf-8")
    assert f"Adapter {made.adapter.id}" in page
    assert f"of {made.trained.looked_at} examples that were inspected" in page
    assert page.count("<polyline") == 1, "nothing is held out here"
    assert "http" not in page, "self-contained"
    manifest = verify(made.adapter.folder)
    assert (manifest.id, manifest.dataset_hash, manifest.parent) == (made.adapter.id, made.dataset.hash, None)
    trained_hash = tensors_hash(made.adapter.folder / "adapter_model.safetensors")
    assert manifest.tensors_sha256 == made.adapter.tensors_sha256 == trained_hash
    assert f"{made.trained.target_tokens} target tokens" in (made.adapter.folder / "README.md").read_text("utf-8")

    task = suite.tasks[0].task
    assert runtime.run(task).provenance.adapter is None
    gated = promote(runtime, made.adapter.id)
    assert gated.decision.ship, gated.decision.reasons
    assert (gated.base.success, gated.candidate.success, gated.active) == (0, 1, None)
    assert gated.candidate.adapter_hash == trained_hash
    assert runtime.registry.get(made.adapter.id).state is State.ACTIVE

    done = runtime.run(task)
    assert (done.provenance.adapter, done.provenance.adapter_hash) == (made.adapter.id, trained_hash)
    assert done.answer == f"Box {BOXES[suite.tasks[0].group]} is yours."
    loaded = runtime.loaded()
    assert loaded is not None
    assert loaded["adapters"][made.adapter.id] == trained_hash
    with pytest.raises(AdapterError, match="is active"):
        promote(runtime, made.adapter.id)

    with Runtime(with_tuning(loop, start="active", learning_rate=1e-4, epochs=1)) as other:
        child = tune(other).adapter
    assert (child.parent, child.state) == (made.adapter.id, State.TRAINED)

    assert main(["--project", str(loop.project.folder), "--quiet", "rollback"]) == 0
    assert runtime.serving() is None
    assert runtime.run(task).provenance.adapter is None
    assert runtime.registry.get(made.adapter.id).state is State.RETIRED


@pytest.mark.parametrize(("method", "rate"), [("prompt", 0.1), ("prefix", 0.1), ("full", 1e-3)])
def test_an_adapter_of_another_method_takes_the_same_stages(loop: Loop, method: str, rate: float) -> None:
    project = with_tuning(loop, method=method, learning_rate=rate, virtual_tokens=8, epochs=6)
    with Runtime(project) as runtime:
        made = tune(runtime)
        saved = tensors_hash(made.adapter.folder / "adapter_model.safetensors")
        assert verify(made.adapter.folder).tensors_sha256 == saved
        assert f"(method {method})" in (made.adapter.folder / "README.md").read_text("utf-8")
        suite = project_suite(project, limit=2)
        assert evaluate_adapter(runtime, suite, made.adapter.id).adapter_hash == saved
        task = suite.tasks[0].task
        done, plain_run = (runtime.run(task, adapter=adapter) for adapter in (made.adapter.id, None))
        assert (done.provenance.adapter, done.provenance.adapter_hash) == (made.adapter.id, saved)
        assert done.steps != plain_run.steps


def test_a_repeated_evaluation_is_read_from_disk_until_the_tools_change(loop: Loop) -> None:
    suite = project_suite(loop.project, limit=2)
    counts: list[tuple[int, int]] = []

    def ask(**rest: Any) -> Evaluation:
        return evaluate_adapter(loop.runtime, suite, None, progress=lambda *count: counts.append(count), **rest)

    first = ask()
    assert counts == [(1, 2), (2, 2)]
    assert ask() == first
    assert len(counts) == 2
    ask(fresh=True)
    assert len(counts) == 4
    with (loop.project.folder / "room_tools.py").open("a") as file:
        file.write("# Another version of the same tools.\n")
    ask()
    assert len(counts) == 6


def test_an_adapter_that_changes_nothing_does_not_live(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    examples = copying_examples()
    settings = TuningSettings(r=4, epochs=1, min_steps=1, batch_targets=8, max_tokens_per_pack=64, precision="float32")
    train(tiny_model(), examples, [], settings, folder=tmp_path)
    check_lives(tiny_model(), tmp_path, examples[0])
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_B" not in name) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(LivenessError, match="the adapter changes no output"):
        check_lives(tiny_model(), tmp_path, examples[0])


def test_tuning_without_feedback_says_what_to_do(tmp_path: Path, tiny_base: Path) -> None:
    project = make_desk(tmp_path / "desk", ROWS, TINY_SETTINGS.format(base=tiny_base))
    with Runtime(project) as runtime, pytest.raises(DatasetError, match="no run was accepted or corrected yet"):
        tune(runtime)
    assert not project.home.datasets.exists()
    assert [path.name for path in project.home.tunings.iterdir()] == [".lock"]


def test_a_project_without_a_suite_has_no_gate(loop: Loop) -> None:
    settings = replace(loop.project.settings, gate=replace(loop.project.settings.gate, suite=""))
    with pytest.raises(TuningError, match=r"set gate\.suite in ratchet\.toml"):
        project_suite(replace(loop.project, settings=settings))


def test_rows_are_trained_with_the_solved_tasks_that_recall_gives_today(loop: Loop) -> None:
    project = loop.project
    settings = replace(project.settings, memory=replace(project.settings.memory, recall=2))
    settings = replace(settings, tuning=replace(settings.tuning, epochs=1, max_tokens_per_pack=2048))
    with Runtime(replace(project, settings=settings), encoder=HashEncoder()) as runtime:
        made = tune(runtime)
        assert made.dataset.train
        for row in made.dataset.train:
            task, shown = row.trajectory.task, row.trajectory.provenance.recalled
            found = runtime.recall.search(task.text, 2, leave_out=task.id, same_wording=False)
            assert shown == tuple(replace(one, share=0.0) for one in found)
            assert normalise_task(task.text) not in [one.text for one in shown]
        assert any(row.trajectory.provenance.recalled for row in made.dataset.train)
        # Before the first promotion the base with its recall is served, and is what a candidate must beat.
        gated = promote(runtime, made.adapter.id)
        assert gated.active is not None
        assert (gated.base.adapter, gated.active.adapter) == (None, None)
        assert gated.candidate.adapter == made.adapter.id


def test_recalled_tasks_are_counted_as_the_base_reads_them_before_it_is_loaded(loop: Loop, tiny_base: Path) -> None:
    memory = replace(loop.project.settings.memory, recall=3)
    project = replace(loop.project, settings=replace(loop.project.settings, memory=memory))
    with Runtime(project, encoder=HashEncoder()) as runtime:
        task = Task("new", "Get me the lamp, please.")
        whole = runtime.recalled(task)
        assert whole
        renderer = Renderer(load_tokenizer(resolve_model(str(tiny_base), project.home.models)))
        last = len(renderer.encode(recalled_text(whole[-1])))
        for most, kept in ((last, whole[-1:]), (last - 1, ())):
            capped = replace(memory, recall_tokens=most)
            runtime.project = replace(project, settings=replace(project.settings, memory=capped))
            assert runtime.recalled(task) == kept
        assert runtime.loaded() is None
