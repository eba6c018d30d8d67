"""The scripted reviewer stops a run where it goes wrong, corrects that step through the command, and goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from agent.errors import TuningError
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.runtime import Runtime
from tests.tuner.desks import PHRASES, Clumsy, mail_ticket, make_desk, ticket
from tests.tuner.suite_parts import passage
from tuner.data.curate import curate
from tuner.demo.reviewer import Reviewer, as_shown, first_wrong, load_tickets, resolve_citations
from tuner.evaluation.suite import Suite, SuiteTask
from tuner.pipeline.promote import evaluate_adapter

ROWS = [ticket(f"t-{number}", item, PHRASES[number]) for number, item in enumerate(("lamp", "tent", "rope", "axe"))]


class Desk:
    """A desk whose model is clumsy, and the reviewer at it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.runtimes: list[Runtime] = []

    def open(
        self,
        rows: Sequence[dict[str, Any]],
        wrong: Collection[int],
        *,
        allowed: int,
        gives_up: bool = False,
        settings: str = "",
    ) -> tuple[Runtime, Reviewer, list[SuiteTask]]:
        project = make_desk(self._folder, rows, settings)
        tickets = load_tickets(self._folder / "tickets" / "train.jsonl")
        runtime = Runtime(project, model=Clumsy(tickets, wrong, gives_up=gives_up))
        self.runtimes.append(runtime)
        self.counts: list[tuple[int, int]] = []
        reviewer = Reviewer(
            runtime, self.command, corrections=allowed, progress=lambda *count: self.counts.append(count)
        )
        return runtime, reviewer, tickets

    def command(self, words: Sequence[str]) -> int:
        return main(["--project", str(self._folder), "--quiet", *words])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    made = Desk(tmp_path / "desk")
    yield made
    for runtime in made.runtimes:
        runtime.close()


def test_a_wrong_step_is_corrected_and_the_run_taken_up_from_there(desk: Desk) -> None:
    runtime, reviewer, tickets = desk.open(ROWS[:1], {1}, allowed=5)
    review = reviewer.review(tickets, at_once=1)
    assert (review.tickets, review.corrections, review.rated_up, review.right_at_once) == (1, 1, 1, 0)
    (fix,) = runtime.store.feedback.corrections()
    assert (fix.step, fix.call, fix.thought) == (1, ToolCall("book", {"box": 3}), "It is in box 3.")
    stopped = runtime.store.get(fix.run)
    assert (stopped.outcome, len(stopped.steps)) == (Outcome.CANCELLED, 2)
    (rating,) = runtime.store.feedback.ratings()
    assert (rating.verdict, rating.reviewer, rating.reason) == ("up", "scripted reviewer", "solved")
    branch = runtime.store.get(rating.run)
    assert branch.branch is not None
    assert (branch.branch.run, branch.answer) == (fix.run, "Box 3 is yours.")
    assert [step.author for step in branch.steps] == ["model", "correction", "model"]
    assert list(runtime.home.workspaces.iterdir()) == []
    assert [(row.kind, list(row.targets)) for row in curate(runtime.store).rows] == [
        ("corrected", [1]),
        ("accepted", [0, 1, 2]),
    ]


def test_what_is_right_at_once_is_only_rated(desk: Desk) -> None:
    runtime, reviewer, tickets = desk.open(ROWS, (), allowed=5)
    review = reviewer.review(tickets, at_once=3)
    assert (review.tickets, review.corrections, review.rated_up, review.right_at_once) == (4, 0, 4, 4)
    assert runtime.store.feedback.corrections() == ()


@pytest.mark.parametrize("at_once", [1, 4])
def test_no_more_corrections_are_made_than_allowed(desk: Desk, at_once: int) -> None:
    runtime, reviewer, tickets = desk.open(ROWS, {0, 1, 2}, allowed=7)
    review = reviewer.review(tickets, at_once=at_once)
    assert review.corrections == len(runtime.store.feedback.corrections()) == 7
    assert desk.counts == [(number, 7) for number in range(1, 8)]
    assert review.rated_up == sum(one.verdict == "up" for one in runtime.store.feedback.ratings()) <= 2
    assert list(runtime.home.workspaces.iterdir()) == []


def test_a_run_without_a_step_to_correct_is_rated_down_and_the_reviewer_goes_on(desk: Desk) -> None:
    runtime, reviewer, tickets = desk.open(ROWS, (), allowed=5, gives_up=True)
    review = reviewer.review(tickets, at_once=2)
    assert (review.tickets, review.corrections, review.rated_up) == (4, 0, 0)
    assert [one.verdict for one in runtime.store.feedback.ratings()] == ["down"] * 4


def test_a_correction_of_a_scrubbed_run_says_what_the_model_was_shown(desk: Desk) -> None:
    runtime, reviewer, tickets = desk.open([mail_ticket("t-1", "ann@home.example")], {0}, allowed=5)
    review = reviewer.review(tickets, at_once=1)
    assert (review.corrections, review.rated_up) == (1, 1)
    (fix,) = runtime.store.feedback.corrections()
    assert fix.call == ToolCall("mail", {"address": "<email_2>"})
    assert fix.thought == "Mail <email_2>."
    (rating,) = runtime.store.feedback.ratings()
    shown = runtime.store.get(rating.run)
    assert shown.task.text == "Send my receipt to <email_2>, please."
    assert shown.steps[0].call == fix.call
    assert shown.answer == "Sent to <email_2>."


