"""The tables of `docs/results/memory.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.reports.gate_report import markdown_table, with_interval

Row = Mapping[str, Any]

_PARTS = {"banking77": "Messages of BANKING77 routed:", "desk": "Held-out tickets of the desk solved:"}


def memory(data: Mapping[str, Any]) -> str:
    """Messages routed and tickets solved, by what counts and by how many corrections."""
    tables = []
    for part, told in _PARTS.items():
        rows = [row for row in data["rows"] if row["part"] == part]
        if rows:
            tables.append(f"{told}\n\n{_ways(rows)}")
    return "\n\n".join(tables)


def _ways(rows: Sequence[Row]) -> str:
    counts = sorted({row["corrections"] for row in rows})
    ways = list(dict.fromkeys(row["by"] for row in rows))
    table = []
    for way in ways:
        cells = []
        for count in counts:
            found = [row for row in rows if (row["by"], row["corrections"]) == (way, count)]
            cells.append(_cell(found) if found else "")
        table.append([way, *cells, rows[0]["tasks"]])
    head = [f"{count} reviewed" if count else "nothing" for count in counts]
    return markdown_table(["by", *head, "measured on"], table)


def _cell(found: Sequence[Row]) -> str:
    """The mean of the seeds, with the widest of their intervals."""
    mean = sum(row["accuracy"] for row in found) / len(found)
    shown = with_interval(mean, min(row["low"] for row in found), max(row["high"] for row in found))
    return f"{shown}, {len(found)} seeds" if len(found) > 1 else shown
