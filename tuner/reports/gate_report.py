"""Reports a person can read: the gate's decision as JSON, Markdown and one HTML page; tables; a loss plot.

Whatever comes from tasks and models is escaped. Nothing is decided here, and only `loss_plot` needs
matplotlib; the page's own plot is SVG that follows the reader's light or dark.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.errors import RecordError
from agent.util.atomic_files import write_whole
from tuner.evaluation.evaluate import Evaluation, Row
from tuner.evaluation.gate import Change, Decision
from tuner.evaluation.statistics import Interval
from tuner.reports.html import Table, html_table, page, short

REPORT_VERSION = 1

METRICS = {
    "success": "Task success",
    "tool": "Right tool",
    "arguments": "Right arguments",
    "facts": "Right facts",
    "state": "Right final state",
    "citations": "Right citations",
    "refusal": "Handed over when due",
    "not_refused": "Not handed over otherwise",
}
COSTS = {"tokens": "Tokens per task", "seconds": "Seconds per task", "steps": "Steps per task"}


def write_gate_report(
    folder: Path, decision: Decision, base: Evaluation, active: Evaluation | None, candidate: Evaluation
) -> Path:
    """Write `report/gate.json`, `gate.md` and `gate.html` in `folder`; returns the report folder."""
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
    """A Markdown table; columns of figures to the right; pipes and newlines are escaped."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table {len(headers)} columns: {row!r}")
    figures = [all(_FIGURE.match(str(row[i])) for row in rows) for i in range(len(headers))]
    ruler = "|".join(" ---: " if right and rows else " --- " for right in figures)
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (headers, *rows)]
    return "\n".join([lines[0], f"|{ruler}|", *lines[1:]])


