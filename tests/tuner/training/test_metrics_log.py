"""`metrics.jsonl` when a training goes on behind a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from agent.config.settings import TuningSettings
from tuner.training.metrics_log import MetricsLog

KILLED_WHEN_IT_OPENS = """
import os, signal, sys
from pathlib import Path

from tuner.training.metrics_log import MetricsLog
from agent.config.settings import TuningSettings

def killed(path, mode="r", *rest, opened=Path.open, **kwargs):
    file = opened(path, mode, *rest, **kwargs)
    if "w" in mode:
        os.kill(os.getpid(), signal.SIGKILL)
    return file

log = MetricsLog(Path(sys.argv[1]), TuningSettings(), steps=9)
Path.open = killed
log.rewind(2, 0)
"""


def log_of(path: Path, steps: int) -> MetricsLog:
    log = MetricsLog(path, TuningSettings(), steps=9)
    log.begin()
    for step in range(1, steps + 1):
        log.step({"step": step, "epoch": (step - 1) // 2, "loss": 1.0})
        if step % 2 == 0:
            log.epoch(step, step // 2 - 1, 0.5)
    return log


def steps_in(path: Path) -> list[int | str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row["step"] if "loss" in row else f"epoch {row['epoch']}" for row in rows]


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = log_of(tmp_path / "metrics.jsonl", 5)
    log.rewind(4, 1)
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, "epoch 0", 3, 4]


def test_a_kill_while_it_is_rewound_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = log_of(path, 5)
    done = subprocess.run([sys.executable, "-c", KILLED_WHEN_IT_OPENS, str(path)], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert steps_in(path) == [1, 2, "epoch 0", 3, 4, "epoch 1", 5]
    log.rewind(2, 1)
    assert steps_in(path) == [1, 2, "epoch 0"]
