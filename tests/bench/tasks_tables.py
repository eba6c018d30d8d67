"""The tables of `docs/results/tasks.json`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.reports.gate_report import markdown_table, with_interval

Row = Mapping[str, Any]

_NAMES = {
    "logistic_vectors": "logistic regression on the encoder's vectors",
    "logistic_words": "logistic regression on TF-IDF",
    "setfit": "SetFit",
    "trainer": "transformers' Trainer",
    "misaligned": "the same, labels laid out word by word",
    "lead": "the first sentences",
    "nearest": "the answer to the nearest question",
    "shots_0": "language model, untrained",
    "shots_8": "language model, shown 8 examples",
    "tenth": "`lora`, a tenth of the examples",
    "names": "encoder, told the labels' names alone",
    "transfer": "`lora`, a tenth, from a neighbouring task",
    "transfer+replay": "`lora`, a tenth, from a neighbouring task with replay",
}
_NOISE = {"typos": "mistyped", "keys": "neighbouring keys"}
_FIGURES = {
    "accuracy": "accuracy",
    "entity_f1": "entity F1",
    "macro_f1": "macro F1",
    "f1": "F1",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}


def tasks(data: Mapping[str, Any]) -> str:
    """A table for each part: a line for each method, over its seeds."""
    parts = dict.fromkeys(row["part"] for row in data["rows"])
    return "\n\n".join(_part(name, [row for row in data["rows"] if row["part"] == name]) for name in parts)


def _part(name: str, rows: Sequence[Row]) -> str:
    first = rows[0]
    noise = [kind for kind in _NOISE if any(kind in row["noisy"] for row in rows)]
    table = [
        _line([row for row in rows if row["method"] == method], noise)
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    figure = _FIGURES.get(first["main"], first["main"])
    learnt = " or ".join(f"{count:,}" for count in sorted({row["train"] for row in rows}))
    tested = " or ".join(f"{count:,}" for count in sorted({row["test"] for row in rows}))
    head = ["method", f"{figure} (95 % interval)", "seeds", *(_NOISE[kind] for kind in noise)]
    told = f"{name}, {figure} of {tested} examples, learnt from {learnt}:"
    return f"{told}\n\n{markdown_table([*head, 's to train', 'peak GiB', 'trained', 'checkpoint MB'], table)}"


def _line(rows: Sequence[Row], noise: Sequence[str]) -> list[Any]:
    figures = [row["figures"][row["main"]] for row in rows]
    mean, low, high = (statistics.fmean(column) for column in zip(*figures, strict=True))
    return [
        _NAMES.get(rows[0]["method"], f"`{rows[0]['method']}`") + (" (chosen)" if rows[0].get("default") else ""),
        with_interval(mean, low, high),
        len(rows),
        *(_noisy(rows, kind) for kind in noise),
        f"{statistics.fmean(row['seconds'] for row in rows):.0f}",
        f"{max(row['peak_gib'] for row in rows):.1f}",
        f"{rows[0]['parameters']:,}",
        f"{rows[0]['checkpoint_bytes'] / 1e6:.1f}",
    ]


def _noisy(rows: Sequence[Row], kind: str) -> str:
    found = [row["noisy"][kind][0] for row in rows if kind in row["noisy"]]
    return f"{100 * statistics.fmean(found):.1f} %" if found else ""
