"""A tuning survives: kills, interrupts, full disks and memory, numbers that are none, and company."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.cli.main import main
from agent.config.settings import TuningSettings
from agent.errors import TuningError
from agent.registry.artifact import tensors_hash
from agent.runtime import Runtime
from tests.tuner.desks import TINY_ROWS, TINY_SETTINGS, make_desk, review_all, save_tiny_base
from tests.tuner.tiny import QUICK, VOCABULARY, copying_examples, tiny_model
from tuner.pipeline.run_folder import latest_unfinished, one_at_a_time
from tuner.training.checkpoints import Checkpoints
from tuner.training.results import Progress, Trained
from tuner.training.trainer import train

CAREFUL = replace(QUICK, dropout=0.1, learning_rate=1e-2, checkpoint_seconds=1e-9)
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def trained(folder: Path, settings: TuningSettings = CAREFUL, **rest: Any) -> Trained:
    return train(tiny_model(), copying_examples(), [], settings, folder=folder / "adapter", **rest)


def adapter_hash(folder: Path) -> str:
    return tensors_hash(folder / "adapter" / "adapter_model.safetensors")


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.slow
def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tuner.kills", str(tmp_path), "--kills", "20", "--seed", "7"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ALONE)
    counts = json.loads(done.stdout)
    assert counts["kills"] == 20
    assert counts["finished"] > 0
    assert counts["differing"] == []


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (4, {"top_layers": 1}),
        (2, {"method": "prompt"}),
        (2, {"method": "prefix"}),
        (2, {"method": "full", "learning_rate": 1e-3}),
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_tensors(
    tmp_path: Path, step: int, changes: dict[str, Any]
) -> None:
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    settings = replace(CAREFUL, checkpoint_seconds=1e9, **changes)
    whole = trained(tmp_path / "whole", settings)
    rest = {"checkpoints": tmp_path / "torn" / "checkpoints", "metrics": tmp_path / "torn" / "metrics.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "torn", settings, on_progress=stop_at(step), **rest)
    heard: list[str] = []
    again = trained(tmp_path / "torn", settings, say=heard.append, **rest)
    assert heard[-1] == f"continuing after step {step} of {whole.steps}"
    assert adapter_hash(tmp_path / "torn") == adapter_hash(tmp_path / "whole")
    assert replace(again, seconds=0, peak_bytes=0) == replace(whole, seconds=0, peak_bytes=0)
    rows = [json.loads(line) for line in rest["metrics"].read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, whole.steps + 1))


def test_a_checkpoint_of_other_settings_or_examples_is_not_gone_on_from(tmp_path: Path) -> None:
    rest = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, on_progress=stop_at(2), **rest)
    with pytest.raises(TuningError, match="the checkpoint is of other examples or settings"):
        trained(tmp_path, replace(CAREFUL, learning_rate=1e-3), **rest)
    with pytest.raises(TuningError, match="the checkpoint is of other examples or settings"):
        train(tiny_model(), copying_examples(seed=5), [], CAREFUL, folder=tmp_path / "b", **rest)


def test_only_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.newest() is None
    for step in (9, 10, 11):
        kept.save(step, {"here": torch.tensor([step])}, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000011"]
    newest = kept.newest()
    assert newest is not None
    assert (newest.counters, newest.tensors["here"].tolist()) == ({"step": 11}, [11])
    data = bytearray((tmp_path / "step-000011" / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "step-000011" / "state.safetensors").write_bytes(data)
    newest = kept.newest()
    assert newest is not None
    assert newest.counters == {"step": 10}
    (tmp_path / "step-000010" / "checkpoint.json").unlink()
    (tmp_path / ".staged").mkdir()
    assert kept.newest() is None


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.tuner.training.test_survives import trained
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
trained(Path(sys.argv[1]), checkpoints=Path(sys.argv[1]) / "checkpoints")
"""


