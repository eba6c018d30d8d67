"""The store: nothing acknowledged is lost, feedback is only appended, every field comes back."""

from __future__ import annotations

import itertools
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import FeedbackError, StoreError
from agent.records.feedback import Correction, Rating
from agent.records.run import Branch, Outcome, Provenance, Step, Task, ToolCall, Trajectory, Usage
from agent.storage.database import open_engine
from agent.storage.store import Store
from tools.context import Passage

NOW = "2026-01-01T00:00:00Z"
LOOK = Step(ToolCall("look", {"id": 1}), "found", usage=Usage(prompt=10, sampled=5), model_seconds=1.5)

texts = st.text(st.characters(), max_size=12)
counts = st.integers(0, 2**31)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
calls = st.builds(ToolCall, texts, st.dictionaries(texts, values, max_size=3))
words = st.lists(texts, max_size=2).map(tuple)
steps = st.builds(
    Step,
    call=st.none() | calls,
    observation=texts,
    thought=texts,
    plan=words,
    error=st.none() | texts,
    notice=st.none() | texts,
    said=texts,
    token_ids=st.lists(counts, max_size=4).map(tuple),
    passages=st.lists(st.builds(Passage, counts, texts, texts, texts, texts, st.floats(-1, 1)), max_size=2).map(tuple),
    usage=st.builds(Usage, counts, counts, counts, counts),
    model_seconds=st.floats(0, 1e6),
    tool_seconds=st.floats(0, 1e6),
    author=st.sampled_from(["model", "correction"]),
)
trajectories = st.builds(
    Trajectory,
    id=st.just(""),
    task=st.builds(Task, texts, texts, st.dictionaries(texts, texts, max_size=3)),
    provenance=st.builds(
        Provenance,
        base=texts,
        base_revision=texts,
        adapter=st.none() | texts,
        adapter_hash=st.none() | texts,
        prompt_version=texts,
        tools=st.dictionaries(texts, texts, max_size=2),
        seed=counts,
        temperature=st.floats(0, 5),
    ),
    started_at=st.just(NOW),
    steps=st.lists(steps, max_size=3).map(tuple),
    outcome=st.none() | st.sampled_from(Outcome),
    error=st.none() | texts,
    ended_at=st.none() | st.just(NOW),
    branch=st.none() | st.builds(Branch, texts, counts),
)

verdicts = st.sampled_from(["up", "down"])
ratings = st.builds(Rating, st.just(""), st.just(""), verdicts, texts, texts, texts)
corrections = st.builds(Correction, st.just(""), st.just(""), st.just(0), calls, texts, words, texts, texts, texts)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home" / "ratchet.db") as opened:
        yield opened


def started(id: str, *done: Step) -> Trajectory:
    return Trajectory(id, Task("t", f"task of {id}"), Provenance(base="b", adapter="a1"), NOW, done)


def corrected(id: str, run: str, step: int, reason: str = "wrong id") -> Correction:
    return Correction(id, run, step, ToolCall("look", {"id": 2}), "think", ("plan",), "ann", reason, NOW)


def test_runs_of_the_version_before_are_read(store: Store) -> None:
    store.begin(started("a", LOOK))
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET version = 1"))
        connection.execute(sa.text("UPDATE steps SET step = json_remove(step, '$.grounding')"))
    assert store.get("a") == started("a", LOOK)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trajectory=trajectories, more=st.lists(steps, max_size=2))
def test_every_field_of_a_run_comes_back(store: Store, trajectory: Trajectory, more: list[Step]) -> None:
    trajectory = replace(trajectory, id=f"run{len(store.runs(None))}")
    store.begin(trajectory)
    if trajectory.outcome is None:
        for step in more:
            store.intend(trajectory.id, len(trajectory.steps), step)
            assert store.open_intent(trajectory.id) == step
            store.add_step(trajectory.id, len(trajectory.steps), step)
            trajectory = trajectory.with_step(step)
        store.end(trajectory.id, Outcome.CRASHED, NOW, "boom \ud800")
        trajectory = replace(trajectory, outcome=Outcome.CRASHED, ended_at=NOW, error="boom \ud800")
    assert store.get(trajectory.id) == trajectory


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rating=ratings, correction=corrections)
def test_every_field_of_feedback_comes_back(store: Store, rating: Rating, correction: Correction) -> None:
    run = f"run{len(store.runs(None))}"
    store.begin(started(run, LOOK))
    rating, correction = replace(rating, id=f"r{run}", run=run), replace(correction, id=f"c{run}", run=run)
    store.feedback.add_rating(rating)
    store.feedback.add_correction(correction)
    assert store.feedback.ratings(run) == (rating,)
    assert store.feedback.corrections(run) == (correction,)


