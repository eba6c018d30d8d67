"""The commands that tune: `tune`, `eval`, `merge`, `promote` and `demo`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.methods import TUNING_METHODS
from tuner.commands.console import ProgressBars, exit_code, format_verdict, print_note, print_result

if TYPE_CHECKING:
    from agent.config.project import Project
    from tuner.pipeline.promote import GateResult


def add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--promote", action="store_true", help="gate the new adapter and promote it if it is better")
    parser.add_argument("--method", choices=TUNING_METHODS, help="what is trained; left out: tuning.method")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="TUNING",
        help="go on with an unfinished tuning, by id; without one, the newest",
    )
    parser.add_argument(
        "--search",
        type=_count,
        metavar="N",
        help="make no adapter, but try settings in N trainings and print the best; called again, it goes on",
    )
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="end the search after so many minutes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def faults_of_tune(args: argparse.Namespace) -> str | None:
    """What of the arguments of `tune` does not go together."""
    if args.search is None:
        return None if args.minutes is None else "argument --minutes: only allowed with argument --search"
    for name, given in (("--resume", args.resume is not None), ("--promote", args.promote)):
        if given:
            return f"argument --search: not allowed with argument {name}"
    return None


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", nargs="?", type=Path, help="a suite file; left out: gate.suite of the settings")
    parser.add_argument("--adapter", default="active", help="an adapter's id, `active` (default) or `base`")
    parser.add_argument("--limit", type=int, help="an even share of each group, this many tasks in all")
    parser.add_argument("--fresh", action="store_true", help="run again even if the same was evaluated before")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="id of the candidate")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=_weighted, metavar="ADAPTER=WEIGHT", help="an id and its weight (default: 1)")
    parser.add_argument("others", type=_weighted, nargs="+", metavar="ADAPTER=WEIGHT", help="those added to it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer tickets and corrections: five minutes")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the trainings, and of the order of training tickets"
    )
    parser.add_argument("--desk", type=Path, help="a desk's folder; left out: the one that comes along")
    parser.add_argument("--home", type=Path, default=Path(".ratchet/demo"), help="where the demo keeps its files")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def tune(args: argparse.Namespace, project: Project) -> int:
    """Train a candidate from the feedback in the store."""
    from tuner.api import open_runtime
    from tuner.pipeline import pipeline
    from tuner.pipeline import promote as promotion
    from tuner.training import distributed as parallel

    if args.method:
        tuning = replace(project.settings.tuning, method=args.method)
        project = replace(project, settings=replace(project.settings, tuning=tuning))
    if args.search is not None:
        return _search(args, project)
    with parallel.join_processes(), open_runtime(project, print_note) as runtime, ProgressBars() as bar:
        if parallel.rank() > 0:
            pipeline.follow(runtime)
            return 0
        made = pipeline.tune(runtime, resume=args.resume, on_progress=bar.training, say=print_note)
        gated = promotion.promote(runtime, made.adapter.id, progress=bar.tasks) if args.promote else None
    data = {
        "adapter": made.adapter.id,
        "tensors_sha256": made.adapter.tensors_sha256,
        "dataset": made.dataset.hash,
        "folder": str(made.adapter.folder),
        "metrics": str(made.folder / "metrics.jsonl"),
        "loss": made.trained.loss,
        "held_out_loss": made.trained.held_out_loss,
        "minutes": round(made.trained.seconds / 60, 2),
        "promoted": gated is not None and gated.decision.ship,
    }
    report = made.folder / "report.html"
    text = (
        f"adapter {made.adapter.id} in {made.adapter.folder}\nreport: {report}\nnext: ratchet promote {made.adapter.id}"
    )
    print_result(data if args.json else (_format_gated(gated) if gated else text))
    return exit_code(gated is None or gated.decision.ship)


def _search(args: argparse.Namespace, project: Project) -> int:
    from dataclasses import asdict

    from tuner.api import open_runtime
    from tuner.pipeline import pipeline
    from tuner.training import distributed as parallel

    with parallel.join_processes(), open_runtime(project, print_note) as runtime, ProgressBars() as bar:
        found = pipeline.search_settings(
            runtime, trials=args.search, minutes=args.minutes, on_progress=bar.trial, say=print_note
        )
    data = {
        "best": asdict(found.best),
        "as_they_stand": None if found.as_they_stand is None else asdict(found.as_they_stand),
        "trials": [asdict(one) for one in found.trials],
        "table": str(found.table),
        "listed": str(found.listed),
    }
    table = found.table.read_text(encoding="utf-8")
    text = f"{table}\nto paste into ratchet.toml: {found.table}\nall trials: {found.listed}"
    print_result(data if args.json else text)
    return 0


def evaluate(args: argparse.Namespace, project: Project) -> int:
    """Run a suite under one adapter and print how it went."""
    from dataclasses import asdict

    from tuner.api import open_runtime
    from tuner.evaluation.suite import load_suite
    from tuner.pipeline import promote as promotion
    from tuner.reports.gate_report import markdown_table, with_interval

    suite = (
        load_suite(args.suite, limit=args.limit) if args.suite else promotion.project_suite(project, limit=args.limit)
    )
    with open_runtime(project, print_note) as runtime, ProgressBars() as bar:
        served = runtime.serving()
        adapter = (served.id if served else None) if args.adapter == "active" else args.adapter
        adapter = None if adapter in (None, "base") else runtime.registry.get(adapter).id
        result = promotion.evaluate_adapter(
            runtime,
            suite,
            adapter,
            fresh=args.fresh,
            progress=lambda done, of: bar.tasks(adapter or "base", done, of),
        )
    summary = result.summary()
    if args.json:
        print_result({"suite": suite.hash, "adapter": adapter, **asdict(summary)})
        return 0
    shares = [(name, with_interval(one.mean, one.low, one.high), one.count) for name, one in summary.metrics.items()]
    groups = [(name, with_interval(one.mean, one.low, one.high), one.count) for name, one in summary.groups.items()]
    print_result(
        markdown_table(("metric", "share", "tasks"), shares)
        + "\n\n"
        + markdown_table(("group", "success", "tasks"), groups)
    )
    return 0


def promote(args: argparse.Namespace, project: Project) -> int:
    """Gate a candidate, and serve it if it is better than what is served."""
    from tuner.api import open_runtime
    from tuner.pipeline import promote as promotion

    with open_runtime(project, print_note) as runtime, ProgressBars() as bar:
        gated = promotion.promote(runtime, args.adapter, progress=bar.tasks)
    decision = gated.decision
    data = {
        "promoted": decision.ship,
        "gain": decision.gain,
        "interval": [decision.low, decision.high],
        "reasons": list(decision.reasons),
        "report": str(gated.report),
    }
    print_result(data if args.json else _format_gated(gated))
    return exit_code(decision.ship)


def merge(args: argparse.Namespace, project: Project) -> int:
    """Make a candidate that is the weighted sum of adapters."""
    from tuner.api import open_runtime
    from tuner.pipeline.merge import merge

    with open_runtime(project, print_note) as runtime:
        made = merge(runtime, [args.adapter, *args.others], say=print_note)
    data = {
        "adapter": made.id,
        "tensors_sha256": made.tensors_sha256,
        "merged": list(made.merged),
        "folder": str(made.folder),
    }
    print_result(data if args.json else f"adapter {made.id} in {made.folder}\nnext: ratchet promote {made.id}")
    return 0


def demo(args: argparse.Namespace, main: Callable[[Sequence[str]], int]) -> int:
    """Turn the whole loop on the demo desk."""
    from agent.config.project import find_project
    from agent.errors import TaskError
    from tuner.demo import demo as loop

    source = args.desk or packaged_desk()
    project = loop.prepare_desk(source.resolve(), args.home.resolve())
    if find_project(project.folder).home.root.resolve() != project.home.root.resolve():
        raise TaskError("RATCHET_HOME is set, and the demo keeps a home of its own; unset it and start again")
    plan = replace(loop.QUICK if args.quick else loop.FULL, seed=args.seed)
    with loop.DemoWatcher(print_note) as watcher:
        result, runtime = loop.run_demo(project, loop.capture_commands(main), plan, watcher)
        runtime.close()
    if args.json:
        print_result({"minutes": result.minutes, "rows": result.rows})
    else:
        print_result(f"\n{loop.format_result(result)}")
        for gated in result.gates[-1:]:
            watcher.say(f"the gate's report: {gated.report / 'gate.html'}")
        watcher.say(
            f"go on with it: ratchet --project {project.folder} chat --fact customer_id=C1040 --fact today=2026-05-14"
        )
    return 0


def _weighted(text: str) -> tuple[str, float]:
    id, given, weight = text.partition("=")
    try:
        return id, float(weight) if given else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an adapter's id, or id=weight, found {text!r}") from None


def packaged_desk() -> Path:
    """Return the folder of the desk that comes along, in an installed package or in a checkout."""
    from agent.errors import TaskError

    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_desk", package.parent / "examples" / "desk"):
        if folder.is_dir():
            return folder
    raise TaskError("the demo desk is not installed; name a desk's folder with --desk")


def _format_gated(gated: GateResult) -> str:
    verdict = "promoted" if gated.decision.ship else "not promoted"
    return format_verdict(verdict, gated.decision.reasons, f"report: {gated.report}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number
