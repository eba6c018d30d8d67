"""`make bench-main-job`: five whole demos with five seeds, and what a busy machine costs.

Speed is measured in processes of their own: prompts read, tokens decoded, one training; with OpenMP's default, which
lets threads spin for a while before they sleep, and with the passive waiting that Ratchet sets; on the machine as it is
and beside one and two processes that compute. The two ways take turns. Demos run one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.results import ROOT, commit, replaced, rows_of, write_result

HOME = ROOT / ".ratchet" / "bench-main-job"
SEEDS = (0, 1, 2, 3, 4)
SPEEDS = ("prompt_tokens_per_s", "decode_tokens_per_s", "decode_8_tokens_per_s", "train_tokens_per_s")
# What GNU's OpenMP does when nothing is set; named here since Ratchet sets the other where nothing is set.
WAITING = {"default": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
BUSY = (0, 1, 2)
METRICS = (
    "demo_worst_of_5",
    "demo_median_of_5",
    "demo_minutes_worst",
    "busy1_over_quiet",
    "busy2_over_quiet",
    "quiet_cost",
)
"""All of them are written, null until every run they need was measured."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=("busy", "demos"), default=("busy", "demos"))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way of waiting, in turn")
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--speed", action="store_true", help="measure the speeds once, in this process, and print them")
    args = parser.parse_args(argv)
    args.home.mkdir(parents=True, exist_ok=True)
    if args.speed:
        print(json.dumps(speed(args.home)))
        return 0
    if "busy" in args.parts:
        keep(measure_busy(args.home, args.repeats))
    if "demos" in args.parts:
        for seed in args.seeds:
            keep([run_demo(args.home, seed)])
    return 0


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows in place of those of the same measurement, and the metrics of all."""
    merged = replaced(rows_of("main_job"), rows, key=lambda row: (row["part"], row.get("seed"), row.get("busy")))
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    demos = [row for row in merged if row["part"] == "demo"]
    if len(demos) >= len(SEEDS):
        successes = [row["success"] for row in demos]
        metrics |= {
            "demo_worst_of_5": min(successes),
            "demo_median_of_5": median(successes),
            "demo_minutes_worst": max(row["minutes"] for row in demos),
        }
    speeds = {row["busy"]: row for row in merged if row["part"] == "busy"}
    if speeds:
        metrics |= {
            f"busy{count}_over_quiet": max(
                speeds[0]["passive"][name] / speeds[count]["passive"][name] for name in SPEEDS
            )
            for count in BUSY[1:]
        }
        metrics["quiet_cost"] = max(1 - speeds[0]["passive"][name] / speeds[0]["default"][name] for name in SPEEDS)
    print(write_result("main_job", "make bench-main-job", metrics, merged), flush=True)


def run_demo(home: Path, seed: int) -> dict[str, Any]:
    """One demo in a process of its own, as `ratchet demo --seed` runs it."""
    result = home / f"demo-{seed}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench.desk", "--plan", "demo", "--seed", str(seed), "--home", str(home)]
    subprocess.run([*command, "--write", str(result)], check=True, cwd=ROOT)
    return {"part": "demo", "seed": seed, "commit": commit(), **json.loads(result.read_text(encoding="utf-8"))}


def measure_busy(home: Path, repeats: int) -> list[dict[str, Any]]:
    """Each way of waiting in turn, beside none, one and two busy processes; the median of each speed."""
    rows = []
    for busy in BUSY:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAITING}
        for _ in range(repeats):
            for way, environment in WAITING.items():
                with busy_processes(busy):
                    done = subprocess.run(
                        [sys.executable, "-m", "tests.bench.main_job", "--speed", "--home", str(home)],
                        check=True,
                        cwd=ROOT,
                        env={**_without_waiting(), **environment},
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                runs[way].append(json.loads(done.stdout))
                print(f"{busy} busy, {way}: {runs[way][-1]}", file=sys.stderr, flush=True)
        middle = {way: {name: median(run[name] for run in runs[way]) for name in SPEEDS} for way in WAITING}
        rows.append(
            {"part": "busy", "busy": busy, "commit": commit(), "runs": repeats, "ways": list(WAITING), **middle}
        )
    return rows


def _without_waiting() -> dict[str, str]:
    names = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    return {name: value for name, value in os.environ.items() if name not in names}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without end, each on one thread."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def speed(home: Path) -> dict[str, float]:
    """Prompt and decoding speed by `measure_speed`, and packed tokens a second of six training steps."""
    from agent.llm.benchmark import measure_speed
    from agent.llm.engine.scheduler import Engine
    from agent.llm.weights import load as weights
    from agent.llm.weights.catalog import DEFAULT_MODEL

    base = weights.resolve_model(DEFAULT_MODEL, home / "models", progress=lambda text: None)
    tokenizer = weights.load_tokenizer(base)
    engine = Engine(weights.load_model(base, device="cpu", dtype="auto", threads=0), tokenizer)
    try:
        made = measure_speed(engine)
    finally:
        engine.close()
    return {
        "prompt_tokens_per_s": made.prompt_tokens_per_second,
        "decode_tokens_per_s": made.decode_tokens_per_second,
        "decode_8_tokens_per_s": made.decode_tokens_per_second_together,
        "train_tokens_per_s": train_speed(base),
    }


def train_speed(base: Any) -> float:
    """Packed tokens a second of trees like the desk's: a prompt of 400 tokens and eight branches of 60 each."""
    import random

    from agent.config.settings import TuningSettings
    from agent.llm.weights import load as weights
    from tuner.training.trainer import train
    from tuner.tree.packing import Example

    chance = random.Random(0)
    prompt = [chance.randrange(1000, 20000) for _ in range(400)]
    examples = []
    for number in range(48):
        branch = [chance.randrange(1000, 20000) for _ in range(60)]
        targets = [False] * 400 + [False] * 30 + [True] * 30
        examples.append(Example(tuple(prompt + branch), tuple(targets), f"run-{number}"))
    model = weights.load_model(base, device="cpu", dtype="float32", threads=0)
    settings = TuningSettings(epochs=1, min_steps=6, patience=0, batch_targets=240)
    ended: list[float] = []
    trained = train(model, examples, [], settings, folder=None, on_progress=lambda _: ended.append(time.perf_counter()))
    # The first step prepares what later ones use.
    steps = trained.packed_tokens / trained.steps
    return steps * (len(ended) - 1) / (ended[-1] - ended[0])


if __name__ == "__main__":
    raise SystemExit(main())
