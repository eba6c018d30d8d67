"""On the demo desk the rule finds habits alone: what the scripted reviewer corrects there is for the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.main import main
from agent.config.project import find_project
from agent.encoders.encoder import HashEncoder
from agent.feedback.approved import rulings
from agent.records.feedback import Correction
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.runtime import Runtime
from agent.storage.store import Store
from agent.text.normalise import plain
from tests.tuner.desks import PHRASES, Clumsy, make_desk, ticket
from tuner.data.curate import curate
from tuner.demo.demo import prepare_desk
from tuner.demo.reviewer import Reviewer, load_tickets
from tuner.evaluation.suite import SuiteTask

DESK = Path(__file__).parents[2] / "examples" / "desk"
AT = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def tickets() -> list[SuiteTask]:
    return load_tickets(DESK / "tickets" / "train.jsonl")


@pytest.fixture
def desk(tmp_path: Path, tickets: list[SuiteTask], monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """The demo's project, with a model that does every step wrongly and an encoder that knows words alone."""
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    project = prepare_desk(DESK, tmp_path)
    settings = replace(project.settings, memory=replace(project.settings.memory, min_score=-1.0))
    project = replace(project, settings=settings)
    with Runtime(project, model=Clumsy(tickets, {0, 1, 2, 3}), encoder=HashEncoder()) as runtime:
        runtime.memory.add_folder(project.resolve("articles"))
        yield runtime


def test_what_the_reviewer_corrects_on_the_desk_stays_for_the_weights(desk: Runtime, tickets: list[SuiteTask]) -> None:
    reviewer = Reviewer(
        desk,
        lambda words: main(["--project", str(desk.project.folder), "--quiet", *words]),
        corrections=60,
        progress=lambda done, of: None,
    )
    # The encoder that knows words alone finds other articles than those the tickets cite.
    review = reviewer.review([one for one in tickets if "{cite:" not in str(one.solution)], at_once=4)
    assert review.corrections == 60
    before = curate(desk.store)
    assert desk.arbitrate() == 60
    ruled = rulings(desk.store)
    assert {one.kind for one in ruled.values()} == {"habit"}, Counter(one.reason for one in ruled.values())
    assert {one.by for one in ruled.values()} == {"rule"}
    assert {one.correction.call.name for one in ruled.values()} >= {"answer", "hand_over", "search_knowledge"}
    assert {one.superseded_by for one in ruled.values()} == {None}
    assert curate(desk.store) == before
    assert desk.arbitrate() == 0


def test_how_each_of_the_desks_tickets_begins_is_a_habit_and_what_is_unlike_all_of_them_is_not(
    tmp_path: Path, tickets: list[SuiteTask]
) -> None:
    with Runtime(find_project(tmp_path, {}), model=Clumsy([], ()), encoder=HashEncoder()) as runtime:
        for one in tickets:
            keep_first(runtime.store, one)
        runtime.arbitrate()
        ruled = rulings(runtime.store)
        assert len(ruled) == len(tickets)
        assert [one.reason for one in ruled.values() if not one.is_trained] == []
        asked = Counter(plain(one.task.text) for one in tickets if len(one.task.text.split()) > 6).most_common(1)[0][0]
        odd = replace(tickets[0], id="odd", task=Task("odd", f"{asked} Hello there!", tickets[0].task.facts))
        odd = replace(odd, solution=(replace(odd.solution[0], call=ToolCall("calculator", {"expression": "2"})),))
        keep_first(runtime.store, odd)
        runtime.arbitrate()
        assert {id: one.kind for id, one in rulings(runtime.store).items() if not one.is_trained} == {
            "c-odd": "exception"
        }


def keep_first(store: Store, one: SuiteTask) -> None:
    """A run of a ticket that went wrong at once, and its correction."""
    wrong = Step(ToolCall("calculator", {"expression": "1"}))
    store.begin(Trajectory(one.id, one.task, Provenance(), AT, (wrong,), Outcome.CANCELLED, None, AT))
    right = one.solution[0]
    store.correct(Correction(f"c-{one.id}", one.id, 0, right.call, right.thought, right.plan, "ann", "", AT))


def test_a_store_rooms_answers_in_words_of_their_own_are_habits(tmp_path: Path) -> None:
    rows = [ticket(f"t-{item}", item, PHRASES[0]) for item in ("lamp", "tent", "rope", "axe")]
    project = make_desk(tmp_path / "desk", rows)
    found = load_tickets(project.folder / "tickets" / "train.jsonl")
    with Runtime(project, model=Clumsy(found, {0, 1, 2}), encoder=HashEncoder()) as runtime:
        reviewer = Reviewer(
            runtime,
            lambda words: main(["--project", str(project.folder), "--quiet", *words]),
            corrections=20,
            progress=lambda done, of: None,
        )
        assert reviewer.review(found, at_once=2).corrections == 12
        runtime.arbitrate()
        assert {one.kind for one in rulings(runtime.store).values()} == {"habit"}
        assert curate(runtime.store).held_back == {}