def test_a_gap_and_a_step_that_is_there_are_refused(store: Store) -> None:
    store.begin(started("r1"))
    with pytest.raises(StoreError, match="gap; the next step is 0"):
        store.add_step("r1", 1, LOOK)
    store.add_step("r1", 0, LOOK)
    with pytest.raises(StoreError, match="recorded already; the next step is 1"):
        store.add_step("r1", 0, LOOK)
    with pytest.raises(StoreError, match="recorded already"):
        store.intend("r1", 0, LOOK)
    with pytest.raises(StoreError, match="no run 'r9'"):
        store.add_step("r9", 0, LOOK)


def test_a_run_begins_once_and_ends_once(store: Store) -> None:
    store.begin(started("r1"))
    with pytest.raises(StoreError, match="already"):
        store.begin(started("r1"))
    with pytest.raises(StoreError, match="cannot have the id"):
        store.begin(started("last"))
    store.end("r1", Outcome.ANSWERED, NOW)
    with pytest.raises(StoreError, match="has ended"):
        store.end("r1", Outcome.FAILED, NOW)
    with pytest.raises(StoreError, match="has ended"):
        store.add_step("r1", 0, LOOK)


def test_a_run_is_found_by_an_unambiguous_beginning_or_as_the_last(store: Store) -> None:
    with pytest.raises(StoreError, match="no runs yet"):
        store.get("last")
    for id in ("abc1", "abd2", "ab"):
        store.begin(started(id))
    assert store.get("abc").id == "abc1"
    assert store.get("ab").id == "ab"
    assert store.get("last").id == "ab"
    for name, said in (("a", "begins several"), ("A", "no run"), ("", "no run"), ("%", "no run")):
        with pytest.raises(StoreError, match=said):
            store.get(name)


def test_an_intent_stays_open_until_its_step(store: Store) -> None:
    store.begin(started("r1"))
    assert store.open_intent("r1") is None
    store.intend("r1", 0, replace(LOOK, thought="first"))
    store.intend("r1", 0, LOOK)
    assert store.open_intent("r1") == LOOK
    store.add_step("r1", 0, LOOK)
    assert store.open_intent("r1") is None


def test_only_a_run_that_was_cut_off_can_be_resumed(store: Store) -> None:
    store.begin(started("r1", LOOK))
    assert store.reopen("r1").steps == (LOOK,)
    store.end("r1", Outcome.CANCELLED, NOW)
    with pytest.raises(StoreError, match="cancelled: a person"):
        store.reopen("r1")


def test_the_log_shows_the_newest_runs_first(store: Store) -> None:
    for number in range(5):
        store.begin(started(f"r{number}", *[LOOK] * number))
    store.end("r4", Outcome.ANSWERED, NOW)
    store.feedback.add_rating(Rating("f1", "r3", "up", "ann", "", NOW))
    store.feedback.add_correction(corrected("f2", "r3", 0))
    store.feedback.add_correction(corrected("f3", "r3", 0))
    assert [run.id for run in store.runs(limit=3)] == ["r4", "r3", "r2"]
    assert [run.id for run in store.runs(unfinished=True)] == ["r3", "r2", "r1", "r0"]
    three = store.runs()[1]
    assert (three.task, three.outcome, three.steps, three.tokens) == ("task of r3", None, 3, 45)
    assert (three.adapter, three.seconds, three.ratings, three.corrections) == ("a1", 4.5, 1, 2)
    assert store.runs()[0].outcome is Outcome.ANSWERED


def test_feedback_on_what_is_not_there_is_refused(store: Store) -> None:
    store.begin(started("r1", LOOK))
    with pytest.raises(FeedbackError, match="no run 'r2'"):
        store.feedback.add_rating(Rating("f1", "r2", "up", "ann", "", NOW))
    with pytest.raises(FeedbackError, match="has no step 1; it has steps 0 to 0"):
        store.feedback.add_correction(corrected("f1", "r1", 1))
    with pytest.raises(FeedbackError, match="no step -1"):
        store.feedback.add_correction(corrected("f1", "r1", -1))


