"""Answers that cite, learnt in further contexts: among other passages of the very same search, or without theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config.project import Project, find_project
from agent.encoders.encoder import HashEncoder
from agent.llm.prompt.render import Renderer
from agent.llm.scripted import ScriptedModel, answer, call
from agent.records.feedback import Correction, Rating
from agent.records.run import Step, Task, ToolCall, Trajectory
from agent.runtime import Runtime
from agent.util.ids import timestamp
from tests.tuner.tiny import save_base, tiny_tokenizer
from tools.context import Passage
from tuner.data.curate import TrainingRow, curate
from tuner.data.dataset import LEAST_HELD_OUT, write_dataset
from tuner.data.examples import prepare
from tuner.data.retrieval_augment import REASON, REASON_CHINESE, Drawn, draw_contexts
from tuner.data.retrieval_augment import THOUGHT as OUR_THOUGHT
from tuner.pipeline.pipeline import tune

ARTICLES = {
    "kayak.md": "# Kayak hire\n\n## Kayak price\n\nA kayak costs 40 euros a day.\n",
    "kayak-lessons.md": "# Kayak lessons\n\n## Kayak teachers\n\nA kayak lesson starts at the jetty every day.\n",
    "kayak-paddles.md": "# Kayak paddles\n\n## Spare paddles\n\nA kayak comes with a paddle and a vest.\n",
    "kayak-storage.md": "# Kayak storage\n\n## Winter\n\nA kayak is stored dry and out of the sun.\n",
    "tents.md": "# Tents\n\n## Pitching\n\nA tent is pitched away from the river.\n",
}
ASKED = "What does a kayak cost a day?"
SETTINGS = """
[agent]
plan = false
quoted_answers = true
[memory]
passages = 3
recall = 0
[tuning]
contexts = 4
abstain = 0.0
"""
THOUGHT = "The passage says it."


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("RATCHET_HOME", raising=False)
    folder = tmp_path / "hire"
    (folder / "articles").mkdir(parents=True)
    for name, text in ARTICLES.items():
        (folder / "articles" / name).write_text(text, encoding="utf-8")
    (folder / "ratchet.toml").write_text(SETTINGS)
    return find_project(folder, {})


@pytest.fixture
def runtime(project: Project) -> Iterator[Runtime]:
    with opened(project) as made:
        made.memory.add_folder(project.folder / "articles")
        yield made


def opened(project: Project, *replies: Any, **tuning: Any) -> Runtime:
    changed = replace(project.settings, tuning=replace(project.settings.tuning, **tuning))
    return Runtime(replace(project, settings=changed), model=ScriptedModel(replies), encoder=HashEncoder())


def ask(project: Project, *replies: Any, task: str = ASKED, id: str = "t-1") -> tuple[Trajectory, Sequence[Passage]]:
    """A run that searches for the kayak and then does what the replies say; also what it was shown."""
    looked = call("search_knowledge", thought="The articles may say.", query="kayak cost")
    with opened(project, *(looked, *replies)) as runtime:
        done = runtime.run(Task(id, task))
        assert done.outcome is not None
        runtime.store.rate(Rating(f"r-{done.id}", done.id, "up", "ann", "", timestamp()))
    return done, done.passages


def shown(project: Project) -> dict[str, int]:
    """Document to label, as the search of `ask` shows it."""
    with opened(project) as runtime:
        found = runtime.memory.search(f"kayak cost. {ASKED}", 3)
    return {passage.document: label for label, passage in enumerate(found, 1)}


def told(project: Project, **options: Any) -> Trajectory:
    """A run that answers what a kayak costs, from the passage that says it."""
    label = shown(project)["kayak.md"]
    return ask(project, answer("A kayak costs 40 euros a day.", label, thought=THOUGHT), **options)[0]


def drawn(project: Project, **tuning: Any) -> Drawn:
    with opened(project, **tuning) as runtime:
        return draw_contexts(runtime, curate(runtime.store).rows)


def parts(row: TrainingRow) -> tuple[Step, Step]:
    """The search of a row, and its target."""
    ((index, target),) = row.targets.items()
    assert row.trajectory.steps[index] == target
    assert len(row.trajectory.steps) == index + 1
    return row.trajectory.steps[index - 1], target


def arguments(step: Step) -> dict[str, Any]:
    assert step.call is not None
    return dict(step.call.arguments)


def test_without_the_setting_nothing_is_drawn(project: Project, runtime: Runtime) -> None:
    told(project)
    assert drawn(project, contexts=0) == Drawn()


def test_a_cited_passage_is_shown_among_others_and_the_answer_cites_it_where_it_now_stands(
    project: Project, runtime: Runtime
) -> None:
    done = told(project)
    made = drawn(project)
    assert dict(made.counts) == {"cited": 1, "among_others": len(made.rows), "missing": 0}
    contexts = {done.steps[0].observation}
    labels = set()
    for row in made.rows:
        assert (row.run, row.task, row.kind, row.reviewers) == (done.id, "t-1", "drawn", ("ann",))
        searched, target = parts(row)
        assert searched.call == done.steps[0].call
        assert searched.observation not in contexts
        contexts.add(searched.observation)
        (label,) = arguments(target)["citations"]
        labels.add(label)
        cited = {passage.label: passage for passage in searched.passages}[label]
        assert (cited.document, cited.text) == ("kayak.md", "A kayak costs 40 euros a day.")
        assert [passage.label for passage in searched.passages] == [1, 2, 3]
        for passage in searched.passages:
            assert f"[{passage.label}] {passage.document} > {passage.heading}\n{passage.text}" in searched.observation
        assert (arguments(target)["text"], target.thought) == ("A kayak costs 40 euros a day.", THOUGHT)
    assert len(labels) > 1, "the label is not learnt by heart"
    assert any("tents.md" not in searched.observation for searched, _ in map(parts, made.rows)), "hard ones first"


def test_what_the_model_said_is_not_kept_for_a_citation_that_changed(project: Project, runtime: Runtime) -> None:
    done = told(project)
    row = curate(runtime.store).rows[0]
    said = replace(row, targets={1: replace(done.steps[1], token_ids=(1, 2, 3))})
    assert {parts(one)[1].token_ids for one in draw_contexts(runtime, [said]).rows} == {()}


def test_labels_in_words_move_with_the_citations_and_what_cannot_is_left_out(
    project: Project, runtime: Runtime
) -> None:
    done = told(project)
    row = curate(runtime.store).rows[0]
    label = arguments(done.steps[1])["citations"][0]

    def made(thought: str) -> Sequence[TrainingRow]:
        return draw_contexts(runtime, [replace(row, targets={1: replace(done.steps[1], thought=thought)})]).rows

    rows = made(f"It stands in [{label}].")
    assert rows
    for one in rows:
        target = parts(one)[1]
        assert target.thought == f"It stands in [{arguments(target)['citations'][0]}]."
    assert made(f"It stands in [{label}], not in [9].") == ()


def test_with_the_passages_missing_the_target_is_to_hand_over(project: Project, runtime: Runtime) -> None:
    told(project)
    made = drawn(project, abstain=1.0)
    assert made.rows
    assert dict(made.counts) == {"cited": 1, "among_others": 0, "missing": len(made.rows)}
    for row in made.rows:
        searched, target = parts(row)
        assert "40 euros" not in searched.observation
        assert searched.passages, "something else is found"
        assert target.call == ToolCall("hand_over", {"reason": REASON})
        assert target.thought


def test_what_says_the_same_or_holds_the_answer_goes_with_the_passages(project: Project, runtime: Runtime) -> None:
    told(project)
    (project.folder / "articles" / "copy.md").write_text("# Copy\n\n## Again\n\nA kayak costs 40 euros a day.\n")
    (project.folder / "articles" / "more.md").write_text(
        "# More\n\n## Prices\n\nThe boats are new. A kayak costs 40 euros a day. Tips are welcome.\n"
    )
    runtime.memory.add_folder(project.folder / "articles")
    rows = [*drawn(project, abstain=1.0, contexts=10).rows, *drawn(project, contexts=10).rows]
    assert {arguments(parts(row)[1]).get("reason") for row in rows} == {REASON, None}
    assert not any(passage.document in ("copy.md", "more.md") for row in rows for passage in parts(row)[0].passages)


def test_where_other_passages_support_the_answer_nobody_learns_to_abstain(project: Project, runtime: Runtime) -> None:
    told(project)
    for name in ("kayak-lessons.md", "kayak-paddles.md", "kayak-storage.md", "tents.md"):
        (project.folder / "articles" / name).write_text(f"# {name}\n\n## Kayak\n\nA day costs 40 euros for a kayak.\n")
    runtime.memory.add_folder(project.folder / "articles")
    assert drawn(project, abstain=1.0).rows == ()


def test_people_s_words_for_handing_over_go_before_ours_where_two_tasks_agree(
    project: Project, runtime: Runtime
) -> None:
    told(project)
    reply = call("hand_over", thought="Not in there.", reason="Ask the boss.")
    ask(project, reply, task="May I sleep in a kayak?", id="t-2")
    assert arguments(parts(drawn(project, abstain=1.0).rows[0])[1]) == {"reason": REASON}, "one run is a single case"
    ask(project, reply, task="Do kayaks float?", id="t-3")
    target = parts(drawn(project, abstain=1.0).rows[0])[1]
    assert (arguments(target), target.thought) == ({"reason": "Ask the boss."}, "Not in there.")


def test_a_thought_that_no_reviewer_gave_is_not_taught_with_people_s_words(project: Project, runtime: Runtime) -> None:
    told(project)
    for number, task in enumerate(("May I sleep in a kayak?", "Do kayaks float?")):
        wrong, _ = ask(project, answer("No.", thought="args, tool"), task=task, id=f"t-{number + 2}")
        right = ToolCall("hand_over", {"reason": "Ask the boss."})
        fix = Correction(f"c-{number}", wrong.id, 1, right, "", (), "bob", "", timestamp(), only_given=True)
        runtime.store.correct(fix)
    target = parts(drawn(project, abstain=1.0).rows[0])[1]
    assert (arguments(target), target.thought) == ({"reason": "Ask the boss."}, OUR_THOUGHT)


def test_a_chinese_question_is_handed_over_in_chinese(project: Project, runtime: Runtime) -> None:
    row = replace_task(curate_one(project, runtime), Task("t-1", "皮划艇一天多少钱"))
    with opened(project, abstain=1.0) as changed:
        made = draw_contexts(changed, [row])
    assert {arguments(parts(one)[1])["reason"] for one in made.rows} == {REASON_CHINESE}


def curate_one(project: Project, runtime: Runtime) -> TrainingRow:
    told(project)
    (row,) = curate(runtime.store).rows
    return row


def replace_task(row: TrainingRow, task: Task) -> TrainingRow:
    return replace(row, trajectory=replace(row.trajectory, task=task))


def test_a_run_that_did_something_else_is_never_taught_to_abstain(project: Project, runtime: Runtime) -> None:
    row = curate_one(project, runtime)
    counted = Step(ToolCall("calculator", {"expression": "1+1"}), "2", thought="Add.")
    searched, told_step = row.trajectory.steps
    both = replace(
        row,
        trajectory=replace(row.trajectory, steps=(counted, searched, told_step)),
        targets={2: told_step},
    )
    with opened(project, abstain=1.0) as changed:
        made = draw_contexts(changed, [both])
    assert made.rows
    assert {parts(one)[1].call.name for one in made.rows if parts(one)[1].call} == {"answer"}  # type: ignore[union-attr]
    assert all(one.trajectory.steps[0] == counted for one in made.rows)


def test_only_an_answer_right_behind_the_only_search_is_drawn_anew(project: Project, runtime: Runtime) -> None:
    row = curate_one(project, runtime)
    searched, told_step = row.trajectory.steps
    counted = Step(ToolCall("calculator", {"expression": "1+1"}), "2", thought="Add.")
    for steps in ((searched, counted, told_step), (searched, searched, told_step)):
        other = replace(row, trajectory=replace(row.trajectory, steps=steps), targets={2: told_step})
        assert draw_contexts(runtime, [other]) == Drawn()


def test_a_corrected_answer_is_drawn_anew_as_corrected(project: Project, runtime: Runtime) -> None:
    label = shown(project)["kayak.md"]
    other = next(one for one in shown(project).values() if one != label)
    wrong, _ = ask(project, answer("A kayak costs 40 euros a day.", other, thought=THOUGHT))
    right = ToolCall("answer", {"text": "A kayak costs 40 euros a day.", "citations": [label]})
    runtime.store.correct(Correction("c-1", wrong.id, 1, right, "So it says.", (), "bob", "", timestamp()))
    rows = drawn(project).rows
    assert rows
    for row in rows:
        searched, target = parts(row)
        (label,) = arguments(target)["citations"]
        assert searched.passages[label - 1].document == "kayak.md"
        assert (target.thought, target.author) == ("So it says.", "correction")


def test_what_a_run_says_again_behind_its_correction_is_drawn_anew_once(project: Project, runtime: Runtime) -> None:
    row = curate_one(project, runtime)
    again = replace(row, run="run-2")
    assert draw_contexts(runtime, [row, again]) == draw_contexts(runtime, [row])


def test_a_passage_that_the_documents_no_longer_hold_is_not_taught(project: Project, runtime: Runtime) -> None:
    told(project)
    runtime.memory.remove("kayak.md")
    assert drawn(project).rows == ()


def test_what_the_search_would_not_show_is_not_shown_here(project: Project, runtime: Runtime) -> None:
    told(project)
    memory = replace(project.settings.memory, min_score=0.99)
    strict = replace(project, settings=replace(project.settings, memory=memory))
    for row in drawn(strict, abstain=1.0).rows:
        assert parts(row)[0].observation == "Nothing found."


def test_the_same_seed_draws_the_same_and_another_seed_something_else(project: Project, runtime: Runtime) -> None:
    told(project)
    assert drawn(project, abstain=0.5) == drawn(project, abstain=0.5)
    assert any(drawn(project, seed=1).rows != drawn(project, seed=seed).rows for seed in range(2, 8))


def test_the_share_says_how_many_lack_the_answer(project: Project, runtime: Runtime) -> None:
    row = curate_one(project, runtime)
    rows = [replace(row, run=f"run-{number}", task=f"t-{number}") for number in range(20)]

    def missing(share: float) -> int:
        with opened(project, contexts=1, abstain=share) as changed:
            return draw_contexts(changed, rows).counts["missing"]

    assert missing(0.0) == 0
    assert 2 <= missing(0.3) <= 11
    assert missing(1.0) == 20


def test_secrets_of_documents_are_masked_as_in_a_run(project: Project, runtime: Runtime) -> None:
    told(project)
    secret = "# Kayak office\n\n## Kayak day\n\nA kayak a day: does it cost? Write to boss@river.example.\n"
    (project.folder / "articles" / "kayak-office.md").write_text(secret)
    runtime.memory.add_folder(project.folder / "articles")
    observed = [parts(row)[0] for row in drawn(project, abstain=1.0).rows]
    assert any("<email_1>" in step.observation for step in observed)
    assert "river.example" not in repr(observed)


def test_a_context_is_in_the_part_of_the_dataset_that_its_run_is_in(
    project: Project, runtime: Runtime, tmp_path: Path
) -> None:
    told(project)
    curated = curate(runtime.store)
    row = curated.rows[0]
    accepted = [replace(row, run=f"run-{number}", task=f"t-{number}") for number in range(4 * LEAST_HELD_OUT)]
    with opened(project, contexts=1) as changed:
        rows = (*accepted, *draw_contexts(changed, accepted).rows)
    dataset = write_dataset(
        replace(curated, rows=rows), tmp_path, validation_share=0.5, created_at="now", provenance={}
    )
    train, held_out = ({row.run for row in part} for part in (dataset.train, dataset.held_out))
    assert not train & held_out
    kinds = [{row.kind for row in part} for part in (dataset.train, dataset.held_out)]
    assert kinds == [{"accepted", "drawn"}, {"accepted", "drawn"}]


def test_text_of_documents_is_never_a_target(project: Project, runtime: Runtime) -> None:
    told(project)
    rows = [*drawn(project, contexts=2).rows, *drawn(project, contexts=1, abstain=1.0).rows]
    assert len(rows) > 1
    renderer = Renderer(tiny_tokenizer([*ARTICLES.values(), '{"thought":"The passage says it.","tool":"answer"}']))
    for row in rows:
        searched, target = parts(row)
        (example,) = prepare([row], runtime.frame(), renderer, context=4096, max_tokens=4096)
        ids, marks = example.ids, example.targets
        text = renderer.decode(ids)
        assert all(passage.text in text for passage in searched.passages)
        # Behind the last observation alone anything is to be said, and that is the target step.
        begin = marks.index(True)
        assert searched.observation in renderer.decode(ids[:begin])
        spoken = renderer.decode([one for one, said in zip(ids, marks, strict=True) if said])
        for passage in searched.passages:
            assert passage.document not in spoken
            assert passage.heading not in spoken
            if passage.text not in str(arguments(target).values()):
                assert passage.text not in spoken


@pytest.mark.slow
def test_a_tuning_learns_them_and_says_how_many(project: Project, runtime: Runtime, tmp_path: Path) -> None:
    told(project)
    base = save_base(tmp_path / "tiny", [*ARTICLES.values(), '{"thought":"The passage says it.","tool":"answer"}'])
    model = replace(project.settings.model, base=str(base), threads=1)
    learnt = replace(
        project.settings.tuning, contexts=2, epochs=1, min_steps=1, validation_share=0.0, precision="float32"
    )
    settings = replace(project.settings, model=model, tuning=learnt)
    with Runtime(replace(project, settings=settings), encoder=HashEncoder()) as runtime:
        made = tune(runtime)
    kinds = Counter(row.kind for row in made.dataset.train)
    assert kinds["accepted"] == 1
    assert made.dataset.manifest["contexts"] == {"cited": 1, "among_others": kinds["drawn"], "missing": 0}
    assert kinds["drawn"] > 0
    page = (made.folder / "report.html").read_text("utf-8")
    assert f"{kinds['drawn']} among other passages, 0 with the answer missing" in page
