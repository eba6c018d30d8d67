"""What the memory benchmark's figures are made of."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.memory import answers_of, metrics_of
from tests.bench.memory_tables import memory


def row(part: str, by: str, corrections: int, accuracy: float) -> dict[str, object]:
    return {
        "part": part,
        "by": by,
        "corrections": corrections,
        "accuracy": accuracy,
        "low": 0.1,
        "high": 0.9,
        "tasks": 5,
    }


ROWS = [
    row("banking77", "memory", 100, 0.5),
    row("banking77", "memory", 500, 0.6),
    row("banking77", "memory", 500, 0.8),
    row("banking77", "both", 500, 0.875),
    row("desk", "memory", 500, 0.25),
]


def test_the_figures_are_means_over_the_seeds_and_none_where_nothing_was_measured(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(json.dumps({"metrics": {"rejection_rate": 0.75, "other": 1}}))
    assert metrics_of(ROWS, answers_of(tmp_path)) == {
        "banking77_500_memory": 0.7,
        "banking77_500_weights": None,
        "banking77_500_memory_and_weights": 0.875,
        "rejection_rate": 0.75,
        "false_rejection_rate": None,
        "citation_precision": None,
        "citation_recall": None,
    }
    assert answers_of(tmp_path / "none") == {}


def test_the_table_has_a_line_for_each_way_and_a_column_for_each_number() -> None:
    told = memory({"rows": ROWS})
    assert "| by | 100 reviewed | 500 reviewed | measured on |" in told
    assert "| memory | 50.0 % (10.0-90.0) | 70.0 % (10.0-90.0), 2 seeds | 5 |" in told
    assert "| both |  | 87.5 % (10.0-90.0) | 5 |" in told
    assert told.index("BANKING77") < told.index("desk")
