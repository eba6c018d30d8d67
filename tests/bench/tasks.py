"""`make bench-tasks`: the classic tasks on public data, by our methods and by what others would take for them.

A part is a set. Each side is trained and measured in a process of its own; a row is kept from run to run, until the
same part, method and seed are measured again. Settings are chosen on training files only, see docs/lab/. With
`--limit` only so many examples are learnt from, drawn by the seed; `--test-limit` measures with fewer, always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.config.project import find_project
from tests.bench.results import ROOT, beside_peers, commit, machine, replaced, rows_of, write_result
from tests.bench.tasks_sets import SETS, splits_of
from tests.bench.tasks_sides import OURS, PEERS, WAYS, peers_of, run, usual_of
from tests.bench.tasks_ways import SHOTS
from tuner.tasks.data.records import WRITTEN

DATA = ROOT.parent / "shared" / "data"

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    settings = {name: json.loads(value) for name, _, value in (one.partition("=") for one in args.set)}
    if args.measure:
        part, method, seed = args.measure
        splits = splits_of(args.data, part, int(seed), args.limit, args.test_limit)
        print(json.dumps(run(part, method, splits, int(seed), settings, find_project(ROOT), args.data)))
        return 0
    if not args.data.is_dir():
        print(f"{args.data} is missing; the benchmark needs the public data there", file=sys.stderr)
        return 1
    rows = rows_of("tasks")
    for part in args.parts:
        for seed in args.seeds:
            for method in args.methods or usual_of(part):
                if method in PEERS and method not in peers_of(part):
                    continue
                row = measured(part, method, seed, args, settings)
                print("  " + json.dumps(row), flush=True)
                rows = merged(rows, row)
                write_result("tasks", "make bench-tasks", metrics_of(rows), rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--parts", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--methods", nargs="+", choices=(*OURS, *WAYS, *PEERS), help="default: all but the slower ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="examples to train on, at most")
    parser.add_argument("--test-limit", type=int, help="examples to measure with, at most, the same for all seeds")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, as JSON")
    parser.add_argument("--measure", nargs=3, metavar=("PART", "METHOD", "SEED"), help="one row, in this process")
    return parser


def measured(part: str, method: str, seed: int, args: argparse.Namespace, settings: Mapping[str, Any]) -> Row:
    """A row of a process of its own."""
    command = [sys.executable, "-m", "tests.bench.tasks", "--data", str(args.data)]
    command += [
        "--measure",
        part,
        method,
        str(seed),
        *(f"--set={name}={json.dumps(settings[name])}" for name in settings),
    ]
    for name in ("limit", "test_limit"):
        if getattr(args, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=beside_peers(), cwd=ROOT)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    where = {"commit": commit(), "cpu": machine()["cpu"], "threads": len(os.sched_getaffinity(0))}
    return {"part": part, "method": method, "seed": seed, **where, "settings": dict(settings), **found}


def merged(rows: Iterable[Row], row: Row) -> list[Row]:
    """The rows with this one in place of the one of the same part, method and seed; in order of parts and methods."""

    def key(one: Mapping[str, Any]) -> tuple[str, str, int]:
        return one["part"], one["method"], one["seed"]

    order = [*OURS, *WAYS, *PEERS]
    return sorted(
        replaced(rows, [row], key),
        key=lambda one: (list(SETS).index(one["part"]), order.index(one["method"]), one["seed"]),
    )


def metrics_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """Differences in points, between rows of the same seed and as many examples; None where there are none."""
    gaps = [gap for part in _parts(rows) if (gap := _gap_to_baseline(part)) is not None]
    noise = {
        kind: [(one, other) for part in _parts(rows) for one, other in _hardened(part, kind)]
        for kind in ("typos", "fgm", "freelb")
    }
    return {
        "worst_gap_to_baseline_points": min(gaps, default=None),
        "lora_gap_to_full_points": _over(rows, "lora", "full"),
        "lora_checkpoint_share": _mean(
            lora["checkpoint_bytes"] / full["checkpoint_bytes"]
            for part in _parts(rows)
            for lora, full in _pairs(part, "lora", "full")
        ),
        "adversarial_gain_points": _gain(noise["typos"], "typos"),
        "adversarial_unseen_gain_points": _gain(noise["typos"], "keys"),
        "adversarial_clean_points": _mean(_points(one) - _points(other) for one, other in noise["typos"]),
        **{f"{kind}_gain_points": _gain(noise[kind], "typos") for kind in ("fgm", "freelb")},
        "transfer_gain_points": _over(rows, "transfer", "tenth"),
        "transfer_replay_gain_points": _over(rows, "transfer+replay", "tenth"),
        "few_shot_gain_points": _over(rows, "shots_8", "shots_0"),
    }


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)]


def _gap_to_baseline(rows: Sequence[Row]) -> float | None:
    """What is chosen where no method is named, over the best of the others, each as the mean of the seeds of both.

    Of tasks that write, the language model as it is and shown examples are others too.
    """
    ours = next((row["method"] for row in rows if row.get("default")), None)
    if ours is None:
        return None
    others = (*PEERS, *SHOTS) if SETS[rows[0]["part"]].task in WRITTEN else PEERS
    gaps = [
        statistics.fmean(_points(one) - _points(other) for one, other in pairs)
        for peer in others
        if (pairs := _pairs(rows, ours, peer))
    ]
    return min(gaps, default=None)


def _over(rows: Sequence[Row], method: str, other: str) -> float | None:
    """By how much one method is above another, over all parts and seeds that have both."""
    return _mean(_points(one) - _points(two) for part in _parts(rows) for one, two in _pairs(part, method, other))


def _hardened(rows: Sequence[Row], kind: str) -> list[tuple[Row, Row]]:
    return [pair for method in ("head", "lora", "full") for pair in _pairs(rows, f"{method}+{kind}", method)]


def _pairs(rows: Sequence[Row], method: str, other: str) -> list[tuple[Row, Row]]:
    """Rows of two methods that learnt from the same examples and were measured with the same."""

    def found(name: str) -> dict[tuple[int, int, int], Row]:
        return {(row["seed"], row["train"], row["test"]): row for row in rows if row["method"] == name}

    ours, theirs = found(method), found(other)
    return [(ours[key], theirs[key]) for key in ours if key in theirs]


def _gain(pairs: Sequence[tuple[Row, Row]], noise: str) -> float | None:
    return _mean(
        100 * (one["noisy"][noise][0] - other["noisy"][noise][0]) for one, other in pairs if noise in one["noisy"]
    )


def _points(row: Row) -> float:
    value: float = 100 * row["figures"][row["main"]][0]
    return value


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(statistics.fmean(found), 2) if found else None


if __name__ == "__main__":
    raise SystemExit(main())
