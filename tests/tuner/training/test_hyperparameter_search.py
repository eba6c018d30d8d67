"""Searching settings with tiny random models: real trainings, real trials, a real journal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from agent.cli.main import main
from agent.config.reader import load_settings
from agent.config.settings import TuningSettings
from agent.errors import DatasetError, TuningError
from agent.runtime import Runtime
from tests.tuner.desks import TINY_ROWS, TINY_SETTINGS, make_desk, review_all, save_tiny_base
from tests.tuner.tiny import QUICK, copying_examples, tiny_model
from tuner.training.hyperparameter_search import SearchResult, search
from tuner.training.results import Progress, Trained
from tuner.training.trainer import train
from tuner.tree.packing import Example

EXAMPLES = copying_examples()
HELD_OUT = copying_examples(4, seed=1)
WARM = replace(QUICK, learning_rate=4e-3)


def attempt(
    settings: TuningSettings, heard: Callable[[Progress], None], *, held_out: Sequence[Example] = HELD_OUT
) -> Trained:
    """Train a tiny model, with more epochs than usual: its examples are few."""
    few = replace(settings, batch_targets=8, epochs=settings.epochs + 2)
    return train(tiny_model(), EXAMPLES, held_out, few, folder=None, on_progress=heard)


def searched(folder: Path, trials: int, settings: TuningSettings = WARM, **rest: Any) -> SearchResult:
    return search(attempt, settings, searches=folder, about=("data", "base"), trials=trials, **rest)


def in_study(folder: Path) -> optuna.Study:
    """The study of the one search in this folder."""
    (journal,) = folder.glob("*/journal.log")
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def tried(found: SearchResult) -> list[tuple[Mapping[str, Any], float | None]]:
    return [(one.settings, one.held_out_loss) for one in found.trials]


def interrupt_in(number: int) -> Callable[[int, Progress], None]:
    def on_progress(trial: int, progress: Progress) -> None:
        if trial == number and progress.step == 2:
            raise KeyboardInterrupt

    return on_progress


def test_it_finds_settings_at_least_as_good_and_writes_a_table_to_paste(tmp_path: Path) -> None:
    heard: list[str] = []
    found = searched(tmp_path, 6, say=heard.append)
    first = found.as_they_stand
    assert first is not None
    assert first == found.trials[0]
    assert first.state == "trained"
    assert first.held_out_loss is not None
    assert found.best.held_out_loss is not None
    assert found.best.held_out_loss < first.held_out_loss
    assert {name: asdict(WARM)[name] for name in first.settings} == first.settings
    assert len({str(one.settings) for one in found.trials}) == len(found.trials) == 6
    assert all(one.held_out_loss == min(one.held_out_losses) for one in found.trials if one.state == "trained")
    assert [line.split(":")[0] for line in heard] == [f"trial {number}/6" for number in range(1, 7)]
    assert "min left" in heard[0]
    assert "min left" not in heard[-1]

    tuning = asdict(load_settings(found.table).tuning)
    assert {name: tuning[name] for name in found.best.settings} == found.best.settings
    text = found.table.read_text("utf-8")
    assert text.startswith(f"# Held-out loss {found.best.held_out_loss:.4f}, trial {found.best.number} of 6. ")
    assert f"as they stood: {first.held_out_loss:.4f}.\n[tuning]\n" in text
    listed = json.loads(found.listed.read_text("utf-8"))
    assert [one["settings"] for one in listed["trials"]] == [one.settings for one in found.trials]
    assert sorted(path.name for path in found.table.parent.iterdir()) == ["best.toml", "journal.log", "trials.json"]


def test_a_search_that_was_stopped_goes_on_to_what_one_that_was_not_finds(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", 7)
    torn = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        searched(torn, 7, on_progress=interrupt_in(1))
    assert len(searched(torn, 2).trials) == 2
    with pytest.raises(KeyboardInterrupt):
        searched(torn, 7, on_progress=interrupt_in(3))
    assert [one.state.name for one in in_study(torn).trials] == ["FAIL", "COMPLETE", "COMPLETE", "RUNNING"]
    # What a kill in the midst of a write leaves.
    (journal,) = torn.glob("*/journal.log")
    with journal.open("a") as file:
        file.write('{"op_code":4,"worker')
    journal.with_name("journal.log.lock").symlink_to(journal)
    again = searched(torn, 7)
    assert tried(again) == tried(whole)
    assert again.best.settings == whole.best.settings
    heard: list[str] = []
    assert tried(searched(torn, 7, say=heard.append)) == tried(whole)
    assert heard == [], "there is nothing left to do"


def test_other_data_or_settings_that_are_not_searched_begin_another_search(tmp_path: Path) -> None:
    first = searched(tmp_path, 1)
    moved = searched(tmp_path, 2, replace(WARM, learning_rate=2e-3))
    assert moved.table == first.table
    assert moved.as_they_stand == moved.trials[1], "what stands now is tried before anything is drawn"
    assert moved.as_they_stand.settings["learning_rate"] == 2e-3
    for other in (replace(WARM, weighting="example"), replace(WARM, method="rslora"), replace(WARM, seed=1)):
        assert searched(tmp_path, 1, other).table.parent != first.table.parent
    there = search(attempt, WARM, searches=tmp_path, about=("other data", "base"), trials=1)
    assert there.table.parent != first.table.parent


def test_a_hopeless_trial_is_pruned_and_the_settings_as_they_stand_are_not(tmp_path: Path) -> None:
    searched(tmp_path, 1)
    study = in_study(tmp_path)
    past = study.trials[0]
    for _ in range(5):
        good = optuna.trial.create_trial(
            value=0.1,
            params={**past.params, "epochs": 8},
            distributions=past.distributions,
            intermediate_values=dict.fromkeys(range(20), 0.1),
        )
        study.add_trial(good)
    heard: list[str] = []
    found = searched(tmp_path, 7, say=heard.append)
    assert [one.state for one in found.trials] == ["trained"] * 6 + ["pruned"]
    assert len(found.trials[-1].held_out_losses) == 2, "the first epoch prunes nothing"
    assert heard[0].startswith("trial 7/7: pruned, held-out loss")
    moved = searched(tmp_path, 8, replace(WARM, learning_rate=1e-3))
    assert moved.as_they_stand == moved.trials[-1]
    assert moved.trials[-1].state == "trained"


def test_a_trial_is_stopped_when_time_is_over_and_begun_again_by_the_next_call(tmp_path: Path) -> None:
    seconds = [0.0]

    def on_progress(number: int, progress: Progress) -> None:
        seconds[0] += 100 if number == 2 else 0

    rest = {"on_progress": on_progress, "clock": lambda: seconds[0]}
    found = searched(tmp_path, 4, minutes=2, **rest)
    assert [one.state for one in found.trials] == ["trained", "stopped"]
    assert found.best == found.trials[0]
    assert "as they stood: the same" in found.table.read_text("utf-8")
    again = searched(tmp_path, 2)
    assert [one.state for one in again.trials] == ["trained", "trained"]
    assert again.trials[1].settings == found.trials[1].settings


def test_a_search_in_which_nothing_came_to_its_end_says_so(tmp_path: Path) -> None:
    seconds = iter(range(1000))
    with pytest.raises(TuningError, match=r"no trial of the search was completed \(0 failed, 1 stopped\)"):
        searched(tmp_path / "short", 4, minutes=1 / 20, clock=lambda: float(next(seconds)))
    wild = replace(WARM, learning_rate=10.0, schedule="constant", warmup_share=0.0)
    with pytest.raises(TuningError, match=r"\(1 failed, 0 stopped; the last one failed: step \d+: the loss is"):
        searched(tmp_path / "wild", 1, wild)


def test_a_trial_that_explodes_counts_as_failed_and_the_search_goes_on(tmp_path: Path) -> None:
    wild = replace(WARM, learning_rate=10.0, schedule="constant", warmup_share=0.0)
    heard: list[str] = []
    found = searched(tmp_path, 4, wild, say=heard.append)
    assert (found.trials[0].state, found.as_they_stand) == ("failed", found.trials[0])
    assert heard[0].startswith("trial 1/4: failed")
    assert found.best.state == "trained"
    assert len(found.trials) == 4
    assert "as they stood: failed" in found.table.read_text("utf-8")
    assert len(searched(tmp_path, 4, wild).trials) == 4, "it is not tried again"


def test_rank_is_searched_where_there_is_one_and_it_is_free(tmp_path: Path) -> None:
    def keys(name: str, settings: TuningSettings, **rest: Any) -> set[str]:
        return set(searched(tmp_path / name, 1, settings, **rest).best.settings)

    lora = keys("lora", WARM)
    assert {"r", "alpha", "dropout", "learning_rate", "epochs", "batch_targets", "schedule"} <= lora
    assert lora - keys("from-an-adapter", WARM, fixed_shape=True) == {"r", "alpha"}
    # The training takes a method that it does not know for plain LoRA; only what is searched matters here.
    assert lora - keys("full", replace(WARM, method="full")) == {"r", "alpha", "dropout"}


def test_a_search_without_held_out_examples_ends(tmp_path: Path) -> None:
    def nothing_held_out(settings: TuningSettings, heard: Callable[[Progress], None]) -> Trained:
        return attempt(settings, heard, held_out=())

    with pytest.raises(DatasetError, match="nothing is held out"):
        search(nothing_held_out, WARM, searches=tmp_path, about=(), trials=2)


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = searched(tmp_path, 1)
    journal = found.table.with_name("journal.log")
    journal.write_text("no journal\n" + journal.read_text())
    with pytest.raises(TuningError, match=r"journal\.log cannot be read .*; delete it to begin the search anew"):
        searched(tmp_path, 2)


WITHOUT_OPTUNA = """
import sys
sys.modules["optuna"] = None
from agent.errors import TuningError
from tuner.training.hyperparameter_search import require_optuna
try:
    require_optuna()
