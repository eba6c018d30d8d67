"""The tables of `docs/results/retrieval.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.reports.gate_report import markdown_table

Row = Mapping[str, Any]

_SIDES = {
    "ratchet": "ratchet",
    "chroma": "vectors alone (Chroma)",
    "bm25s": "words alone (bm25s)",
    "words": "words alone (ours)",
    "ensemble": "LangChain's ensemble",
}


def retrieval(data: Mapping[str, Any]) -> str:
    """Quality by set and side, then growth, then what tuning the encoder gains, then what was survived."""
    parts: dict[str, list[Row]] = {}
    for row in data["rows"]:
        parts.setdefault(row["part"], []).append(row)
    tables = []
    if "quality" in parts:
        tables += [_quality(parts["quality"]), _gains(parts["quality"])]
    sizes = [row for part, rows in parts.items() if part.startswith("growth_") for row in rows]
    if sizes:
        tables.append(_growth(sizes))
    if "encoder" in parts:
        tables.append(_tuned(parts["encoder"]))
    for row in parts.get("kills", ()):
        lost = "" if row["lost"] is None else f"; then: {row['lost']}"
        tables.append(
            f"Two writers killed in the middle of their work: {row['survived']} of {row['rounds']} rounds survived, "
            f"{row['changes']:,} changes of all documents made meanwhile{lost}."
        )
    return "\n\n".join(tables)


def _quality(rows: Sequence[Row]) -> str:
    sets = list(dict.fromkeys(row["set"] for row in rows))
    found = {(row["set"], row["side"]): row for row in rows}
    table = []
    for name in sets:
        cells = [found.get((name, side)) for side in _SIDES]
        table.append(
            [name, *("" if one is None else f"{one['ndcg_mean']:.3f} / {one['recall10_mean']:.3f}" for one in cells)]
        )
    return f"nDCG@10 / recall@10:\n\n{markdown_table(['set', *_SIDES.values()], table)}"


def _gains(rows: Sequence[Row]) -> str:
    table = [
        [
            row["set"],
            row["questions"],
            _SIDES[row["better_alone"]],
            f"{row['gain']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
            f"{row['recall5_mean']:.3f}",
            f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f}",
            f"{row['ingest_docs_per_s']:.0f}",
        ]
        for row in rows
        if row["side"] == "ratchet"
    ]
    head = ["set", "questions", "the better one alone", "gain in points of nDCG@10 (95 % interval)", "recall@5"]
    return markdown_table([*head, "ms a search, median / p95", "documents added a second"], table)


def _growth(rows: Sequence[Row]) -> str:
    table = [
        [
            f"{row['chunks']:,}",
            f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f}",
            f"{row['open_seconds']:.1f}",
            f"{row['rebuild_seconds']:.0f}",
            f"{row['chunks'] / row['store_seconds']:,.0f}",
            f"{row['disk_bytes_per_chunk']:,.0f}",
            f"{row['memory_bytes'] / row['chunks']:,.0f}",
        ]
        for row in sorted(rows, key=lambda row: row["chunks"])
    ]
    head = ["passages", "ms a search, median / p95", "s to open", "s to make the index anew", "stored a second"]
    return markdown_table([*head, "bytes a passage on disk", "in memory"], table)


def _tuned(rows: Sequence[Row]) -> str:
    def told(found: Mapping[str, Any]) -> str:
        low, high = found["interval"]
        return f"{found['before']:.1f} → {found['after']:.1f}, {found['gain']:+.1f} ({low:+.1f} to {high:+.1f})"

    table = [
        [row["set"], f"{row['trained_on']} / {row['measured']}", *(told(row[name]) for name in ("dense", "whole"))]
        for row in rows
    ]
    head = ["set", "questions trained on / measured", "vectors alone", "whole search"]
    return (
        f"The encoder tuned on one half of the questions, nDCG@10 of the other half:\n\n{markdown_table(head, table)}"
    )
