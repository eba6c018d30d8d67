"""Kills a small training at random instants and goes on with it: `python -m tests.tuner.kills FOLDER --kills 50`.

Trainings are forked from one process, so that a kill costs no start of torch; that process computes on one thread,
for teams of threads do not survive a fork. Prints what came out as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.registry.artifact import tensors_hash
from tests.tuner.tiny import QUICK, copying_examples, tiny_model
from tuner.training.trainer import train

SETTINGS = replace(QUICK, dropout=0.1, learning_rate=1e-2, epochs=8, batch_targets=6, checkpoint_seconds=1e-9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import peft  # noqa: F401  # imported once, here, and not by every child
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    tiny_model()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(survive(args.folder, args.kills, args.seed)))
    return 0


def survive(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` times, over as many trainings as that takes. Names what ended otherwise than the one left alone."""
    whole = folder / "whole"
    started = time.perf_counter()
    _wait(_fork(whole))
    seconds = time.perf_counter() - started
    wanted, rows = tensors_hash(whole / "adapter" / "adapter_model.safetensors"), _metrics(whole)
    chance = random.Random(seed)
    killed = finished = 0
    differing = []
    while killed < kills:
        torn = folder / f"torn-{finished}"
        while True:
            child = _fork(torn)
            time.sleep(chance.uniform(0, seconds))
            if killed < kills and not _is_over(child):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                killed += 1
            else:
                _wait(child)
                break
        finished += 1
        if tensors_hash(torn / "adapter" / "adapter_model.safetensors") != wanted:
            differing.append(f"{torn}: the tensors")
        if _metrics(torn) != rows:
            differing.append(f"{torn}: the metrics")
    return {"kills": killed, "finished": finished, "differing": differing, "steps": len(rows)}


def _fork(folder: Path) -> int:
    """A process that trains in this folder, or goes on there."""
    child = os.fork()
    if child:
        return child
    try:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        train(
            tiny_model(),
            copying_examples(),
            copying_examples(6, seed=1),
            SETTINGS,
            folder=folder / "adapter",
            metrics=folder / "metrics.jsonl",
            checkpoints=folder / "checkpoints",
        )
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


_ended: dict[int, int] = {}


def _is_over(child: int) -> bool:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        _ended[child] = status
    return bool(found)


def _wait(child: int) -> None:
    status = _ended.pop(child) if child in _ended else os.waitpid(child, 0)[1]
    if status:
        raise SystemExit(f"a training ended with status {status}")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without the times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
