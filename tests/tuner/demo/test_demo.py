"""The demo's own code on a mini desk, and one tuning of the real base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.main import main
from agent.errors import TaskError
from agent.llm.chat_model import LocalModel
from agent.registry.artifact import tensors_hash
from agent.registry.registry import State
from agent.runtime import Runtime
from agent.util.ids import timestamp
from tests.tuner.desks import BOXES, PHRASES, TINY_ROWS, TINY_SETTINGS, Clumsy, make_desk, save_tiny_base, ticket
from tuner.demo.demo import DemoWatcher, Plan, format_result, prepare_desk, run_demo
from tuner.demo.reviewer import Reviewer, load_tickets
from tuner.pipeline.pipeline import tune


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATCHET_HOME", raising=False)


def command(folder: Path) -> Callable[[Sequence[str]], int]:
    return lambda words: main(["--project", str(folder), "--quiet", *words])


def test_a_folder_without_tickets_is_no_desk(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"has no tickets/train\.jsonl"):
        prepare_desk(tmp_path, tmp_path / "home")


def test_a_demo_whose_commands_would_go_to_another_home_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_desk(tmp_path / "source", TINY_ROWS).folder
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "elsewhere"))
    assert main(["demo", "--desk", str(source), "--home", str(tmp_path / "home")]) == 1
    assert "RATCHET_HOME is set" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_the_demo_goes_through_on_a_mini_desk(tmp_path: Path) -> None:
    settings = TINY_SETTINGS.format(base=save_tiny_base(tmp_path))
    source = make_desk(tmp_path / "source", TINY_ROWS, settings).folder
    project = prepare_desk(source, tmp_path / "home")
    lines: list[str] = []
    result, runtime = run_demo(project, command, Plan(held_out=4, rounds=(5, 20, 6)), DemoWatcher(lines.append))
    with runtime:
        served = runtime.serving()
        assert result.tuned.adapter == (served.id if served else None)
    # The third round found no ticket that was not reviewed before.
    assert [review.corrections > 0 for review in result.reviews] == [True, True]
    assert sum(review.tickets for review in result.reviews) == len(TINY_ROWS)
    assert len(result.tunings) == len(result.gates) == 2
    assert result.base.success == 0
    assert len(result.base.rows) == len(result.tuned.rows) == 4
    assert all((one.report / "gate.html").is_file() for one in result.gates)
    assert "4 held-out tickets" in format_result(result)
    assert any("corrections 5/5" in line for line in lines)
    assert any("no training tickets are left" in line for line in lines)
    assert not (source / ".ratchet").exists()
    assert prepare_desk(source, tmp_path / "home").home.root.joinpath("models").is_symlink()


@pytest.mark.slow
def test_the_real_base_learns_from_twelve_corrections(tmp_path: Path, models_folder: Path) -> None:
    rows = [ticket(f"t-{item}-{number}", item, PHRASES[number]) for number in range(3) for item in BOXES]
    settings = (
        '[agent]\ninstructions = "Help."\nmax_steps = 1\n[model]\nthreads = 1\n'
        "[tuning]\nepochs = 3\nmin_steps = 1\nbatch_targets = 200\nvalidation_share = 0.5\n"
    )
    project = make_desk(tmp_path / "desk", rows, settings)
    project = replace(project, settings=replace(project.settings, model=replace(project.settings.model, threads=1)))
    tickets = load_tickets(project.folder / "tickets" / "train.jsonl")
    project.home.root.mkdir()
    models_folder.mkdir(parents=True, exist_ok=True)
    project.home.models.symlink_to(models_folder, target_is_directory=True)
    with Runtime(project, model=Clumsy(tickets, {0})) as clumsy:
        reviewer = Reviewer(clumsy, command(project.folder), corrections=12, progress=lambda done, of: None)
        assert reviewer.review(tickets, at_once=1).corrections == 12
    with Runtime(project) as runtime:
        made = tune(runtime)
        assert made.dataset.held_out
        assert made.trained.held_out_loss is not None
        assert made.trained.first_held_out_loss is not None
        assert made.trained.held_out_loss < 0.7 * made.trained.first_held_out_loss
        runtime.registry.transition(made.adapter.id, State.GATED, "a test of serving", timestamp())
        runtime.registry.promote(made.adapter.id, "a test of serving", timestamp())
        model = runtime.stepper()
        assert isinstance(model, LocalModel)
        assert model.adapter_hash == tensors_hash(made.adapter.folder / "adapter_model.safetensors")
        assert runtime.run(tickets[0].task).provenance.adapter_hash == model.adapter_hash
