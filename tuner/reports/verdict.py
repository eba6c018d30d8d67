"""The report of a gate in short: the verdict, its reasons and one table, as Markdown and as JSON.

The report of an adapter's gate, with its pages and tasks, is `tuner.reports.gate_report`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tuner.reports.gate_report import markdown_table


class Verdict(Protocol):
    """A gate's decision."""

    @property
    def ship(self) -> bool: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...


def verdict_files(
    decision: Verdict,
    *,
    candidate: str,
    against: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    data: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return `report/gate.json` and `report/gate.md`, by name.

    Args:
        decision: the verdict with its reasons.
        candidate: name of what was gated.
        against: what it was compared with.
        headers: of the table.
        rows: of the table.
        data: the content of the JSON file.
    """
    verdict = "Ship" if decision.ship else "Do not ship"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    page = f"# {verdict}: {candidate}\n\nAgainst {against}.\n\n{reasons}\n\n{markdown_table(headers, rows)}\n"
    return {
        "report/gate.json": (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode(),
        "report/gate.md": page.encode(),
    }
