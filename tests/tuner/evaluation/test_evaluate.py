"""Evaluation runs every task apart, survives a crash, and is read back as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import LivenessError, RecordError, TuningError
from agent.records.run import Outcome, Provenance, Trajectory
from tests.tuner.suite_parts import answered, evaluation, refused, step, suite_task, trajectory
from tuner.evaluation.evaluate import Evaluation, evaluate
from tuner.evaluation.statistics import bootstrap_mean, wilson
from tuner.evaluation.suite import Suite, SuiteTask

SUITE = Suite(
    tuple(
        suite_task(f"t-{i}", group="even" if i % 2 == 0 else "odd", must=(("done",),), refusal=i == 5) for i in range(6)
    )
)


def test_each_task_has_its_own_fresh_workspace_and_rows_follow_the_suite(tmp_path: Path) -> None:
    seen: list[Path] = []
    lock = threading.Lock()

    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        assert not list(workspace.iterdir())
        (workspace / "note").write_text(task.id)
        with lock:
            seen.append(workspace)
        time.sleep(0.02 if task.id == "t-0" else 0)
        return refused("done") if task.check.refusal else answered("Done.")

    calls: list[tuple[int, int]] = []
    done = evaluate(
        SUITE, run_one, workspaces=tmp_path / "w", concurrency=3, progress=lambda i, n: calls.append((i, n))
    )
    assert [row.task for row in done.rows] == [f"t-{i}" for i in range(6)]
    assert calls == [(i, 6) for i in range(1, 7)]
    assert len(set(seen)) == 6
    assert not list((tmp_path / "w").iterdir())
    assert done.success == 1
    assert (done.suite, done.base, done.base_revision, done.adapter) == (SUITE.hash, "small", "r1", None)
    row = done.rows[0]
    assert (row.prompt_tokens, row.forced_tokens, row.sampled_tokens, row.steps) == (40, 5, 10, 1)
    assert done.summary().costs["tokens"].mean == 55


def test_a_crash_of_one_run_is_a_failed_task_with_its_reason(tmp_path: Path) -> None:
    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        if task.id == "t-1":
            raise RuntimeError("out of luck")
        return answered("Done.")

    done = evaluate(SUITE, run_one, workspaces=tmp_path, keep_workspaces=True)
    assert done.rows[1].outcome is Outcome.CRASHED
    assert done.rows[1].scores.reasons == ("the run crashed: RuntimeError: out of luck",)
    assert [row.scores.success for row in done.rows] == [True, False, True, True, True, False]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_suite_on_which_every_run_crashes_stops_with_the_first_reason(tmp_path: Path) -> None:
    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        raise RuntimeError(f"no model for {task.id}")

    with pytest.raises(TuningError, match=r"every one of the 6 runs crashed.*no model for t-0"):
        evaluate(SUITE, run_one, workspaces=tmp_path, concurrency=2)


def test_two_adapters_in_one_evaluation_stop_it(tmp_path: Path) -> None:
    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        made_by = Provenance(base="small", adapter="a", adapter_hash="h1" if task.id < "t-3" else "h2")
        return trajectory(step("answer", {"text": "Done."}), outcome=Outcome.ANSWERED, provenance=made_by)

    with pytest.raises(LivenessError, match="h2"):
        evaluate(SUITE, run_one, workspaces=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_is_read_back_equal_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "e.json"
    done = evaluation({"a": True, "b": False}, refusals=["b"], adapter="x")
    done.save(path)
    assert Evaluation.load(path) == done
    assert [child.name for child in path.parent.iterdir()] == ["e.json"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(RecordError, match="version 99"):
        Evaluation.load(path)
    path.write_text("[]")
    with pytest.raises(RecordError, match="not an evaluation"):
        Evaluation.load(path)


def test_the_summary_counts_only_the_tasks_that_ask() -> None:
    verdicts = {"a": True, "b": False, "c": True}
    summary = evaluation(verdicts, groups={"a": "x", "b": "x", "c": "y"}, refusals=["c"]).summary()
    assert summary.metrics["success"].count == 3
    assert (summary.metrics["refusal"].count, summary.metrics["not_refused"].count) == (1, 2)
    assert "citations" not in summary.metrics
    assert {name: (group.count, group.mean) for name, group in summary.groups.items()} == {
        "x": (2, 0.5),
        "y": (1, 1.0),
    }


def test_wilson_gives_the_known_interval() -> None:
    interval = wilson(94, 150)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.547, 0.7)
    assert (wilson(0, 10).low, wilson(10, 10).high) == (0, 1)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.5]), min_size=1, max_size=40), st.randoms())
def test_a_bootstrap_interval_holds_the_mean_whatever_the_order(values: list[float], random: Random) -> None:
    interval = bootstrap_mean(values, resamples=400)
    assert interval.low - 0.5 <= interval.mean <= interval.high + 0.5
    assert bootstrap_mean(random.sample(values, len(values)), resamples=400) == interval


def test_evaluating_and_deciding_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, tuner.evaluation.suite, tuner.evaluation.checks, tuner.evaluation.evaluate; "
        "import tuner.evaluation.gate, tuner.reports.gate_report; "
        "sys.exit(bool({'torch', 'transformers', 'jinja2', 'langchain_core'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