@pytest.mark.slow
def test_a_full_disk_stops_it_with_nothing_half_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, env=ALONE)
    assert done.returncode == 1
    assert re.search(r"TuningError: the checkpoint of step 1 could not be written to .*; make room, and", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


SCARCE_MEMORY = """
import json, random, resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.tuner.training.test_survives import CAREFUL
from tests.tuner.tiny import VOCABULARY, tiny_model
from tuner.tree.packing import Example
from tuner.training.trainer import train
torch.set_num_threads(1)
chance = random.Random(0)
examples = [
    Example(tuple(chance.randrange(VOCABULARY) for _ in range(256)), (False,) * 200 + (True,) * 56, str(row))
    for row in range(32)
]
settings = replace(CAREFUL, epochs=1, batch_targets=10**6, max_tokens_per_pack=8192)
small = Example(examples[0].ids[:9], examples[0].targets[192:201])
train(tiny_model(), [small], [], settings, folder=Path(sys.argv[1]) / "first")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + 120_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
heard = []
done = train(tiny_model(), examples, [], settings, folder=Path(sys.argv[1]) / "adapter", say=heard.append)
print(json.dumps([heard, done.steps]))
"""


@pytest.mark.slow
def test_where_memory_runs_out_packs_are_halved_and_it_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCARCE_MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ALONE)
    assert done.returncode == 0, done.stderr
    heard, steps = json.loads(done.stdout)
    assert heard[0] == "out of memory; packs have at most 4096 tokens from here on"
    assert steps == 1


def test_a_loss_that_explodes_or_is_no_number_names_step_examples_and_rate(tmp_path: Path) -> None:
    wild = replace(CAREFUL, learning_rate=10.0, epochs=20, warmup_share=0.0, schedule="constant")
    said = (
        r"step \d+: the loss is \S+ and the gradient norm \S+ at learning rate 1\.00e\+01, "
        r"with the examples of task-\d+, "
    )
    with pytest.raises(TuningError, match=said):
        trained(tmp_path, wild)
    assert not (tmp_path / "adapter").exists()


def test_a_model_that_cannot_read_trees_is_trained_row_by_row(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model: Any = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4))
    model.eval().requires_grad_(False)
    heard: list[str] = []
    examples = copying_examples()
    settings = replace(CAREFUL, epochs=12, learning_rate=3e-2)
    made = train(model, examples, examples, settings, folder=tmp_path / "adapter", say=heard.append)
    assert heard[0].startswith(
        "training row by row, which is slower: BloomForCausalLM does not use the attention interface"
    )
    assert made.held_out_loss is not None
    assert made.first_held_out_loss is not None
    assert made.held_out_loss < made.first_held_out_loss - 0.2
    assert made.packed_tokens == made.row_tokens - made.epochs * len(examples), "each row is computed alone"


def test_two_tunings_of_one_home_queue(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with one_at_a_time(tmp_path, order.append):
            order.append("second")

    with one_at_a_time(tmp_path, order.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not order:  # until it says that it waits
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert order == [f"another tuning is running (PID {os.getpid()}); waiting for it", "first", "second"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    base = save_tiny_base(tmp_path / "base")
    folder = tmp_path / "desk"
    project = make_desk(folder, TINY_ROWS, TINY_SETTINGS.format(base=base))
    with Runtime(project) as runtime:
        review_all(runtime)
    command = [sys.executable, "-m", "agent.cli.main", "--project", str(folder), "tune"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ALONE)
    assert process.stderr is not None
    said = ""
    while "step" not in said and not said.startswith("training"):
        said = process.stderr.readline()
        assert said, "it ended before its first step"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130, rest
    (wanted,) = re.findall(r"stopped; continue with `ratchet tune --resume (\S+)`", rest)
    checkpoints = project.home.tunings / wanted / "checkpoints"
    assert [path.name[:5] for path in checkpoints.iterdir()] == ["step-"]
    assert main(["--project", str(folder), "tune", "--resume", wanted]) == 0
    assert not checkpoints.exists()
    with pytest.raises(TuningError, match="no tuning at all can be continued; unfinished are none"):
        latest_unfinished(project.home.tunings, "")