def comparison_rows(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Before and after as plain rows: metric, label, unit, count, and mean, low and high of either."""
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
    """The Markdown of `comparison_rows`, each figure with its 95 % interval."""
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
    """`63.0 % (58.7-67.1)` for a share, `412 (390-436)` for a number."""
    if unit == "share":
        return f"{mean * 100:.1f} % ({low * 100:.1f}-{high * 100:.1f})"
    digits = 0 if mean >= 100 else 1
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def loss_plot(metrics_jsonl: Path, target_png: Path) -> None:
    """Plot `loss` and `held_out_loss` over `step` from JSON lines; lines may hold either, both or other keys.

    Raises RecordError when there is no loss to plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = loss_curves(metrics_jsonl)
    figure = Figure(figsize=(7, 4), dpi=144, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (key, label), colour in zip(_LOSSES.items(), ("#0b62a4", "#c2410c"), strict=True):
        if points := curves[key]:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=label, color=colour, marker="o" if len(points) < 40 else "")
    axes.set_xlabel("step")
    axes.set_ylabel("loss per target token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    beside = target_png.with_name(f".{target_png.name}.tmp")
    figure.savefig(beside, format="png")
    beside.replace(target_png)


_FIGURE = re.compile(r"[+-]?[0-9]|$")
_LOSSES = {"loss": "training", "held_out_loss": "held out"}


def loss_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Points of `loss` and `held_out_loss` over the step. Raises RecordError where there are none."""
    curves: dict[str, list[tuple[float, float]]] = {key: [] for key in _LOSSES}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a torn last line, left by a crash
        for key, points in curves.items():
            value = row.get(key) if isinstance(row, dict) else None
            if isinstance(value, int | float):
                points.append((float(row.get("step", number)), float(value)))
    if not any(curves.values()):
        raise RecordError(f"{path}: no line has `loss` or `held_out_loss`; expected the metrics of a tuning")
    return curves


def _named(base: Evaluation, active: Evaluation | None, candidate: Evaluation) -> dict[str, Evaluation]:
    runs = {"base": base, "active": active, "candidate": candidate}
    return {name: run for name, run in runs.items() if run is not None}


def _flips(before: Evaluation, after: Evaluation) -> list[tuple[Row, Row]]:
    old = {row.task: row for row in before.rows}
    pairs = [(old[row.task], row) for row in after.rows]
    flipped = [pair for pair in pairs if pair[0].scores.success != pair[1].scores.success]
    return sorted(flipped, key=lambda pair: (pair[1].scores.success, pair[1].group, pair[1].task))


def _why(old: Row, new: Row) -> tuple[str, ...]:
    """What was wrong before a task was won, or is wrong now that it is lost."""
    return (old if new.scores.success else new).scores.reasons


def _tables(decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[Row, Row]]) -> tuple[Table, ...]:
    summaries = {name: run.summary() for name, run in runs.items()}
    figures = []
    for labels, unit in ((METRICS, "share"), (COSTS, "number")):
        for metric, label in labels.items():
            found = [
                (summary.metrics if unit == "share" else summary.costs).get(metric) for summary in summaries.values()
            ]
            if any(found):
                figures.append((label, *(_shown(interval, unit) for interval in found)))
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
            ("task", "group", "now", "asked", "what was wrong"),
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


def _change_row(change: Change, decision: Decision) -> tuple[str, ...]:
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


def _markdown(decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[Row, Row]]) -> str:
    parts = [
        f"# Gate: {_verdict(decision).lower()}",
        *(f"- {_inline(reason)}" for reason in decision.reasons),
    ]
    parts = [parts[0], "\n".join(parts[1:]), "\n".join(f"- {_inline(line)}" for line in _made_by(runs))]
    for table in _tables(decision, runs, flips):
        rows = [[_inline(cell) for cell in row] for row in table.rows]
        parts += [f"## {table.title}", markdown_table(table.headers, rows) if rows else "None."]
    return "\n\n".join(parts) + "\n"


def _page(decision: Decision, runs: Mapping[str, Evaluation], flips: Sequence[tuple[Row, Row]]) -> str:
    escape = html.escape
    tables = "".join(html_table(table) for table in _tables(decision, runs, flips))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
    made_by = "".join(f"<li>{escape(line)}</li>" for line in _made_by(runs))
    verdict = "ship" if decision.ship else "stay"
    return page(
        f"Gate: {_verdict(decision)}",
        f'<h1>Gate: <span class="{verdict}">{_verdict(decision)}</span></h1>\n'
        f"<ul>{reasons}</ul>\n<h2>Success by group, with 95 % intervals</h2>\n{_svg(runs)}\n{tables}"
        f"<h2>What was compared</h2><ul>{made_by}</ul>\n",
    )


def _made_by(runs: Mapping[str, Evaluation]) -> list[str]:
    lines = [f"suite {next(iter(runs.values())).suite[:12]}, {len(next(iter(runs.values())).rows)} tasks"]
    for name, run in runs.items():
        adapter = f"adapter {run.adapter} ({(run.adapter_hash or '')[:12]})" if run.adapter else "no adapter"
        lines.append(f"{name}: {run.base or 'unnamed base'} {run.base_revision[:12]}, {adapter}")
    return lines


_LEFT, _WIDTH, _TRACK = 190, 760, 14


def _svg(runs: Mapping[str, Evaluation]) -> str:
    """One dot with its interval for each group and run, on an axis from 0 to 100 %."""
    summaries = {name: run.summary() for name, run in runs.items()}
    names = ["all tasks", *sorted(next(iter(summaries.values())).groups)]
    block = _TRACK * len(runs) + 12
    height = 34 + block * len(names) + 24
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" font-size="12" '
        'aria-label="Success by group with 95 % intervals; the tables below give the figures">'
    ]
    for i, name in enumerate(runs):
        left = _LEFT + 110 * i
        parts.append(f'<circle cx="{left}" cy="12" r="5" fill="var(--{name})"/>')
        parts.append(f'<text x="{left + 10}" y="16">{name}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _across(share)
        parts.append(f'<line x1="{x}" x2="{x}" y1="28" y2="{height - 22}" stroke="var(--line)"/>')
        parts.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{share:.0%}</text>')
    for row, group in enumerate(names):
        top = 34 + block * row
        middle = top + block / 2
        parts.append(f'<text x="{_LEFT - 12}" y="{middle}" text-anchor="end">{html.escape(short(group, 26))}</text>')
        for i, (name, summary) in enumerate(summaries.items()):
            interval = summary.metrics["success"] if row == 0 else summary.groups[group]
            parts.append(_mark(interval, name, group, top + _TRACK * i + _TRACK / 2))
    return "\n".join([*parts, "</svg>"])


def _mark(interval: Interval, name: str, group: str, y: float) -> str:
    low, mean, high = (_across(value) for value in (interval.low, interval.mean, interval.high))
    said = with_interval(interval.mean, interval.low, interval.high)
    return (
        f"<g><title>{html.escape(group)}, {name}: {said}, {interval.count} tasks</title>"
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="var(--{name})" stroke-width="2"/>'
        f'<circle cx="{mean}" cy="{y}" r="4.5" fill="var(--{name})"/></g>'
    )


def _across(share: float) -> float:
    return round(_LEFT + share * (_WIDTH - _LEFT - 30), 1)


def _shown(interval: Interval | None, unit: str) -> str:
    return "" if interval is None else with_interval(interval.mean, interval.low, interval.high, unit=unit)


def _ends(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _inline(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links or emphasis from a task or a model."""
    return "".join(f"\\{mark}" if mark in "\\`*_[]~#" else mark for mark in html.escape(text, quote=False))