def test_a_run_that_did_not_find_what_is_to_be_quoted_is_rated_down(desk: Desk) -> None:
    runtime, reviewer, tickets = desk.open(ROWS[:1], {2}, allowed=5, settings="[agent]\nquoted_answers = true\n")
    review = reviewer.review(tickets, at_once=1)
    assert (review.tickets, review.corrections, review.rated_up) == (1, 0, 0)
    (rating,) = runtime.store.feedback.ratings()
    assert rating.verdict == "down"
    assert list(runtime.home.workspaces.iterdir()) == []


def test_a_scrubbed_run_is_evaluated_by_what_its_calls_really_held(desk: Desk) -> None:
    runtime, _, tickets = desk.open([mail_ticket("t-1", "ann@home.example")], (), allowed=0)
    (row,) = evaluate_adapter(runtime, Suite(tuple(tickets)), None).rows
    assert row.scores.reasons == ()
    assert row.answer == "Sent to ann@home.example."


def test_a_command_that_fails_ends_the_review(desk: Desk) -> None:
    runtime, _, tickets = desk.open(ROWS, {0}, allowed=5)
    reviewer = Reviewer(runtime, lambda words: 2, corrections=5, progress=lambda done, of: None)
    with pytest.raises(TuningError, match=r"`ratchet correct .*` ended with 2"):
        reviewer.review(tickets, at_once=1)


def test_held_out_tickets_have_no_solution_and_are_no_tickets_to_review(tmp_path: Path) -> None:
    make_desk(tmp_path / "desk", ROWS)
    assert load_tickets(tmp_path / "desk" / "tickets" / "held_out.jsonl") == []


# -- pure parts ----------------------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path: Path) -> SuiteTask:
    make_desk(tmp_path / "desk", ROWS[:1])
    return load_tickets(tmp_path / "desk" / "tickets" / "train.jsonl")[0]


def taken(one: SuiteTask, *steps: Step, outcome: Outcome | None = None) -> Trajectory:
    return Trajectory("run-1", one.task, Provenance(), "now", steps, outcome)


def right_steps(one: SuiteTask) -> list[Step]:
    return [Step(step.call, thought=step.thought, plan=step.plan) for step in one.solution]


def test_the_first_wrong_step_is_found(one: SuiteTask) -> None:
    right = right_steps(one)
    for count in range(len(right) + 1):
        assert first_wrong(one, taken(one, *right[:count])) is None
    assert first_wrong(one, taken(one, *right, outcome=Outcome.ANSWERED)) is None
    other = Step(ToolCall("find", {"item": "tent"}), thought=right[0].thought, plan=right[0].plan)
    assert first_wrong(one, taken(one, other, *right[1:])) == 0
    assert first_wrong(one, taken(one, right[0], right[2])) == 1
    assert first_wrong(one, taken(one, right[0], Step(None, said="{", error="no"))) == 1
    assert first_wrong(one, taken(one, right[0], replace(right[1], thought="Something else entirely."))) == 1
    assert first_wrong(one, taken(one, replace(right[0], plan=("answer at once",)))) == 0
    assert first_wrong(one, taken(one, right[0], replace(right[1], thought="it is in box 3"))) is None
    assert first_wrong(one, taken(one, *right, right[2])) == 2


@pytest.mark.parametrize("outcome", [Outcome.OUT_OF_TOKENS, Outcome.OUT_OF_TIME, Outcome.CRASHED])
def test_a_run_that_ended_behind_right_steps_has_nothing_to_correct(one: SuiteTask, outcome: Outcome) -> None:
    assert first_wrong(one, taken(one, outcome=outcome)) is None
    assert first_wrong(one, taken(one, *right_steps(one)[:2], outcome=outcome)) is None


def test_citations_are_the_labels_of_the_run(one: SuiteTask) -> None:
    search = Step(ToolCall("search_knowledge", {"query": "x"}), passages=(passage(1, "a.md"), passage(2, "b.md")))
    again = Step(ToolCall("search_knowledge", {"query": "y"}), passages=(passage(3, "b.md"),))
    run = taken(one, search, again)
    wanted = {"text": "x", "citations": "{cite:b.md}"}
    assert resolve_citations(wanted, run, 2) == {"text": "x", "citations": [2]}
    assert resolve_citations(wanted, run, 0) == {"text": "x", "citations": []}
    assert resolve_citations({"citations": "{cite:c.md}"}, run, 2) == {"citations": []}
    assert wanted["citations"] == "{cite:b.md}"


def test_a_run_that_was_not_scrubbed_shows_the_solution_as_it_is(one: SuiteTask) -> None:
    assert as_shown(one.solution[0], one, taken(one)) is one.solution[0]
    shown = replace(taken(one), task=Task(one.task.id, "masked", {}))
    assert as_shown(one.solution[0], one, shown) == one.solution[0]


def test_a_value_that_a_tool_told_is_shown_as_the_run_was_shown_it(one: SuiteTask) -> None:
    step = replace(one.solution[2], call=ToolCall("answer", {"text": "Sent to ann@home.example.", "citations": []}))
    told = Step(ToolCall("mail", {}), "Sent to <email_1>.")
    assert as_shown(step, one, taken(one, told)).call.arguments["text"] == "Sent to <email_1>."
    assert as_shown(step, one, taken(one, replace(told, observation="Sent."))) is step
