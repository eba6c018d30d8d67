"""Makes the tables in README.md and docs/*.md again from docs/results/*.json: `python -m tests.bench.tables`.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; NAME is a result's. What is between them
is written over. With `--check` nothing is written, and the exit code is 1 when a file is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.memory_tables import memory
from tests.bench.results import ROOT
from tests.bench.retrieval_tables import retrieval
from tests.bench.tasks_tables import tasks
from tuner.evaluation.statistics import wilson
from tuner.reports.gate_report import comparison_table, markdown_table, with_interval


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    options = parser.parse_args(arguments)
    faults: list[str] = []
    for path in [options.root / "README.md", *sorted((options.root / "docs").rglob("*.md"))]:
        if not path.is_file():
            continue
        name = path.relative_to(options.root)
        old = path.read_text(encoding="utf-8")
        new, found = render(old, options.root / "docs" / "results")
        faults += [f"{name}: {fault}" for fault in found]
        if new == old:
            continue
        if options.check:
            faults.append(f"{name}: tables are out of date; run `make docs`")
        else:
            path.write_text(new, encoding="utf-8")
            print(f"{name}: tables written")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def render(text: str, results: Path) -> tuple[str, list[str]]:
    """The text with its tables made again, and what could not be made; such a table is left as it was."""
    faults: list[str] = []
    opened, closed = len(re.findall(r"<!-- table:", text)), len(re.findall(r"<!-- /table -->", text))
    if opened != closed:
        return text, [f"{opened} table markers are opened and {closed} closed; expected as many"]

    def again(match: re.Match[str]) -> str:
        name = match.group("name")
        try:
            data = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
            table = _TABLES.get(name, _metrics)(data)
        except FileNotFoundError:
            faults.append(f"table {name}: docs/results/{name}.json is missing; run its benchmark")
            return match.group(0)
        except (ValueError, KeyError, TypeError) as fault:
            faults.append(f"table {name}: docs/results/{name}.json does not fit ({fault!r}); run its benchmark")
            return match.group(0)
        return f"<!-- table:{name} -->\n{table}\n\n{_source(data)}\n<!-- /table -->"

    return _MARKED.sub(again, text), faults


_MARKED = re.compile(r"<!-- table:(?P<name>[a-z0-9_]+) -->.*?<!-- /table -->", re.DOTALL)


def _desk(data: Mapping[str, Any]) -> str:
    """`rows` as `tuner.reports.gate_report.comparison_rows` gives them."""
    return comparison_table(data["rows"])


def _banking77(data: Mapping[str, Any]) -> str:
    """`rows`: `corrections`, `seed`, `tasks`, `accuracy`, `low`, `high`; several seeds make one line."""
    lines: dict[int, list[Mapping[str, Any]]] = {}
    for row in data["rows"]:
        lines.setdefault(row["corrections"], []).append(row)
    table = []
    for corrections, runs in sorted(lines.items()):
        each = [run["accuracy"] for run in runs]
        table.append(
            [
                corrections,
                with_interval(sum(each) / len(each), min(run["low"] for run in runs), max(run["high"] for run in runs)),
                ", ".join(f"{accuracy * 100:.1f}" for accuracy in each),
                runs[0]["tasks"],
            ]
        )
    return markdown_table(
        ["corrections", "accuracy (95 % interval, widest of the seeds)", "each seed", "test messages"], table
    )


def _tuning(data: Mapping[str, Any]) -> str:
    """A table for each part that was measured, but "kills"."""
    tables = []
    for part, table in (
        ("trl", _against_trl),
        ("growth", _growth),
        ("retention", _retention),
        ("noise", _against_noise),
    ):
        rows = [row for row in data["rows"] if row["part"] == part]
        if rows:
            tables.append(table(rows))
    return "\n\n".join(tables)


def _against_trl(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: `set` and `side` ("ours", then "theirs"), with what each measured."""
    table = []
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        table.append(
            [
                ours["set"],
                f"{ours['targets_per_second']:.1f}",
                f"{theirs['targets_per_second']:.1f}",
                f"{ours['targets_per_second'] / theirs['targets_per_second']:.1f}",
                f"{ours['seconds_per_epoch']:.0f}",
                f"{theirs['seconds_per_epoch']:.0f}",
                f"{ours['peak_bytes'] / 2**30:.1f}",
                f"{theirs['peak_bytes'] / 2**30:.1f}",
                f"{ours['loss']:.3f}",
                f"{theirs['loss']:.3f}",
            ]
        )
    head = ["set", "target tokens/s", "TRL", "ratio", "seconds per epoch", "TRL", "peak GiB", "TRL", "loss", "TRL"]
    return markdown_table(head, table)


