"""Charts as SVG: curves over optimizer steps, and intervals by group. They follow the reader's light or dark mode.

Only positions are computed here; the drawing is in `templates/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import RecordError
from agent.util.atomic_files import write_whole
from tuner.evaluation.statistics import Interval
from tuner.reports.html import render, short

_LOSSES = {"loss": "training", "held_out_loss": "held out"}
_BOTTOM = 22


@dataclass(frozen=True)
class Tick:
    """A grid line, or a label, at a coordinate."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve in coordinates of the chart."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class LineChart:
    """Curves over optimizer steps, on axes from 0."""

    label: str
    lines: Sequence[Line]
    ticks: Sequence[Tick]
    last_step: str
    width: int = 720
    height: int = 260
    left: int = 44
    right: int = 712


@dataclass(frozen=True)
class Mark:
    """A mean with its interval."""

    run: str
    title: str
    y: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class IntervalChart:
    """A mark for each group and run, on an axis from 0 to 100 %."""

    runs: Sequence[str]
    groups: Sequence[Tick]
    marks: Sequence[Mark]
    ticks: Sequence[Tick]
    height: int
    width: int = 760
    left: int = 190


def line_chart(curves: Mapping[str, Sequence[tuple[float, float]]]) -> LineChart:
    """Lay out curves.

    Args:
        curves: Points (step, value) by name; those of `loss_curves` get their usual names and colours.
    """
    chart = LineChart("Curves over optimizer steps; the tables give the figures", (), (), "")
    filled = {name: points for name, points in curves.items() if points}
    last = max((step for points in filled.values() for step, _ in points), default=0) or 1
    top = max((value for points in filled.values() for _, value in points), default=0) or 1

    def along(step: float) -> float:
        return round(chart.left + step / last * (chart.right - chart.left), 1)

    def up(share: float) -> float:
        return round(chart.height - _BOTTOM - share * (chart.height - 2 * _BOTTOM), 1)

    lines = [
        Line(
            _LOSSES.get(name, name),
            "active" if name == "loss" else "candidate",
            [(along(step), up(value / top)) for step, value in points],
        )
        for name, points in filled.items()
    ]
    ticks = [Tick(up(share), f"{share * top:.2f}") for share in (0, 0.5, 1)]
    return LineChart(chart.label, lines, ticks, f"step {last:.0f}")


def interval_chart(groups: Mapping[str, Mapping[str, tuple[Interval, str]]]) -> IntervalChart:
    """Lay out intervals.

    Args:
        groups: By group and run, the interval and its text.
    """
    runs = list(next(iter(groups.values())))
    track, top = 14, 34
    block = track * len(runs) + 12
    chart = IntervalChart(runs, (), (), (), height=top + block * len(groups) + 24)

    def across(share: float) -> float:
        return round(chart.left + share * (chart.width - chart.left - 30), 1)

    labels, marks = [], []
    for row, (group, intervals) in enumerate(groups.items()):
        labels.append(Tick(top + block * row + block / 2, short(group, 26)))
        for place, (run, (interval, text)) in enumerate(intervals.items()):
            y = top + block * row + track * place + track / 2
            title = f"{group}, {run}: {text}, {interval.count} tasks"
            marks.append(Mark(run, title, y, *map(across, (interval.low, interval.mean, interval.high))))
    ticks = [Tick(across(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return IntervalChart(runs, labels, marks, ticks, chart.height)


def save_loss_plot(metrics: Path, target: Path) -> None:
    """Write the curves of a metrics log as an SVG file. Raises RecordError when there is no loss in it."""
    write_whole(target, render("lines.svg", chart=line_chart(loss_curves(metrics)), is_file=True))


def loss_curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the points (step, value) of `loss` and `held_out_loss` from a metrics log.

    Raises:
        RecordError: There are none.
    """
    curves: dict[str, list[tuple[float, float]]] = {key: [] for key in _LOSSES}
    for number, line in enumerate(metrics.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # A torn last line, left by a crash.
        for key, points in curves.items():
            value = row.get(key) if isinstance(row, dict) else None
            if isinstance(value, int | float):
                points.append((float(row.get("step", number)), float(value)))
    if not any(curves.values()):
        raise RecordError(f"{metrics}: no line has `loss` or `held_out_loss`; expected the metrics of a tuning")
    return curves
