"""What the scripted reviewer corrects on the demo desk is trained: no correction supersedes another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli.main import main
from agent.encoders.encoder import HashEncoder
from agent.feedback.approved import correction_statuses
from agent.runtime import Runtime
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


def test_what_the_reviewer_corrects_on_the_desk_is_trained(desk: Runtime, tickets: list[SuiteTask]) -> None:
    reviewer = Reviewer(
        desk,
        lambda words: main(["--project", str(desk.project.folder), "--quiet", *words]),
        corrections=60,
        progress=lambda done, of: None,
    )
    # The encoder that knows words alone finds other articles than those the tickets cite.
    review = reviewer.review([one for one in tickets if "{cite:" not in str(one.solution)], at_once=4)
    assert review.corrections == 60
    statuses = correction_statuses(desk.store).values()
    assert {status.kind for status in statuses} == {"habit"}
    assert {status.superseded_by for status in statuses} == {None}
    assert {status.correction.call.name for status in statuses} >= {"answer", "hand_over", "search_knowledge"}
    assert curate(desk.store).held_back == {}


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
        assert {status.kind for status in correction_statuses(runtime.store).values()} == {"habit"}
        assert curate(runtime.store).held_back == {}
