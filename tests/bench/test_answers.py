"""What the bench of answers counts, on runs and tickets that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.encoders.encoder import HashEncoder
from agent.knowledge.knowledge import Knowledge
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from tests.bench.answers import ROOT, Without, chosen, figures, metrics
from tests.bench.tables import render
from tools.context import Passage
from tuner.evaluation.suite import Check, SuiteTask, load_suite

TICKET = SuiteTask("t-1", "policy", Task("t-1", "?"), Check(cites=("a.md",)))


def done(cited: Sequence[int], outcome: Outcome = Outcome.ANSWERED) -> Trajectory:
    shown = tuple(Passage(label, name, name, "", name) for label, name in enumerate(("a.md", "b.md"), 1))
    steps = (
        Step(ToolCall("search_knowledge", {"query": "?"}), "found", passages=shown),
        Step(ToolCall("answer", {"text": "So.", "citations": list(cited)})),
    )
    return Trajectory("run", TICKET.task, Provenance(), "now", steps, outcome)


def test_citations_are_counted_by_document_and_a_refused_ticket_cites_nothing() -> None:
    runs = [done([1]), done([1, 2]), done([2]), done([1], Outcome.REFUSED)]
    assert figures([(TICKET, one) for one in runs]) == {
        "false_rejection_rate": 0.25,
        "citation_precision": 0.5,
        "citation_recall": 0.5,
    }
    assert figures([])["citation_precision"] is None


def test_held_out_tickets_are_told_apart_and_what_is_withheld_is_to_be_handed_over() -> None:
    suite = load_suite(ROOT / "examples" / "desk" / "tickets" / "held_out.jsonl")
    found = chosen(suite)
    assert (len(found.answerable), len(found.unanswerable), len(found.withheld)) == (40, 10, 30)
    assert all(one.check.refusal and one.id.startswith("held_out-") for one in (*found.unanswerable, *found.withheld))
    assert all(one.check.cites and not one.check.refusal for one in found.answerable)
    cites = {f"{one.id}-withheld": one.check.cites for one in found.answerable}
    assert found.kept_out == {one.id: cites[one.id] for one in found.withheld}
    assert len(chosen(suite, 5).answerable) == 5


def test_what_is_kept_out_is_not_found_and_what_follows_moves_up(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.md").write_text(f"# Kayaks {name}\n\nA kayak is number {name}.\n")
    memory = Knowledge.open(tmp_path / "m.db", tmp_path / "index", HashEncoder())
    try:
        memory.add_folder(tmp_path)
        first, second, third = (one.document for one in memory.search("a kayak", 3))
        assert [one.document for one in Without(memory, [first]).search("a kayak", 2)] == [second, third]
    finally:
        memory.close()


def test_the_metrics_are_those_before_and_after_the_tuning(tmp_path: Path) -> None:
    before = {"side": "before", "rejection_rate": 0.0, "citation_precision": None}
    rows = [before, {"side": "contexts_0", "contexts": 0, "rejection_rate": 0.7, "citation_precision": 0.9}]
    made = metrics([*rows, {"side": "contexts_2", "contexts": 99, "rejection_rate": 0.8}])
    assert (made["rejection_rate"], made["rejection_rate_before"]) == (0.7, 0.0)
    assert (made["citation_precision"], made["citation_precision_before"]) == (0.9, None)
    assert made["citation_recall"] is None
    assert set(metrics([])) == set(made)


def test_the_table_has_a_column_for_each_side(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(
        """{"commit": "c", "date": "2026-01-01", "command": "x", "metrics": {},
        "machine": {"cores": 1, "memory_gib": 1, "cpu": "c", "torch": "t", "python": "3"},
        "rows": [{"side": "before", "answerable": 4, "solved_share": 0.0, "citation_precision": null},
                 {"side": "contexts_2", "contexts": 2, "solved_share": 0.5, "rgb_en_model_rejection_rate": 0.25}]}"""
    )
    text, faults = render("<!-- table:answers -->\n<!-- /table -->", tmp_path)
    assert faults == []
    assert "|  | before | tuned, `contexts = 2` |" in text
    assert "| solved_share | 0.00 | 0.50 |" in text
    assert "| citation_precision | - | - |" in text
    assert "| rgb_en_model_rejection_rate | - | 0.25 |" in text
    assert "answerable" not in text
