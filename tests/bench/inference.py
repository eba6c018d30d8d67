"""`make bench-inference`: an agent's steps by our engine and by others, on the same tasks with the same weights.

Contestants take turns, a few tasks at a time, each time in a process of its own. Then, of our engine alone: how the
time of a step grows with the steps before it, what eight sessions at once are worth, what loop and log add, how fast
prompts are read and tokens decoded and how near that is to what the memory allows, and what precision costs in
accuracy. Parts and contestants can be measured apart; a row says of which commit and processor it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import inference_parts, inference_sides, inference_tasks
from tests.bench.results import beside_peers, commit, machine, rows_of, write_result
from tuner.training.memory_budget import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".ratchet" / "bench-inference"
COUNTS = {"tickets": 50, "long": 20}
TURN = {"tickets": 25, "long": 10}
"""Tasks that a contestant does before it is the next one's turn."""

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--parts", nargs="*", choices=(*COUNTS, *PARTS), default=(*COUNTS, *PARTS))
    parser.add_argument(
        "--sides", nargs="*", choices=tuple(inference_sides.SIDES), default=tuple(inference_sides.SIDES)
    )
    parser.add_argument("--tickets", type=int, default=COUNTS["tickets"])
    parser.add_argument("--long", type=int, default=COUNTS["long"], help="runs of 16 steps")
    parser.add_argument("--most", nargs="*", default=[], help="fewer tasks of one contestant, such as smolagents=10")
    parser.add_argument("--measure", help="do one thing in this process and print what came of it")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args)))
        return 0
    inference_tasks.prepare(args.home)
    rows = rows_of("inference")
    for part in args.parts:
        made = contest(args, part) if part in COUNTS else [{"part": part, **child(args, part)}]
        rows = joined(rows, [{"commit": commit(), "cpu": machine()["cpu"], **row} for row in made])
        print(write_result("inference", "make bench-inference", metrics_of(rows), rows), flush=True)
    return 0


def measure(args: argparse.Namespace) -> Any:
    """What one process measures: a part, or some tasks of one contestant."""
    if args.measure in PARTS:
        return PARTS[args.measure](args.home)
    name, side = args.measure.split(":")
    work = inference_tasks.SETS[name](args.home, args.first + args.count)
    chosen = inference_tasks.Work(work.project, work.adapter, work.tasks[args.first :])
    made = inference_sides.SIDES[side](chosen, args.dtype)
    return {"tasks": [row.as_dict() for row in made], "peak_bytes": peak_bytes()}


def contest(args: argparse.Namespace, name: str) -> list[Row]:
    """Every contestant on a set of tasks, in turn."""
    wanted = {side: getattr(args, name) for side in args.sides}
    for side, most in (pair.split("=") for pair in args.most):
        wanted[side] = min(int(most), wanted[side])
    if name == "long":
        wanted.pop("llamacpp_q8", None)  # Without an adapter it has the same weights as the other.
    dtype = child(args, "dtype")["dtype"]
    found: dict[str, list[Row]] = {side: [] for side in wanted}
    peaks = dict.fromkeys(wanted, 0)
    for first in range(0, max(wanted.values()), TURN[name]):
        for side in wanted:
            count = min(TURN[name], wanted[side] - first)
            if count > 0:
                made = child(args, f"{name}:{side}", first=first, count=count, dtype=dtype)
                found[side] += made["tasks"]
                peaks[side] = max(peaks[side], made["peak_bytes"])
    return [{"part": name, "side": side, "peak_bytes": peaks[side], "tasks": found[side]} for side in wanted]


def child(args: argparse.Namespace, what: str, **options: Any) -> Any:
    """Measure something in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.inference", "--home", str(args.home), "--measure", what]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    quiet = {**beside_peers(), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=quiet)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {what} {options or ''}: {_brief(result)}", file=sys.stderr, flush=True)
    return result


def joined(rows: Sequence[Row], fresh: Sequence[Row]) -> list[Row]:
    """The old rows without those that were measured again, and the fresh ones."""
    again = {(row["part"], row.get("side")) for row in fresh}
    return [row for row in rows if (row["part"], row.get("side")) not in again] + list(fresh)


def metrics_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The figures that the results name; None for what was not measured."""
    found = {(row["part"], row.get("side")): row for row in rows}
    metrics: dict[str, float | None] = {}
    for side in ("smolagents", "langgraph", "llamacpp"):
        metrics[f"task_ratio_vs_{side}"] = task_ratio(found.get(("tickets", side)), found.get(("tickets", "ratchet")))
        metrics[f"long_ratio_vs_{side}"] = task_ratio(found.get(("long", side)), found.get(("long", "ratchet")))
    for part in PARTS:
        names = inference_parts.METRICS.get(part, ())
        metrics |= {name: found[part, None][name] if (part, None) in found else None for name in names}
    return metrics


def task_ratio(theirs: Row | None, ours: Row | None) -> float | None:
    """Their seconds over ours, over the tasks that both did."""
    if theirs is None or ours is None:
        return None
    seconds = {row["task"]: row["seconds"] for row in ours["tasks"]}
    both = [row for row in theirs["tasks"] if row["task"] in seconds]
    return sum(row["seconds"] for row in both) / sum(seconds[row["task"]] for row in both) if both else None


def _brief(result: Any) -> str:
    if "tasks" in result:
        seconds = [row["seconds"] for row in result["tasks"]]
        solved = sum(row["solved"] for row in result["tasks"])
        return f"{len(seconds)} tasks, {statistics.mean(seconds):.2f} s each, {solved} solved"
    return json.dumps(result)[:200]


PARTS: dict[str, Callable[[Path], Row]] = inference_parts.PARTS

if __name__ == "__main__":
    raise SystemExit(main())