def test_feedback_is_appended_and_never_written_over(store: Store) -> None:
    store.begin(started("r1", LOOK, LOOK))
    store.feedback.add_correction(corrected("f1", "r1", 0, "one"))
    store.feedback.add_correction(corrected("f2", "r1", 1, "two"))
    store.feedback.add_correction(corrected("f3", "r1", 0, "three"))
    with pytest.raises(FeedbackError, match="already"):
        store.feedback.add_correction(corrected("f1", "r1", 0, "other"))
    assert [one.reason for one in store.feedback.corrections()] == ["one", "two", "three"]
    assert {step: one.reason for step, one in store.feedback.newest_corrections("r1").items()} == {
        0: "three",
        1: "two",
    }
    assert store.get("r1").steps == (LOOK, LOOK)


def test_all_runs_are_read_oldest_first_or_as_named(store: Store) -> None:
    ids = [f"r{number:03}" for number in range(230)]
    for id in ids:
        store.begin(started(id, LOOK))
    assert [run.id for run in store.trajectories()] == ids
    assert [run.id for run in store.trajectories(["r007", "r003"])] == ["r007", "r003"]


def test_the_database_is_opened_as_promised(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "ratchet.db")
    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    engine.dispose()
    assert found == ["wal", 2, 1, 30000]


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path: Path) -> None:
    Store(tmp_path / "ratchet.db").close()
    engine = open_engine(tmp_path / "ratchet.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE schema_versions SET version = 99"))
    engine.dispose()
    with pytest.raises(StoreError, match=r"newer ratchet-loop .*99.* upgrade"):
        Store(tmp_path / "ratchet.db")


def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ratchet.db").write_text("hello " * 500)
    with pytest.raises(StoreError, match=r"not a database.*move the file away"):
        Store(tmp_path / "ratchet.db")
    with pytest.raises(StoreError, match="cannot"):
        Store(tmp_path / "ratchet.db" / "inner" / "ratchet.db")


def test_threads_share_a_store(store: Store) -> None:
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            store.begin(started(name))
            for index in range(10):
                store.add_step(name, index, LOOK)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(f"thread{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert {run.steps for run in store.runs()} == {10}


WRITER = """
import sys
from pathlib import Path
from agent.storage.store import Store
from agent.records.run import *
store = Store(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    run = f"{sys.argv[2]}-{number}"
    store.begin(Trajectory(run, Task("t", "x" * 2000), Provenance(), "now"))
    for index in range(5):
        step = Step(ToolCall("look", {"index": index}), "y" * 3000)
        store.intend(run, index, step)
        store.add_step(run, index, step)
        print(run, index, flush=True)
    store.end(run, Outcome.ANSWERED, "now")
store.close()
"""


def write_in_another_process(path: Path, name: str, runs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(runs)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def test_two_processes_write_at_once_from_the_first_moment(tmp_path: Path) -> None:
    writers = [write_in_another_process(tmp_path / "ratchet.db", name, 6) for name in ("a", "b")]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    with Store(tmp_path / "ratchet.db") as store:
        assert len(store.runs()) == 12
        assert all(run.steps == 5 and run.outcome is Outcome.ANSWERED for run in store.runs())


def test_no_acknowledged_step_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "ratchet.db"
    chance = random.Random(0)
    acknowledged: set[tuple[str, int]] = set()
    for kill in range(15):
        writer = write_in_another_process(path, f"kill{kill}", 10_000)
        assert writer.stdout is not None
        lines = list(itertools.islice(writer.stdout, chance.randrange(1, 8)))
        time.sleep(chance.random() * 0.03)
        writer.kill()
        lines += [line for line in writer.stdout if line.endswith("\n")]
        writer.stdout.close()
        assert writer.wait() == -9
        acknowledged |= {(run, int(index)) for run, index in (line.split() for line in lines)}
    with Store(path) as store:
        kept = {(run.id, index) for run in store.trajectories() for index in range(len(run.steps))}
        assert acknowledged <= kept
        assert len(acknowledged) >= 15
        # Beyond what was said to be kept, at most the step each kill caught between disk and word of it.
        assert len(kept - acknowledged) <= 15
        for run in store.trajectories():
            assert [step.call and step.call.arguments["index"] for step in run.steps] == [*range(len(run.steps))]
            if run.outcome is None:
                store.reopen(run.id)
                store.add_step(run.id, len(run.steps), LOOK)
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()
