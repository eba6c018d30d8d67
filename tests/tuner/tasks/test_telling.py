"""A long training says how far it is and how long it may still take."""

from __future__ import annotations

import pytest

from tuner.tasks.head.training import TaskProgress
from tuner.tasks.metrics import Scores, single_label
from tuner.tasks.telling import ProgressLines


def found() -> Scores:
    return single_label(["a", "b"], ["a", "a"], ["a", "b"], resamples=0)


def test_steps_are_told_by_number_or_behind_half_a_minute_and_epochs_always(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 10.0, 32.0, 40.0, 490.0, 500.0])
    tell = ProgressLines(clock=lambda: next(times))
    for step in (1, 2, 3, 4, 50):
        tell(TaskProgress(step, 100, 0, 0.5, None))
    tell(TaskProgress(51, 100, 0, 0.25, found()))
    assert capsys.readouterr().err.splitlines() == [
        "step 3/100: loss 0.500, 26 min left at most",
        "step 50/100: loss 0.500, 8 min left at most",
        "epoch 1, step 51/100: loss 0.250, validation accuracy 0.5000, 8 min left at most",
    ]


def test_nothing_is_left_behind_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    tell = ProgressLines(clock=lambda: 0.0)
    tell(TaskProgress(4, 4, 0, 0.25, found()))
    assert capsys.readouterr().err == "epoch 1, step 4/4: loss 0.250, validation accuracy 0.5000\n"
