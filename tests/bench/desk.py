"""`make bench-desk`: the whole loop on the demo desk, every held-out ticket, at most 300 corrections."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from agent.cli import main as cli
from tests.bench.results import write_result
from tuner.demo import demo

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", choices=("bench", "demo", "quick"), default="bench")
    parser.add_argument("--home", type=Path, default=ROOT / ".ratchet" / "bench-desk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write what came of it to this file, in place of docs/results")
    args = parser.parse_args()
    plan = replace({"bench": demo.BENCH, "demo": demo.FULL, "quick": demo.QUICK}[args.plan], seed=args.seed)
    shutil.rmtree(args.home / "desk", ignore_errors=True)
    project = demo.prepare_desk(ROOT / "examples" / "desk", args.home)
    with demo.DemoWatcher(lambda text: print(text, file=sys.stderr, flush=True)) as watcher:
        result, runtime = demo.run_demo(project, demo.capture_commands(cli.main), plan, watcher)
        runtime.close()
    print(demo.format_result(result))
    tuned = result.tuned.summary().metrics
    metrics = {
        "held_out_success_base": result.base.success,
        "held_out_success_tuned": result.tuned.success,
        "refusals_tuned": tuned["refusal"].mean,
        "corrections": float(sum(review.corrections for review in result.reviews)),
        "tuning_minutes": sum(tuning.trained.seconds for tuning in result.tunings) / 60,
        "demo_minutes": result.minutes,
    }
    if args.write:
        gates = [{"gain": gate.decision.gain, "ship": gate.decision.ship} for gate in result.gates]
        candidates = [gate.candidate.success for gate in result.gates]
        found = {
            "success": result.tuned.success,
            "escalated": tuned["refusal"].mean,
            "not_escalated_otherwise": tuned["not_refused"].mean,
            "minutes": result.minutes,
            "candidates": candidates,
            "gates": gates,
            **{key: metrics[key] for key in ("corrections", "tuning_minutes")},
        }
        args.write.write_text(json.dumps(found), encoding="utf-8")
        return 0
    name = "desk" if args.plan == "bench" else f"desk_{args.plan}"
    command = "make bench-desk" if args.plan == "bench" else f"python -m tests.bench.desk --plan {args.plan}"
    print(write_result(name, command, metrics, result.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
