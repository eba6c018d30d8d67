"""`make bench-memory`: what corrections bring by memory alone, by the weights alone, and by both.

Messages of BANKING77 are routed as in `examples/routing.py`. Tickets of the demo desk are done by the base and by one
adapter, each with and without what the log recalls. Both are measured on what was never reviewed. What answers cite and
refuse is measured by `tests.bench.answers`; its figures are taken over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.cli import main as cli
from agent.runtime import Runtime
from tests.bench.banking77 import DATA
from tests.bench.results import RESULTS, ROOT, commit, machine, replaced, rows_of, write_result
from tuner.demo import demo
from tuner.demo.reviewer import Reviewer, load_tickets
from tuner.evaluation.evaluate import Evaluation
from tuner.pipeline.pipeline import tune
from tuner.pipeline.promote import evaluate_adapter, project_suite

PARTS = ("banking77", "desk")
WAYS = ("memory", "weights", "both")
REVIEWED = (100, 200, 500)
CORRECTIONS = 100
"""Of the desk's training tickets, at most."""
HELD_OUT = 60
ANSWERS = ("rejection_rate", "false_rejection_rate", "citation_precision", "citation_recall")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.csv and test.csv of BANKING77")
    parser.add_argument("--reviewed", type=int, nargs="+", default=list(REVIEWED))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="for the largest number; else the first"
    )
    args = parser.parse_args(argv)
    if "banking77" in args.parts and not (args.data / "train.csv").is_file():
        print(f"bench-memory: {args.data} has no train.csv; name the folder with --data", file=sys.stderr)
        return 1
    rows = rows_of("memory")
    for part in args.parts:
        made = banking77(args.data, args.reviewed, args.seeds) if part == "banking77" else desk()
        made = [{"commit": commit(), "cpu": machine()["cpu"], "part": part, **row} for row in made]
        rows = merged(rows, made)
        print(write_result("memory", "make bench-memory", metrics_of(rows, answers_of(RESULTS)), rows), flush=True)
    return 0


def merged(rows: Sequence[Row], made: Sequence[Row]) -> list[Row]:
    """The rows with those made in place of the ones of the same part, number of corrections, seed and way."""

    def key(row: Mapping[str, Any]) -> tuple[str, int, int, str]:
        return row["part"], row["corrections"], row.get("seed", 0), row["by"]

    return sorted(replaced(rows, made, key), key=key)


def banking77(data: Path, reviewed: Sequence[int], seeds: Sequence[int]) -> list[Row]:
    """A row for each number of reviewed messages, seed and way."""
    out = ROOT / ".ratchet" / "bench-memory" / "routing.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(ROOT / "examples" / "routing.py"),
        "--by",
        *WAYS,
        "--home",
        str(out.parent / "routing"),
    ]
    command += ["--train", str(data / "train.csv"), "--test", str(data / "test.csv"), "--out", str(out)]
    command += ["--reviewed", *map(str, reviewed), "--seeds", *map(str, seeds)]
    subprocess.run(command, check=True, cwd=ROOT)
    found: list[Row] = json.loads(out.read_text(encoding="utf-8"))
    return found


def desk() -> list[Row]:
    """Held-out tickets solved: by the base alone, and by each way after one round of corrections."""
    home = ROOT / ".ratchet" / "bench-memory"
    home.mkdir(parents=True, exist_ok=True)
    (ROOT / ".ratchet" / "models").mkdir(exist_ok=True)
    if not (home / "models").exists():
        (home / "models").symlink_to(ROOT / ".ratchet" / "models", target_is_directory=True)
    shutil.rmtree(home / "desk", ignore_errors=True)
    project = demo.prepare_desk(ROOT / "examples" / "desk", home)
    suite = project_suite(project, limit=HELD_OUT)
    with Runtime(project) as runtime:
        demo.build_database(runtime)
        for folder in project.settings.memory.folders:
            runtime.memory.add_folder(project.resolve(folder))
        rows = [_told("base", 0, evaluate_adapter(runtime, suite, None, recall=False))]
        reviewer = Reviewer(
            runtime,
            demo.capture_commands(cli.main)(project.folder),
            corrections=CORRECTIONS,
            progress=lambda done, of: None,
        )
        tickets = load_tickets(project.folder / "tickets" / "train.jsonl")
        review = reviewer.review(tickets, at_once=project.settings.model.max_sessions)
        adapter = tune(runtime).adapter.id
        for way, served, recall in (("memory", None, True), ("weights", adapter, False), ("both", adapter, True)):
            rows.append(_told(way, review.corrections, evaluate_adapter(runtime, suite, served, recall=recall)))
    memory = replace(project.settings.memory, recall_as="odds")
    weighing = replace(project, settings=replace(project.settings, memory=memory))
    with Runtime(weighing) as runtime:
        for way, served in (("memory", None), ("both", adapter)):
            made = evaluate_adapter(runtime, suite, served)
            rows.append(_told(f"{way}, with odds", review.corrections, made))
    return rows


def _told(way: str, corrections: int, result: Evaluation) -> Row:
    found = result.summary().metrics["success"]
    return {
        "by": way,
        "corrections": corrections,
        "tasks": len(result.rows),
        "accuracy": found.mean,
        "low": found.low,
        "high": found.high,
    }


def metrics_of(rows: Sequence[Row], answers: Mapping[str, float | None]) -> dict[str, float | None]:
    """Accuracy with the largest number of reviewed messages, by way; and what answers cite and refuse."""
    names = {"memory": "memory", "weights": "weights", "both": "memory_and_weights"}
    made: dict[str, float | None] = {}
    for way, name in names.items():
        found = [
            row["accuracy"]
            for row in rows
            if (row["part"], row["by"], row["corrections"]) == ("banking77", way, max(REVIEWED))
        ]
        made[f"banking77_{max(REVIEWED)}_{name}"] = statistics.fmean(found) if found else None
    return {**made, **{name: answers.get(name) for name in ANSWERS}}


def answers_of(results: Path) -> dict[str, float | None]:
    """What `tests.bench.answers` measured; empty where it was not run."""
    path = results / "answers.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["metrics"]) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
