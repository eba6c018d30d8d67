"""A long training says how far it is and how long it may still take."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import DatasetError
from tuner.commands.console import ConfirmGuesses, ProgressLines
from tuner.tasks.data.columns import ColumnGuess
from tuner.tasks.head.training import TaskProgress
from tuner.tasks.metrics import TaskScores, single_label


def found() -> TaskScores:
    return single_label(["a", "b"], ["a", "a"], ["a", "b"], resamples=0)


def test_steps_are_reported_by_number_or_after_half_a_minute_and_epochs_always(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 10.0, 32.0, 40.0, 490.0, 500.0])
    report = ProgressLines(clock=lambda: next(times))
    for step in (1, 2, 3, 4, 50):
        report(TaskProgress(step, 100, 0, 0.5, None))
    report(TaskProgress(51, 100, 0, 0.25, found()))
    assert capsys.readouterr().err.splitlines() == [
        "step 3/100: loss 0.500, 26 min left at most",
        "step 50/100: loss 0.500, 8 min left at most",
        "epoch 1, step 51/100: loss 0.250, validation accuracy 0.5000, 8 min left at most",
    ]


def test_after_the_last_step_no_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressLines(clock=lambda: 0.0)
    report(TaskProgress(4, 4, 0, 0.25, found()))
    assert capsys.readouterr().err == "epoch 1, step 4/4: loss 0.250, validation accuracy 0.5000\n"


def test_a_guess_is_asked_about_once_and_a_note_never(capsys: pytest.CaptureFixture[str]) -> None:
    say = ConfirmGuesses(io.StringIO("\nyes\nno\n"))
    say("noticed: uneven classes")
    say(ColumnGuess("train.csv", "text is column 'a'", "by name", "--text"))
    say(ColumnGuess("test.csv", "text is column 'a'", "by name", "--text"))
    say(ColumnGuess("test.csv", "text is column 'b'", "by name", "--text"))
    assert capsys.readouterr().err.count("Is that right?") == 2
    with pytest.raises(DatasetError, match="files is not as guessed; say it with --data, --test"):
        say(ColumnGuess("files", "test is b.csv", "by name", "--data, --test"))
    with pytest.raises(DatasetError, match="not as guessed; docs/reference/classic-tasks"):
        say(ColumnGuess("chats.csv", "said nothing more", "by name"))


@pytest.mark.slow
def test_a_training_at_a_terminal_asks_whether_the_columns_are_right(tmp_path: Path) -> None:
    rows = [f"{number} parcels are {state},{state}" for number in range(20) for state in ("late", "lost")]
    (tmp_path / "texts.csv").write_text("\n".join(["body,category", *rows]), encoding="utf-8")
    leader, follower = pty.openpty()
    with os.fdopen(leader, "r+b", buffering=0) as terminal:
        terminal.write(b"n\n")
        command = [sys.executable, "-m", "agent.cli.main", "task", "train", "classify", "--data", "texts.csv"]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "RATCHET_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command, cwd=tmp_path, stdin=follower, capture_output=True, text=True, check=False, env=environment
        )
        os.close(follower)
    assert "text is column 'body', label is column 'category'" in done.stderr
    assert "Is that right? [Y/n]" in done.stderr
    assert "Nothing was trained" in done.stderr
    assert done.returncode == 1
    assert not (tmp_path / "home" / "tasks").exists()
