"""The report of the gate, as JSON, Markdown and one HTML page, and the tables that other reports share.

Text from tasks and models is escaped.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.util.atomic_files import write_whole
from tuner.evaluation.evaluate import EvaluatedTask, Evaluation
from tuner.evaluation.gate import Decision, GroupChange
from tuner.evaluation.statistics import Interval
from tuner.reports.html import Table, render, short
from tuner.reports.plots import interval_chart

REPORT_VERSION = 1

METRICS = {
    "success": "Task success",
    "tool": "Right tool",
    "arguments": "Right arguments",
    "facts": "Required facts",
    "state": "Right final state",
    "citations": "Right citations",
    "refusal": "Escalated when required",
    "not_refused": "Not escalated otherwise",
}
COSTS = {"tokens": "Tokens per task", "seconds": "Seconds per task", "steps": "Steps per task"}


def write_gate_report(
    folder: Path, decision: Decision, base: Evaluation, active: Evaluation | None, candidate: Evaluation
) -> Path:
    """Write `report/gate.json`, `gate.md` and `gate.html` in a folder; returns the report folder.

    Args:
        folder: Of the adapter, or a temporary one.
        decision: Of the gate.
        base: The base without recall.
        active: What was served; None for the base.
        candidate: The new adapter.
    """
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    runs = _named(base, active, candidate)
    flips = _flips(base if active is None else active, candidate)
    data = {
        "version": REPORT_VERSION,
        "decision": asdict(decision),
        "evaluations": {
            name: {
                "suite": run.suite,
                "base": run.base,
                "base_revision": run.base_revision,
                "adapter": run.adapter,
                "adapter_hash": run.adapter_hash,
                "summary": asdict(run.summary()),
            }
            for name, run in runs.items()
        },
        "flips": [
            {
                "task": new.task,
                "group": new.group,
                "won": new.scores.success,
                "reasons": list(_why(old, new)),
                "before": old.answer,
                "after": new.answer,
            }
            for old, new in flips
        ],
    }
    write_whole(report / "gate.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    write_whole(report / "gate.md", _markdown(decision, runs, flips))
    write_whole(report / "gate.html", _page(decision, runs, flips))
    return report


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with figures aligned right; pipes and newlines are escaped."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table {len(headers)} columns: {row!r}")
    figures = [all(_FIGURE.match(str(row[i])) for row in rows) for i in range(len(headers))]
    ruler = "|".join(" ---: " if right and rows else " --- " for right in figures)
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (headers, *rows)]
    return "\n".join([lines[0], f"|{ruler}|", *lines[1:]])


def comparison_rows(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Compare two evaluations; returns for each metric label, unit, count, and mean, low and high of both."""
    old, new = before.summary(), after.summary()
    rows: list[dict[str, Any]] = []
    for labels, unit, left, right in (
        (METRICS, "share", old.metrics, new.metrics),
        (COSTS, "number", old.costs, new.costs),
    ):
        for metric, label in labels.items():
            if metric in left and metric in right:
                rows.append(
                    {
                        "metric": metric,
                        "label": label,
                        "unit": unit,
                        "count": right[metric].count,
                        **{f"before_{key}": round(value, 6) for key, value in _ends(left[metric]).items()},
                        **{f"after_{key}": round(value, 6) for key, value in _ends(right[metric]).items()},
                    }
                )
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return `comparison_rows` as a Markdown table, each figure with its 95 % interval."""
    return markdown_table(
        ["", "tasks", "before", "after"],
        [
            [
                row["label"],
                row["count"],
                *(
                    with_interval(*(row[f"{side}_{end}"] for end in ("mean", "low", "high")), unit=row["unit"])
                    for side in ("before", "after")
                ),
            ]
            for row in rows
        ],
    )


def with_interval(mean: float, low: float, high: float, *, unit: str = "share") -> str:
    """Format a mean with its interval: `63.0 % (58.7-67.1)` for a share, `412 (390-436)` for a number."""
    if unit == "share":
        return f"{mean * 100:.1f} % ({low * 100:.1f}-{high * 100:.1f})"
    digits = 0 if mean >= 100 else 1
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


_FIGURE = re.compile(r"[+-]?[0-9]|$")


def _named(base: Evaluation, active: Evaluation | None, candidate: Evaluation) -> dict[str, Evaluation]:
    runs = {"base": base, "active": active, "candidate": candidate}
    return {name: run for name, run in runs.items() if run is not None}


def _flips(before: Evaluation, after: Evaluation) -> list[tuple[EvaluatedTask, EvaluatedTask]]:
    old = {row.task: row for row in before.rows}
    pairs = [(old[row.task], row) for row in after.rows]
    flipped = [pair for pair in pairs if pair[0].scores.success != pair[1].scores.success]
    return sorted(flipped, key=lambda pair: (pair[1].scores.success, pair[1].group, pair[1].task))


def _why(old: EvaluatedTask, new: EvaluatedTask) -> tuple[str, ...]:
    """Return the reasons of the failure: before, for a task that was won; now, for one that was lost."""
    return (old if new.scores.success else new).scores.reasons


def _tables(
    decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[EvaluatedTask, EvaluatedTask]]
) -> tuple[Table, ...]:
    summaries = {name: run.summary() for name, run in runs.items()}
    figures = []
    for labels, unit in ((METRICS, "share"), (COSTS, "number")):
        for metric, label in labels.items():
            found = [
                (summary.metrics if unit == "share" else summary.costs).get(metric) for summary in summaries.values()
            ]
            if any(found):
                figures.append((label, *(_format(interval, unit) for interval in found)))
    changes = [decision.overall, *decision.groups, *([decision.refusals] if decision.refusals else [])]
    return (
        Table("Figures, with 95 % intervals", ("", *runs), tuple(figures)),
        Table(
            "Change against what is served now, by group",
            ("group", "tasks", "before", "after", "gain in points", "won", "lost", "note"),
            tuple(_change_row(change, decision) for change in changes),
        ),
        Table(
            f"Tasks that flipped ({len(flips)})",
            ("task", "group", "now", "request", "reason of the failure"),
            tuple(
                (
                    new.task,
                    new.group,
                    "won" if new.scores.success else "lost",
                    short(new.text),
                    short("; ".join(_why(old, new)), 400),
                )
                for old, new in flips
            ),
        ),
    )


def _change_row(change: GroupChange, decision: Decision) -> tuple[str, ...]:
    notes = [
        "small" if change.small and change in decision.groups else "",
        "stops the candidate" if change.blocks else "",
    ]
    return (
        change.name,
        str(change.tasks),
        f"{change.before:.1%}",
        f"{change.after:.1%}",
        f"{change.gain * 100:+.1f} ({change.low * 100:+.1f} to {change.high * 100:+.1f})",
        str(change.won),
        str(change.lost),
        ", ".join(filter(None, notes)),
    )


def _verdict(decision: Decision) -> str:
    return "Ship" if decision.ship else "Do not ship"


def _markdown(
    decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[EvaluatedTask, EvaluatedTask]]
) -> str:
    parts = [
        f"# Gate: {_verdict(decision).lower()}",
        *(f"- {_inline(reason)}" for reason in decision.reasons),
    ]
    parts = [parts[0], "\n".join(parts[1:]), "\n".join(f"- {_inline(line)}" for line in _describe_runs(runs))]
    for table in _tables(decision, runs, flips):
        rows = [[_inline(cell) for cell in row] for row in table.rows]
        parts += [f"## {table.title}", markdown_table(table.headers, rows) if rows else "None."]
    return "\n\n".join(parts) + "\n"


def _page(
    decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[EvaluatedTask, EvaluatedTask]]
) -> str:
    return render(
        "gate.html",
        title=f"Gate: {_verdict(decision)}",
        ship=decision.ship,
        verdict=_verdict(decision),
        reasons=decision.reasons,
        chart=interval_chart(_success_by_group(runs)),
        tables=_tables(decision, runs, flips),
        compared=_describe_runs(runs),
    )


def _success_by_group(runs: Mapping[str, Evaluation]) -> dict[str, dict[str, tuple[Interval, str]]]:
    """Return by group, all tasks first, and run the success with its text."""
    summaries = {name: run.summary() for name, run in runs.items()}
    groups = sorted(next(iter(summaries.values())).groups)
    everything = {name: summary.metrics["success"] for name, summary in summaries.items()}
    by_group = {group: {name: summary.groups[group] for name, summary in summaries.items()} for group in groups}
    return {
        group: {name: (interval, _format(interval, "share")) for name, interval in intervals.items()}
        for group, intervals in {"all tasks": everything, **by_group}.items()
    }


def _describe_runs(runs: Mapping[str, Evaluation]) -> list[str]:
    lines = [f"suite {next(iter(runs.values())).suite[:12]}, {len(next(iter(runs.values())).rows)} tasks"]
    for name, run in runs.items():
        adapter = f"adapter {run.adapter} ({(run.adapter_hash or '')[:12]})" if run.adapter else "no adapter"
        lines.append(f"{name}: {run.base or 'unnamed base'} {run.base_revision[:12]}, {adapter}")
    return lines


def _format(interval: Interval | None, unit: str) -> str:
    return "" if interval is None else with_interval(interval.mean, interval.low, interval.high, unit=unit)


def _ends(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _inline(text: str) -> str:
    """Escape a text, so that Markdown shows no tags, links or emphasis of a task or a model."""
    return "".join(f"\\{mark}" if mark in "\\`*_[]~#" else mark for mark in html.escape(text, quote=False))
