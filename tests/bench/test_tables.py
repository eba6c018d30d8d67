"""Results are written without a trace of the machine's folders, and tables are made from them."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from tests.bench.inference import joined as inference_joined
from tests.bench.inference import metrics_of, task_ratio
from tests.bench.results import ROOT, commit, write_result
from tests.bench.retrieval_tables import retrieval
from tests.bench.tables import main
from tests.bench.tuning import joined
from tests.tuner.suite_parts import evaluation
from tuner.reports.gate_report import comparison_rows


def test_a_result_says_where_when_and_how_and_names_no_folder_or_host(tmp_path: Path) -> None:
    path = write_result("desk", f"make bench-desk {ROOT}/x", {"a": 0.5, "b": None}, [{"n": 1}], folder=tmp_path)
    data = json.loads(path.read_text())
    assert list(data) == ["commit", "date", "machine", "command", "metrics", "rows"]
    assert data["metrics"] == {"a": 0.5, "b": None}
    assert data["command"] == "make bench-desk ./x"
    assert set(data["machine"]) == {"cores", "memory_gib", "cpu", "torch", "python"}
    assert str(Path.home()) not in path.read_text()
    assert platform.node() not in path.read_text()


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metric a is nan"):
        write_result("desk", "x", {"a": float("nan")}, [], folder=tmp_path)
    with pytest.raises(ValueError, match="result name"):
        write_result("../desk", "x", {}, [], folder=tmp_path)


def test_a_commit_is_dirty_when_files_other_than_results_changed(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        who += ["-c", f"core.hooksPath={tmp_path / 'no-hooks'}"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "x.json").write_text("{}")
    assert commit(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_tables_are_made_again_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "docs" / "results"
    rows = comparison_rows(evaluation({"a": False, "b": False}), evaluation({"a": True, "b": False}))
    write_result("desk", "make bench-desk", {}, rows, folder=results)
    accuracies = [
        {"corrections": n, "seed": seed, "tasks": 500, "accuracy": a, "low": a - 0.04, "high": a + 0.04}
        for n, seed, a in [(500, 0, 0.7), (0, 0, 0.18), (500, 1, 0.72)]
    ]
    write_result("banking77", "python examples/routing.py", {}, accuracies, folder=results)
    write_result("other", "make bench", {"speed": 12.5, "none": None}, [], folder=results)
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "page.md"
    readme.write_text("A\n<!-- table:desk -->\nold\n<!-- /table -->\nB\n")
    page.write_text("<!-- table:banking77 --><!-- /table -->\nbetween\n<!-- table:other -->\n<!-- /table -->\nend\n")
    where = ["--root", str(tmp_path)]
    assert main(["--check", *where]) == 1
    assert "README.md: tables are out of date" in capsys.readouterr().err
    assert main(where) == 0
    assert main(["--check", *where]) == 0
    text = readme.read_text()
    assert text.startswith("A\n<!-- table:desk -->\n|")
    assert text.endswith("<!-- /table -->\nB\n")
    assert "| Task success | 2 | 0.0 % (0.0-65.8) | 50.0 % (9.5-90.5) |" in text
    assert "`make bench-desk` at " in text
    assert "| 500 | 71.0 % (66.0-76.0) | 70.0, 72.0 | 500 |" in page.read_text()
    assert "| speed | 12.5 |" in page.read_text()
    assert "| none | not measured |" in page.read_text()
    assert "\nbetween\n" in page.read_text()


def test_the_table_of_tuning_tells_of_noise_where_it_was_measured(tmp_path: Path) -> None:
    side = {"part": "trl", "set": "desk", "seconds_per_epoch": 10.0, "peak_bytes": 2**31, "loss": 0.5}
    sides = [{**side, "side": name, "targets_per_second": speed} for name, speed in (("ours", 30.0), ("theirs", 10.0))]
    noise = [
        {
            "part": "noise",
            "adversarial": kind,
            "accuracy": {"clean": 0.5, "typos": typos},
            "tested": {"clean": 2, "typos": 4},
            "examples": 216,
            "seconds": 60.0 * ratio,
            "cost_ratio": ratio,
        }
        for kind, typos, ratio in (("none", 0.25, 1.0), ("fgm", 0.75, 2.04))
    ]
    page = tmp_path / "README.md"
    for rows, shown, hidden in ((sides, "30.0", "fgm"), (noise, "fgm", "TRL"), (sides + noise, "fgm", "no such")):
        write_result("tuning", "make bench-tuning", {}, rows, folder=tmp_path / "docs" / "results")
        page.write_text("<!-- table:tuning --><!-- /table -->\n")
        assert main(["--root", str(tmp_path)]) == 0
        assert shown in page.read_text()
        assert hidden not in page.read_text()
    text = page.read_text()
    assert "| desk | 30.0 | 10.0 | 3.0 |" in text
    assert "trainings on 216 clean messages" in text
    assert "| adversarial | clean, 2 messages | typos, 4 messages | seconds | ratio |" in text
    assert "| fgm | 50.0 % (9.5-90.5) | 75.0 % (30.1-95.4) | 122 | 2.0 |" in text


def test_a_missing_result_or_marker_is_named_and_the_text_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    for text, message in (
        ("<!-- table:desk -->\nold\n<!-- /table -->\n", "docs/results/desk.json is missing"),
        ("<!-- table:desk -->\nold\n", "1 table markers are opened and 0 closed"),
    ):
        readme.write_text(text)
        assert main(["--root", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
        assert readme.read_text() == text


def test_a_set_that_is_measured_again_leaves_the_others() -> None:
    desk, rows, growth = (
        {"part": "trl", "set": "desk"},
        {"part": "trl", "set": "rows"},
        {"part": "growth", "set": "desk"},
    )
    again = {**desk, "loss": 0.5}
    assert joined([desk, rows, growth], [again]) == [rows, growth, again]
    assert joined([desk, growth], [{"part": "growth", "rows": 1}]) == [desk, {"part": "growth", "rows": 1}]


def test_the_table_of_tuning_tells_how_time_grows_and_what_is_forgotten(tmp_path: Path) -> None:
    results = tmp_path / "docs" / "results"
    rows = [
        {"part": "growth", "rows": 100, "steps": None, "unique_tokens": 2500, "seconds": 5.0},
        {"part": "growth", "rows": 32, "steps": 4, "unique_tokens": 9000, "seconds": 20.0},
        {"part": "retention", "replay": 0.5, "round": 1, "taught": "desk", "tested": "desk", "accuracy": 0.7},
        {"part": "retention", "replay": 0.5, "round": 2, "taught": "intent", "tested": "desk", "accuracy": 0.69},
        {"part": "retention", "replay": 0.5, "round": 2, "taught": "intent", "tested": "intent", "accuracy": 0.9},
    ]
    write_result("tuning", "make bench-tuning", {}, rows, folder=results)
    page = tmp_path / "README.md"
    page.write_text("<!-- table:tuning -->\n<!-- /table -->\n")
    assert main(["--root", str(tmp_path)]) == 0
    text = page.read_text()
    for line in (
        "| 100 corrections | 2,500 | 5.0 | 500 |",
        "| 32 runs of 4 steps | 9,000 | 20.0 | 450 |",
        "| 50 % | desk | 70 % |  |",
        "| 50 % | intent | 69 % | 90 % |",
    ):
        assert line in text


def test_parts_that_were_measured_apart_are_told_apart(tmp_path: Path) -> None:
    grown = {"part": "growth", "rows": 100, "steps": None, "unique_tokens": 2500, "seconds": 5.0, "commit": "a" * 40}
    kept = {"part": "retention", "replay": 0.5, "round": 1, "taught": "desk", "tested": "desk", "accuracy": 0.7}
    page = tmp_path / "README.md"
    for elsewhere, told in (
        (
            {"commit": "b" * 40 + "-dirty"},
            f"in parts: growth at {'a' * 12} (one); retention at {'b' * 12}-dirty (one);",
        ),
        ({"commit": "a" * 40, "cpu": "two"}, f"in parts: growth at {'a' * 12} (one); retention at {'a' * 12} (two);"),
        ({"commit": "a" * 40}, "`make bench-tuning` at "),
    ):
        rows = [{"cpu": "one", **row} for row in (grown, {**kept, **elsewhere})]
        write_result("tuning", "make bench-tuning", {}, rows, folder=tmp_path / "docs" / "results")
        page.write_text("<!-- table:tuning --><!-- /table -->\n")
        assert main(["--root", str(tmp_path)]) == 0
        assert told in page.read_text()


def test_the_table_of_inference_compares_contestants_on_the_tasks_that_both_did(tmp_path: Path) -> None:
    step = {"seconds": 0.5, "prompt": 100, "read": 20, "written": 40, "sampled": 10, "guessed": 5, "parsed": True}
    ours = [{"task": name, "seconds": 1.0, "solved": True, "steps": [step, step]} for name in ("a", "b")]
    theirs = [{"task": "a", "seconds": 4.0, "solved": False, "steps": [{**step, "parsed": False}]}]
    rows = [
        {"part": "tickets", "side": "ratchet", "peak_bytes": 2**30, "tasks": ours},
        {"part": "tickets", "side": "langgraph", "peak_bytes": 2**31, "tasks": theirs},
        {
            "part": "growth",
            "step32_over_step2": 1.5,
            "seconds": [0.5] * 31 + [0.75],
            "prompt": [100] * 32,
            "read": [10] * 32,
        },
    ]
    assert task_ratio(rows[1], rows[0]) == 4.0
    assert task_ratio(None, rows[0]) is None
    metrics = metrics_of(rows)
    assert metrics["task_ratio_vs_langgraph"] == 4.0
    assert metrics["batch8_ratio"] is None
    write_result(
        "inference", "make bench-inference", {**metrics, "batch8_ratio": 3.25}, rows, folder=tmp_path / "docs/results"
    )
    page = tmp_path / "README.md"
    page.write_text("<!-- table:inference --><!-- /table -->\n")
    assert main(["--root", str(tmp_path)]) == 0
    text = page.read_text()
    for line in (
        "| ratchet | 2 | 1.00 (1.00) | 1.0 | 0.50 (0.50) | 2.0 | 20 | 40 | 10 | 5 | 100 % | 2 | 1.0 |",
        "| langgraph | 1 | 4.00 (4.00) | 4.0 | 0.50 (0.50) | 1.0 | 20 | 40 | 10 | 5 | 0 % | 0 | 2.0 |",
        "| 32 | 100 | 10 | 0.750 |",
        "| tickets a minute of eight sessions at once, over those of one | 3.25 |",
    ):
        assert line in text


def test_a_contestant_that_is_measured_again_leaves_the_others() -> None:
    ours, theirs, grown = ({"part": "long", "side": "ratchet"}, {"part": "long", "side": "vllm"}, {"part": "growth"})
    again = {**ours, "tasks": []}
    assert inference_joined([ours, theirs, grown], [again]) == [theirs, grown, again]


def test_the_search_is_told_by_set_and_size_and_what_tuning_gains() -> None:
    quality = {"part": "quality", "set": "faq", "questions": 4, "ndcg_mean": 0.9, "recall10_mean": 1.0}
    timed = {"recall5_mean": 0.75, "p50_ms": 12.0, "p95_ms": 30.0, "ingest_docs_per_s": 40.0}
    gain = {"better_alone": "chroma", "gain": 2.0, "low": -1.0, "high": 5.0}
    grown = {"part": "growth_10k", "chunks": 10_000, "p50_ms": 9.0, "p95_ms": 20.0, "open_seconds": 0.5}
    disk = {"rebuild_seconds": 7.0, "store_seconds": 2.0, "disk_bytes_per_chunk": 2500.0, "memory_bytes": 20_000_000}
    figures = {"before": 50.0, "after": 60.0, "gain": 10.0, "interval": [5.0, 15.0]}
    tuned = {"part": "encoder", "set": "faq", "trained_on": 8, "measured": 9, "dense": figures, "whole": figures}
    rows = [
        {**quality, **timed, **gain, "side": "ratchet"},
        {**quality, **timed, **gain, "side": "chroma", "ndcg_mean": 0.88},
        {**grown, **disk},
        tuned,
        {"part": "kills", "rounds": 50, "survived": 50, "changes": 1200, "lost": None},
    ]
    text = retrieval({"rows": rows})
    for line in (
        "| faq | 0.900 / 1.000 | 0.880 / 1.000 |",
        "| faq | 4 | vectors alone (Chroma) | +2.0 (-1.0 to +5.0) | 0.750 | 12 / 30 | 40 |",
        "| 10,000 | 9 / 20 | 0.5 | 7 | 5,000 | 2,500 | 2,000 |",
        "| faq | 8 / 9 | 50.0 → 60.0, +10.0 (+5.0 to +15.0) | 50.0 → 60.0, +10.0 (+5.0 to +15.0) |",
        "50 of 50 rounds survived, 1,200 changes",
    ):
        assert line in text
