"""Two processes give the loss and the adapter of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from agent.runtime import Runtime
from tests.tuner.desks import TINY_ROWS, TINY_SETTINGS, make_desk, review_all, save_tiny_base

TRAIN = """
import json, sys
from dataclasses import asdict, replace
from pathlib import Path
from tests.tuner.tiny import QUICK, copying_examples, tiny_model
from tuner.training import distributed as parallel
from tuner.training.trainer import train
folder = Path(sys.argv[1])
examples = copying_examples()
with parallel.join_processes():
    heard = parallel.broadcast({"said": "ä"} if parallel.rank() == 0 else None)
    made = train(tiny_model(), examples, examples[:4], replace(QUICK, epochs=4), folder=folder / "adapter",
                 metrics=folder / "metrics.jsonl", checkpoints=folder / "checkpoints")
    print(json.dumps([parallel.rank(), heard, asdict(made)]))
"""


def run(script: list[str], count: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *script],
            env={**base, "RANK": str(rank), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def results(processes: list[subprocess.Popen[str]]) -> list[str]:
    said = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [err for _, err in said]
    return [out for out, _ in said]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    made: dict[int, dict[str, Any]] = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        found = [json.loads(out) for out in results(run(["-c", TRAIN, str(folder)], count))]
        assert [(rank, heard) for rank, heard, _ in found] == [(rank, {"said": "ä"}) for rank in range(count)]
        made[count] = found[0][2]
    assert made[2]["loss"] == pytest.approx(made[1]["loss"], rel=1e-4)
    assert made[2]["held_out_loss"] == pytest.approx(made[1]["held_out_loss"], rel=1e-4)
    assert (made[2]["steps"], made[2]["target_tokens"]) == (made[1]["steps"], made[1]["target_tokens"])
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "12")
    for name, tensor in one.items():
        assert float((two[name] - tensor).norm()) <= 1e-4 * float(tensor.norm()) + 1e-6, name
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in "12"]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_the_command_runs_under_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    folder = tmp_path / "desk"
    project = make_desk(folder, TINY_ROWS, TINY_SETTINGS.format(base=save_tiny_base(tmp_path / "base")))
    with Runtime(project) as runtime:
        review_all(runtime)
    first, second = results(run(["-m", "agent.cli.main", "--project", str(folder), "tune", "--json"], 2))
    assert second == ""
    assert json.loads(first)["loss"] < 0.2
    with Runtime(project) as runtime:
        assert [one.id for one in runtime.registry.list()] == [json.loads(first)["adapter"]]