def _growth(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: `rows`, `steps` (0 as they are), `unique_tokens` and `seconds` of one step over all of them."""
    table = [
        [
            f"{row['rows']} runs of {row['steps']} steps" if row["steps"] else f"{row['rows']} corrections",
            f"{row['unique_tokens']:,}",
            f"{row['seconds']:.1f}",
            f"{row['unique_tokens'] / row['seconds']:.0f}",
        ]
        for row in rows
    ]
    told = "Loss and gradient of one step, by how much is in it:"
    return f"{told}\n\n{markdown_table(['examples', 'unique tokens', 'seconds', 'tokens/s'], table)}"


def _retention(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: `replay`, `round`, `taught`, and `accuracy` on each skill `tested` by then."""
    skills = list(dict.fromkeys(row["tested"] for row in rows))
    found = {(row["replay"], row["round"], row["tested"]): row["accuracy"] for row in rows}
    table = []
    for replay, number, taught in dict.fromkeys((row["replay"], row["round"], row["taught"]) for row in rows):
        shares = [found.get((replay, number, skill)) for skill in skills]
        table.append(
            [f"{100 * replay:.0f} %", taught, *("" if share is None else f"{100 * share:.0f} %" for share in shares)]
        )
    head = "Accuracy on each skill after each round, going on from the adapter of the round before:"
    return f"{head}\n\n{markdown_table(['replayed', 'taught', *skills], table)}"


def _against_noise(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: `adversarial`, `accuracy` and `tested` by sort of input, `examples`, `seconds`, `cost_ratio`."""
    sorts = list(rows[0]["accuracy"])
    table = []
    for row in rows:
        shares = []
        for sort in sorts:
            mean, tested = row["accuracy"][sort], row["tested"][sort]
            right = wilson(round(mean * tested), tested)
            shares.append(with_interval(right.mean, right.low, right.high))
        table.append([row["adversarial"], *shares, f"{row['seconds']:.0f}", f"{row['cost_ratio']:.1f}"])
    head = ["adversarial", *(f"{sort}, {rows[0]['tested'][sort]} messages" for sort in sorts), "seconds", "ratio"]
    told = f"Accuracy (95 % interval) of trainings on {rows[0]['examples']} clean messages, and what they took:"
    return f"{told}\n\n{markdown_table(head, table)}"


def _inference(data: Mapping[str, Any]) -> str:
    """A table for each set of tasks, one for how a step's time grows, and the figures of our engine alone."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in data["rows"]:
        parts.setdefault(row["part"], []).append(row)
    tables = [f"{told}\n\n{_contestants(parts[name])}" for name, told in _SETS_OF_TASKS.items() if name in parts]
    if "growth" in parts:
        tables.append(_growing_steps(parts["growth"][0]))
    names = [name for name in _ENGINE if data["metrics"].get(name) is not None]
    if names:
        table = [[_ENGINE[name], f"{data['metrics'][name]:.3g}"] for name in names]
        tables.append(f"The engine alone:\n\n{markdown_table(['figure', 'value'], table)}")
    return "\n\n".join(tables)


_SETS_OF_TASKS = {
    "tickets": "Held-out tickets of the desk, one after the other:",
    "long": "Runs of 16 steps, each reading all that was said before:",
}
_ENGINE = {
    "prompt_tokens_per_s": "prompt tokens read a second",
    "decode_tokens_per_s": "tokens decoded a second, one session, nothing guessed",
    "share_of_bandwidth_limit": "share of what reading the weights once for each token would allow",
    "known_prefix_first_token_ratio": "first token of a prompt of which four fifths are known, over an unknown one",
    "step32_over_step2": "seconds of step 32 over those of step 2",
    "batch8_ratio": "tickets a minute of eight sessions at once, over those of one",
    "overhead_ms_per_step": "milliseconds that loop and log add to a step",
    "quality_loss_points": "points of accuracy that the served precision loses against float32",
}


def _contestants(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: `side`, `peak_bytes` and `tasks`, each with `seconds`, `solved` and `steps`."""
    ours = next((row for row in rows if row["side"] == "ratchet"), None)
    known = {task["task"]: task["seconds"] for task in ours["tasks"]} if ours else {}
    table = []
    for row in rows:
        steps = [step for task in row["tasks"] for step in task["steps"]]
        both = [task for task in row["tasks"] if task["task"] in known]
        times = sum(task["seconds"] for task in both) / sum(known[task["task"]] for task in both) if both else None

        def mean(name: str, steps: Sequence[Mapping[str, Any]] = steps) -> str:
            return f"{statistics.mean(step[name] for step in steps):.0f}"

        table.append(
            [
                row["side"],
                len(row["tasks"]),
                _middle_and_high([task["seconds"] for task in row["tasks"]]),
                "" if times is None else f"{times:.1f}",
                _middle_and_high([step["seconds"] for step in steps]),
                f"{len(steps) / len(row['tasks']):.1f}",
                *(mean(name) for name in ("read", "written", "sampled", "guessed")),
                f"{100 * statistics.mean(step['parsed'] for step in steps):.0f} %",
                sum(task["solved"] for task in row["tasks"]),
                f"{row['peak_bytes'] / 2**30:.1f}",
            ]
        )
    head = ["", "tasks", "s per task (p95)", "over ours", "s per step (p95)", "steps", "read", "written", "sampled"]
    return markdown_table([*head, "guessed", "steps read as calls", "solved", "peak GiB"], table)


def _middle_and_high(seconds: Sequence[float]) -> str:
    high = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return f"{statistics.median(seconds):.2f} ({high:.2f})"


def _growing_steps(row: Mapping[str, Any]) -> str:
    """`row`: by step, `seconds`, `prompt` and `read`."""
    table = [
        [place, row["prompt"][place - 1], row["read"][place - 1], f"{row['seconds'][place - 1]:.3f}"]
        for place in (1, 2, 4, 8, 16, 32)
    ]
    told = "Steps that all bring as many new tokens:"
    return f"{told}\n\n{markdown_table(['step', 'tokens before it', 'of them read', 'seconds'], table)}"


def _metrics(data: Mapping[str, Any]) -> str:
    return markdown_table(
        ["figure", "value"],
        [[name, "not measured" if value is None else f"{value:.4g}"] for name, value in data["metrics"].items()],
    )


def _source(data: Mapping[str, Any]) -> str:
    """What made the figures, where and when; parts that were measured elsewhere or at another commit are told apart."""
    made = data["machine"]
    pieces: dict[tuple[str, str], dict[str, None]] = {}
    for row in data["rows"]:
        if "part" in row:
            where = row.get("commit", data["commit"]), row.get("cpu", made["cpu"])
            pieces.setdefault(where, {})[row["set"] if row["part"] == "trl" else row["part"]] = None
    if len(pieces) < 2:
        commit, cpu = next(iter(pieces), (data["commit"], made["cpu"]))
        origin = f"at {_short(commit)}, {data['date'][:10]}, {made['cores']} cores ({cpu})"
    else:
        told = [f"{', '.join(names)} at {_short(commit)} ({cpu})" for (commit, cpu), names in pieces.items()]
        origin = f"in parts: {'; '.join(told)}; the last of them {data['date'][:10]}; {made['cores']} cores"
    return f"`{data['command']}` {origin}, {made['memory_gib']} GiB, torch {made['torch']}."


def _short(commit: str) -> str:
    return commit.removesuffix("-dirty")[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _answers(data: Mapping[str, Any]) -> str:
    """`rows`: `side` ("before", then a tuning each), with what each measured; what it did not measure is "-"."""
    rows = data["rows"]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if _is_share(name)]
    head = ["", *(_side(row) for row in rows)]
    cells = [[name, *("-" if row.get(name) is None else f"{row[name]:.2f}" for row in rows)] for name in names]
    return markdown_table(head, cells)


def _is_share(name: str) -> bool:
    return name.endswith(("_rate", "_share", "_precision", "_recall"))


def _side(row: Mapping[str, Any]) -> str:
    return "before" if row["side"] == "before" else f"tuned, `contexts = {row['contexts']}`"


def _main_job(data: Mapping[str, Any]) -> str:
    """`rows` of part "demo" (one a seed) and of part "busy" (speeds by busy processes and way of waiting)."""
    demos = sorted((row for row in data["rows"] if row["part"] == "demo"), key=lambda row: row["seed"])
    parts = []
    successes = [row["success"] for row in demos]
    if demos:
        table = [
            [f"seed {row['seed']}", f"{row['success']:.1%}", f"{row['escalated']:.1%}", f"{row['minutes']:.1f}"]
            for row in demos
        ]
    if len(demos) >= 3:
        table.append(["**worst**", f"**{min(successes):.1%}**", f"{min(row['escalated'] for row in demos):.1%}", ""])
        table.append(["**median**", f"**{statistics.median(successes):.1%}**", "", ""])
    if demos:
        parts.append(markdown_table(["", "solved, of 60", "escalated, of those to be", "minutes"], table))
    busy = {row["busy"]: row for row in data["rows"] if row["part"] == "busy"}
    if busy:
        speeds = list(busy[0]["passive"])
        table = [
            [
                name.replace("_", " "),
                *(f"{busy[count][way][name]:.0f}" for count in busy for way in busy[count]["ways"]),
            ]
            for name in speeds
        ]
        head = ["", *(f"{count} busy, {way}" for count in busy for way in busy[count]["ways"])]
        told = "Speed beside busy processes on two cores, with OpenMP's default and with passive waiting:"
        parts.append(f"{told}\n\n{markdown_table(head, table)}")
    return "\n\n".join(parts)


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "main_job": _main_job,
    "desk": _desk,
    "desk_demo": _desk,
    "banking77": _banking77,
    "answers": _answers,
    "tuning": _tuning,
    "inference": _inference,
    "retrieval": retrieval,
    "memory": memory,
    "tasks": tasks,
}

if __name__ == "__main__":
    raise SystemExit(main())
