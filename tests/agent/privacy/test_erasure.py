"""What is a person's: the rule, and that the log and the documents keep nothing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import RatchetError
from agent.knowledge.schema import StoredDocument
from agent.privacy.erasure import Place, Reason, RunMatches, find_runs, place_in, reason_of, with_branches
from agent.privacy.subject import Subject
from agent.records.feedback import Correction, Rating
from agent.records.run import Branch, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from agent.storage.database import erasing
from agent.storage.store import Store
from agent.storage.tables import Forgetting
from tools.context import Passage

NOW = "2026-01-01T00:00:00Z"
WHO = Subject("C1040")
PASSAGE = Passage(1, "p1", "jane.md", "", "She is tall.", 0.5)


def run(id: str, text: str = "Where is it?", *steps: Step, **changes: Any) -> Trajectory:
    return replace(Trajectory(id, Task(f"t-{id}", text), Provenance(), NOW, steps), **changes)


@pytest.mark.parametrize(
    ("subject", "text", "there"),
    [
        ("C1040", "I am c1040.", True),
        ("C1040", "order of C1040's", True),
        ("C1040", "files/C1040-invoice.pdf", True),
        ("C1040", "C10401", False),
        ("C10", "C1040", False),
        ("C1040", "XC1040", False),
        ("Jane Doe", "ask Jane\n  Doe, please", True),
        ("Jane Doe", "Jane Doering", False),
        ("Zoe\u0301", "it was Zo\u00e9", True),
        ("jane@shop.example", "Write to Jane@shop.example.", True),
        ("jane@shop.example", "mary.jane@shop.example", False),
        ("jane@shop.example", "jane@shop.example.org", False),
        ("4711", {"order": [1, {"id": 4711}]}, True),
        ("4711", {"4711": None}, True),
        ("true", [True, None], False),
        ("a.b", "axb", False),
    ],
)
def test_an_id_is_found_as_a_whole_word(subject: str, text: Any, there: bool) -> None:
    assert Subject(subject).is_in(text) is there


@pytest.mark.parametrize("id", ["", "  ", "?!"])
def test_a_subject_without_a_letter_is_refused(id: str) -> None:
    with pytest.raises(RatchetError, match="no letter and no digit"):
        Subject(id)


@pytest.mark.parametrize(
    ("trajectory", "reason"),
    [
        (run("r", task=Task("t", "Hello", {"customer": "c1040"})), "fact"),
        (run("r", task=Task("t", "Hello", {"note": "from C1040"})), "task"),
        (run("r", "C1040 wants a tent"), "task"),
        (run("r", "x", Step(ToolCall("look", {"ids": ["C1040"]}))), "step"),
        (run("r", "x", Step(None, said="C1040")), "step"),
        (run("r", "x", Step(None, plan=("ask C1040",))), "step"),
        (run("r", "x", Step(None, passages=(replace(PASSAGE, text="C1040 is tall"),))), "step"),
        (run("r", "x", error="no C1040"), "step"),
        (run("r", "x", Step(None, passages=(PASSAGE,))), "passage"),
        (run("r", "x", Step(None, passages=(replace(PASSAGE, document="other.md"),))), None),
        (run("r", "x", Step(ToolCall("look", {"id": "C10"}), token_ids=(1040,)), error=None), None),
    ],
)
def test_a_run_is_theirs_wherever_it_has_the_id(trajectory: Trajectory, reason: Reason | None) -> None:
    assert reason_of(WHO, trajectory, owned=["jane.md"]) == reason


def test_feedback_counts_and_who_gave_it_does_not() -> None:
    call = ToolCall("look", {})
    fix = Correction("c", "r", 0, call, "", (), "C1040", "", NOW)
    rating = Rating("f", "r", "up", "C1040", "", NOW)
    assert reason_of(WHO, run("r"), feedback=[fix, rating]) is None
    for said in (
        replace(fix, reason="as C1040 asked"),
        replace(fix, call=ToolCall("look", {"id": "C1040"})),
        replace(rating, reason="C1040 was glad"),
    ):
        assert reason_of(WHO, run("r"), feedback=[said]) == "feedback"


def test_what_was_about_to_be_done_counts(store: Store) -> None:
    store.begin(run("r"))
    store.intend("r", 0, Step(ToolCall("send", {"to": "C1040"})))
    assert find_runs(store, WHO) == RunMatches({"r": "step"}, frozenset({"Where is it?"}))


def test_branches_go_together_in_both_directions() -> None:
    branches = {"b": "a", "c": "b", "e": "d", "x": "gone", "y": "gone"}
    runs = ["a", "b", "c", "d", "e", "x", "y"]
    assert with_branches({"b": "step"}, runs, branches) == {"a": "branch", "b": "step", "c": "branch"}
    assert with_branches({"x": "task"}, runs, branches) == {"x": "task", "y": "branch"}
    assert with_branches({}, runs, branches) == {}


def test_branches_are_known_from_the_log(store: Store) -> None:
    store.begin(run("a", "x", Step(ToolCall("look", {}))))
    store.begin(run("b", "x", Step(ToolCall("look", {"id": "C1040"})), branch=Branch("a", 0)))
    assert find_runs(store, WHO).runs == {"a": "branch", "b": "step"}


@pytest.mark.parametrize(
    ("name", "metadata", "in_text", "place"),
    [
        ("a.md", {"customer": "c1040"}, False, "owner"),
        ("a.md", {"customers": ["B2", "C1040"]}, True, "owner"),
        ("a.md", {"title": "Letter of C1040"}, True, "metadata"),
        ("letters/C1040.md", {}, True, "name"),
        ("a.md", {}, True, "text"),
        ("a.md", {"customer": "C10400"}, False, None),
    ],
)
def test_a_document_is_theirs_by_its_metadata_alone(
    name: str, metadata: dict[str, Any], in_text: bool, place: Place | None
) -> None:
    document = StoredDocument(name, "", "0", "2", 1, NOW, NOW, metadata=metadata)
    assert place_in(WHO, document, in_text=in_text) == place


def test_other_runs_lose_what_they_were_shown_of_it_and_nothing_else(store: Store) -> None:
    theirs, others = Recalled("the blue tent please", "look"), Recalled("where is it", "find", ("find it",))
    same, named = Recalled("my order", "find"), Recalled("for C1040", "find")
    store.begin(run("a", "the blue tent please", task=Task("t", "the blue tent please", {"id": "C1040"})))
    store.begin(run("b", "my order", task=Task("t", "my order", {"id": "C1040"})))
    store.begin(run("c", "my order", provenance=Provenance(base="b", recalled=(others, theirs, same, named))))
    store.begin(run("d", "else", provenance=Provenance(recalled=(others,))))
    found = find_runs(store, WHO)
    assert found == RunMatches({"a": "fact", "b": "fact"}, frozenset({"the blue tent please"}), {"c": (others, same)})
    store.forget(Forgetting(NOW, tuple(found.runs), 0, {}), found.recalled)
    assert store.get("c").provenance == Provenance(base="b", recalled=(others, same))
    assert [one.id for one in store.runs()] == ["d", "c"]


def test_a_forgetting_is_kept_and_counts_as_something_new(store: Store) -> None:
    for id in "abc":
        store.begin(run(id, "x", Step(ToolCall("look", {}))))
        store.feedback.add_rating(Rating(f"f-{id}", id, "up", "ann", "", NOW))
    record = Forgetting(NOW, ("b", "gone"), 2, {"d1": ("a", "b")})
    store.forget(record)
    assert store.feedback.version() == 4
    assert store.feedback.runs_since(3) == (4, ())
    assert store.feedback.runs_since(0) == (4, ("a", "c"))
    assert (store.forgotten_since(3), store.forgotten_since(4)) == (("b", "gone"), ())
    assert store.forgettings() == (record,)
    store.feedback.add_rating(Rating("f-new", "a", "down", "ann", "", NOW))
    assert store.feedback.runs_since(4) == (5, ("a",))
    store.forget(Forgetting(NOW, (), 1, {}))
    assert store.feedback.version() == 5


def test_a_store_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    with Store(tmp_path / "ratchet.db") as store:
        store.begin(run("a"))
        with store.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE forgettings")
            connection.exec_driver_sql("UPDATE schema_versions SET version = 1 WHERE part = 'store'")
    with Store(tmp_path / "ratchet.db") as store:
        store.forget(Forgetting(NOW, ("a",), 0, {}))
        assert (store.runs(), len(store.forgettings())) == ((), 1)


def test_what_was_deleted_is_left_neither_in_the_file_nor_in_the_log_beside_it(tmp_path: Path) -> None:
    secret = "quokkatelescope" * 40
    path = tmp_path / "ratchet.db"

    def holds() -> bool:
        return any(b"quokkatelescope" in one.read_bytes() for one in tmp_path.glob("ratchet.db*"))

    # An open connection keeps the log from going with the last one.
    with Store(path) as open_elsewhere, Store(path) as store:
        for number in range(40):
            # Rows that grow and are split leave copies in the pages they were in.
            theirs = number % 4 == 0
            store.begin(run(f"r{number}", secret if theirs else "plain " * 50))
            store.add_step(f"r{number}", 0, Step(None, said=secret if theirs else "said " * 50))
            if theirs:
                store.feedback.add_rating(Rating(f"f{number}", f"r{number}", "up", "ann", secret, NOW))
        assert len(open_elsewhere.runs(None)) == 40
        assert holds()
        store.forget(Forgetting(NOW, tuple(f"r{number}" for number in range(0, 40, 4)), 0, {}))
        assert store.scour()
        assert not holds()
        assert len(open_elsewhere.runs(None)) == len(list(store.trajectories())) == 30


def test_what_was_deleted_before_anyone_asked_to_be_forgotten_is_scoured_too(tmp_path: Path) -> None:
    with Store(tmp_path / "ratchet.db") as store:
        store.begin(run("a", "quokkatelescope"))
        store.begin(run("b"))
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA secure_delete=OFF")
            connection.exec_driver_sql("DELETE FROM runs WHERE id = 'a'")
            connection.commit()
        assert b"quokkatelescope" in store.path.read_bytes() + store.path.with_name("ratchet.db-wal").read_bytes()
        assert store.scour()
        assert b"quokkatelescope" not in store.path.read_bytes()


def test_what_is_deleted_while_erasing_is_overwritten_at_once(tmp_path: Path) -> None:
    with Store(tmp_path / "ratchet.db") as store:
        store.begin(run("a", "quokkatelescope"))
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA secure_delete=OFF")
        with erasing(store.engine) as connection:
            connection.exec_driver_sql("DELETE FROM runs WHERE id = 'a'")
    # Closed, the pages went from the log into the file as they were.
    assert b"quokkatelescope" not in store.path.read_bytes()


def test_a_reader_that_does_not_go_away_is_told_of(tmp_path: Path) -> None:
    with Store(tmp_path / "ratchet.db") as reader, Store(tmp_path / "ratchet.db") as store:
        store.begin(run("a"))
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=100")
        with reader.engine.connect() as held:
            held.exec_driver_sql("SELECT count(*) FROM runs").scalar()
            store.forget(Forgetting(NOW, ("a",), 0, {}))
            assert not store.scour()
        assert store.scour()
