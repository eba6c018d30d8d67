"""Makes the tables in README.md and docs/*.md again from docs/results/*.json: `python -m tests.bench.tables`.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; NAME is a result's. What is between them
is written over. With `--check` nothing is written, and the exit code is 1 when a file is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.results import ROOT
from tuner.evaluate import wilson
from tuner.report import comparison_table, markdown_table, with_interval


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    options = parser.parse_args(arguments)
    faults: list[str] = []
    for path in [options.root / "README.md", *sorted((options.root / "docs").glob("*.md"))]:
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
    """`rows` as `tuner.report.comparison_rows` gives them."""
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
        origin = f"at {_short(data['commit'])}, {data['date'][:10]}, {made['cores']} cores ({made['cpu']})"
    else:
        told = [f"{', '.join(names)} at {_short(commit)} ({cpu})" for (commit, cpu), names in pieces.items()]
        origin = f"in parts: {'; '.join(told)}; the last of them {data['date'][:10]}; {made['cores']} cores"
    return f"`{data['command']}` {origin}, {made['memory_gib']} GiB, torch {made['torch']}."


def _short(commit: str) -> str:
    return commit.removesuffix("-dirty")[:12] + ("-dirty" if commit.endswith("-dirty") else "")


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "desk": _desk,
    "desk_demo": _desk,
    "banking77": _banking77,
    "tuning": _tuning,
}

if __name__ == "__main__":
    raise SystemExit(main())
