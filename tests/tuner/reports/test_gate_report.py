"""Reports show the figures and never the markup of what a model said."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from agent.errors import RecordError
from tests.tuner.suite_parts import evaluation
from tuner.evaluation.gate import decide
from tuner.reports.gate_report import comparison_rows, comparison_table, markdown_table, write_gate_report
from tuner.reports.plots import save_loss_plot

GROUPS = {f"t-{i}": "<i>late & lost</i>" if i % 2 else "orders" for i in range(60)}
BASE = evaluation({f"t-{i}": i == 0 for i in range(60)}, groups=GROUPS, refusals=["t-7"])
BETTER = evaluation({f"t-{i}": i != 0 for i in range(60)}, groups=GROUPS, refusals=["t-7"], adapter="a1")


class Balance(HTMLParser):
    """Collects the tags, and fails on one that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_written_three_ways_and_nothing_in_it_is_markup_of_a_task(tmp_path: Path) -> None:
    decision = decide(BASE, None, BETTER)
    folder = write_gate_report(tmp_path, decision, BASE, None, BETTER)
    assert sorted(path.name for path in folder.iterdir()) == ["gate.html", "gate.json", "gate.md"]
    data = json.loads((folder / "gate.json").read_text())
    assert data["decision"]["ship"] is decision.ship
    assert len(data["flips"]) == 60
    assert data["flips"][0]["task"] == "t-0"
    page = (folder / "gate.html").read_text()
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    assert not balance.seen & {"script", "i", "b", "img", "link"}
    assert "&lt;b&gt;refund&lt;/b&gt;" in page
    assert "http" not in page
    text = (folder / "gate.md").read_text()
    assert "<b>" not in text
    assert "refund&lt;/b&gt; \\| was never called" in text


def test_an_active_adapter_has_its_own_column(tmp_path: Path) -> None:
    active = evaluation({f"t-{i}": i < 30 for i in range(60)}, groups=GROUPS, refusals=["t-7"], adapter="a0")
    folder = write_gate_report(tmp_path, decide(BASE, active, BETTER), BASE, active, BETTER)
    assert "|  | base | active | candidate |" in (folder / "gate.md").read_text()
    assert 'fill="var(--active)"' in (folder / "gate.html").read_text()


def test_a_comparison_shows_every_metric_before_and_after() -> None:
    rows = comparison_rows(BASE, BETTER)
    assert {row["metric"] for row in rows} >= {"success", "tool", "refusal", "tokens", "seconds"}
    assert json.loads(json.dumps(rows)) == rows
    table = comparison_table(rows)
    assert "| Task success | 60 | 1.7 % (0.3-8.9) | 98.3 % (91.1-99.7) |" in table
    assert "| Tokens per task | 60 | 60.0 (60.0-60.0) | 60.0 (60.0-60.0) |" in table


def test_a_markdown_table_escapes_its_cells_and_refuses_a_short_row() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1\n2"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"
    with pytest.raises(ValueError, match="1 cells"):
        markdown_table(["a", "b"], [["x"]])


def test_a_loss_plot_is_a_drawing_of_both_losses_and_needs_one(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "loss": 2 / (i + 1)} for i in range(5)] + [{"step": 4, "held_out_loss": 0.7}]
    metrics.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 5, "lo')
    save_loss_plot(metrics, tmp_path / "loss.svg")
    drawing = ElementTree.parse(tmp_path / "loss.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing.findall("{*}polyline")) == 2
    assert {"training", "held out", "step 4"} <= {element.text for element in drawing.findall("{*}text")}
    metrics.write_text("{}\n")
    with pytest.raises(RecordError, match="no line has"):
        save_loss_plot(metrics, tmp_path / "loss.svg")