except TuningError as fault:
    print(fault)
"""


def test_what_is_missing_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPTUNA], check=True, capture_output=True, text=True)
    assert done.stdout == 'a search needs Optuna, which is not installed; pip install "ratchet-loop[search]"\n'


@pytest.mark.slow
def test_the_command_searches_with_what_a_tuning_would_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    settings = TINY_SETTINGS.format(base=save_tiny_base(tmp_path / "base")).replace("epochs = 70", "epochs = 2")
    project = make_desk(tmp_path / "desk", TINY_ROWS, settings)
    with Runtime(project) as runtime:
        review_all(runtime)
    command = ["--project", str(project.folder), "tune", "--search", "2", "--method", "rslora"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "none of 8 tasks is held out: tuning.validation_share is 0, and it takes 5 tasks; raise it" in said

    file = project.folder / "ratchet.toml"
    file.write_text(settings_with(file, "validation_share = 0.65"))
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert Path(data["table"]).parent.parent == project.home.searches
    assert [one["state"] for one in data["trials"]] == ["trained", "trained"]
    assert data["as_they_stand"]["settings"]["learning_rate"] == 5e-3
    assert "trial 2/2: trained" in captured.err
    assert list(project.home.adapters.glob("*/adapter_model.safetensors")) == []

    assert main(command) == 0
    table = capsys.readouterr().out
    assert '[tuning]\nmethod = "rslora"\n' in table
    assert f"to paste into ratchet.toml: {data['table']}\n" in table


def settings_with(file: Path, line: str) -> str:
    return file.read_text("utf-8").replace("validation_share = 0.0", line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--search", "3", "--resume"], "argument --search: not allowed with argument --resume"),
        (["--search", "3", "--promote"], "argument --search: not allowed with argument --promote"),
        (["--minutes", "3"], "argument --minutes: only allowed with argument --search"),
        (["--search", "0"], "argument --search: expected 1 or more, found 0"),
        (["--search", "3", "--minutes", "0"], "argument --minutes: expected a number above 0, found 0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["--project", str(tmp_path), "tune", *words]) == 2
    assert said in capsys.readouterr().err
