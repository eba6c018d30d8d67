"""Which tasks began alike, which part each is in, and what is kept of that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agent.errors import DatasetError
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.feedback import Arbitration, Correction, Kind, Rating
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store
from tools.context import Passage
from tuner.encoder.dataset import (
    FirstCallTask,
    RelevanceJudgement,
    make_dataset,
    part_of_group,
    read_encoder_dataset,
    write_encoder_dataset,
)
from tuner.encoder.first_calls import (
    HELD_OUT,
    VALIDATION,
    contrastive_tasks,
    explain_too_few,
    read_first_call_tasks,
    with_label_names,
)
from tuner.encoder.queries import gather_dataset

AT = "2026-01-01T00:00:00Z"
DESKS = ("lost_card", "exchange_rates", "cash")


def spec(name: str, **choices: tuple[str, ...]) -> ToolSpec:
    properties: dict[str, Mapping[str, Any]] = {one: {"enum": list(values)} for one, values in choices.items()}
    return ToolSpec(name, "", {"type": "object", "properties": {**properties, "note": {"type": "string"}}})


TOOLS = (spec("route", desk=DESKS), spec("send", to=("cash",), tone=("warm", "plain")), spec("search_knowledge"))


def began(store: Store, run: str, text: str, tool: str, **arguments: str) -> None:
    """A run that people accepted."""
    steps = (Step(ToolCall(tool, arguments), "done"), Step(ToolCall("answer", {"text": "So."})))
    store.begin(Trajectory(run, Task(f"t-{run}", text), Provenance(), AT, steps, Outcome.ANSWERED, None, AT))
    store.feedback.add_rating(Rating(f"r-{run}", run, "up", "ann", "", AT))


def correct(store: Store, run: str, tool: str, **arguments: str) -> str:
    id = f"c-{run}-{'-'.join(arguments.values())}"
    store.feedback.add_correction(Correction(id, run, 0, ToolCall(tool, arguments), "", (), "bob", "", AT))
    return id


def set_kind(store: Store, run: str, correction: str, kind: Kind) -> None:
    store.feedback.add_arbitration(Arbitration(f"a-{run}", run, correction, kind, "reviewer", "bob", "so", AT))


def labels(store: Store) -> dict[str, str]:
    return {one.text: one.label for one in read_first_call_tasks(store, TOOLS)}


def test_tasks_are_labelled_by_the_first_call_and_by_what_it_chose(store: Store) -> None:
    began(store, "a", "my card is gone", "route", desk="lost_card", note="urgent")
    began(store, "b", "the card was stolen", "route", desk="lost_card", note="calm")
    began(store, "c", "order 12345 came with the wrong money", "send", to="cash", tone="warm")
    began(store, "d", "what are your hours", "search_knowledge", query="hours")
    found = read_first_call_tasks(store, TOOLS)
    assert [(one.text, one.label, one.name) for one in found] == [
        ("my card is gone", "route(desk=lost_card)", "lost card"),
        ("the card was stolen", "route(desk=lost_card)", "lost card"),
        ("order # came with the wrong money", "send(to=cash, tone=warm)", "cash warm"),
        ("what are your hours", "search_knowledge()", ""),
    ]


def test_a_corrected_beginning_counts_as_corrected_and_one_that_nobody_stands_behind_does_not(store: Store) -> None:
    began(store, "a", "my card is gone", "route", desk="cash")
    correct(store, "a", "route", desk="lost_card")
    began(store, "b", "how many euros for a pound", "route", desk="exchange_rates")
    began(store, "c", "nobody likes this", "route", desk="cash")
    store.feedback.add_rating(Rating("down", "c", "down", "ann", "", AT))
    began(store, "d", "a tool that is gone", "fax", to="cash")
    assert labels(store) == {
        "my card is gone": "route(desk=lost_card)",
        "how many euros for a pound": "route(desk=exchange_rates)",
    }


def test_corrections_that_are_not_trained_are_left_out(store: Store) -> None:
    for run, desk in (("a", "cash"), ("b", "lost_card")):
        began(store, run, f"kept {run}", "route", desk=desk)
    kinds: dict[str, Kind] = {"fact": "fact", "exception": "exception"}
    for name, kind in kinds.items():
        began(store, name, f"this is {name}", "route", desk="cash")
        set_kind(store, name, correct(store, name, "route", desk="lost_card"), kind)
    for run in ("newer", "superseded"):
        began(store, run, "the same request", "route", desk="cash")
    correct(store, "superseded", "route", desk="lost_card")
    correct(store, "newer", "route", desk="exchange_rates")
    assert labels(store) == {
        "kept a": "route(desk=cash)",
        "kept b": "route(desk=lost_card)",
        "the same request": "route(desk=exchange_rates)",
    }


def test_of_equal_texts_the_newest_run_counts_and_one_beginning_alone_teaches_nothing(store: Store) -> None:
    began(store, "a", "my card  is gone", "route", desk="cash")
    began(store, "b", "My card is gone", "route", desk="lost_card")
    assert labels(store) == {}
    began(store, "c", "how many euros for a pound", "route", desk="exchange_rates")
    assert labels(store) == {
        "My card is gone": "route(desk=lost_card)",
        "how many euros for a pound": "route(desk=exchange_rates)",
    }


def task(text: str, label: str, name: str = "", part: str = "train") -> FirstCallTask:
    return FirstCallTask(text, label, name, part)  # type: ignore[arg-type]


def test_the_names_of_labels_are_examples_of_them_unless_two_share_one() -> None:
    tasks = [
        task("a", "route(desk=lost_card)", "lost card"),
        task("b", "route(desk=lost_card)", "lost card"),
        task("c", "route(desk=cash)", "cash"),
        task("d", "send(to=cash)", "Cash"),
        task("e", "search_knowledge()"),
    ]
    assert with_label_names(tasks)[5:] == [("lost card", "route(desk=lost_card)")]
    assert [text for text, _ in with_label_names(tasks)[:5]] == ["a", "b", "c", "d", "e"]


def test_tasks_that_are_queries_are_not_brought_together() -> None:
    tasks = [
        task("which card", "search_knowledge()"),
        task("order # is late", "search_knowledge()"),
        task("hello", "answer()"),
        task("hi", "answer()"),
        task("money", "hand_over()", part="validation"),
    ]
    queries = tuple(RelevanceJudgement(text, ("p",), (), "train") for text in ("Which card", "order 12345 is late"))
    assert contrastive_tasks(make_dataset((), {}, tasks), "train") == tuple(tasks[:4])
    assert contrastive_tasks(make_dataset(queries[:1], {}, tasks), "train") == tuple(tasks[1:4])
    assert contrastive_tasks(make_dataset(queries[:1], {}, tasks), "validation") == (tasks[4],)
    for part in ("train", "validation"):
        assert contrastive_tasks(make_dataset(queries, {}, tasks), part) == (), "one beginning is left"


def many(count: int = 60) -> list[tuple[str, str]]:
    """Texts and desks of made-up messages."""
    return [(f"message {number} about {DESKS[number % 3]}", DESKS[number % 3]) for number in range(count)]


def test_too_few_says_what_there_is_and_what_is_needed(store: Store) -> None:
    for number, (text, desk) in enumerate(many()):
        began(store, f"m{number}", text, "route", desk=desk)
    tasks = read_first_call_tasks(store, TOOLS)
    assert explain_too_few(tasks) is None
    assert explain_too_few([one for one in tasks if one.part != "validation"]) is not None
    assert explain_too_few([one for one in tasks if one.part != "held_out"]) is not None
    others = [one for one in tasks if one.part != "validation"]
    assert explain_too_few([*others, task("x", "label 1", part="validation")]) is not None, (
        "nothing like it is trained on"
    )
    assert explain_too_few([*others, task("x", "route(desk=cash)", part="validation")]) is None
    single = [task(str(number), f"label {number}") for number in range(20)]
    watching = [task("y", "label 2", part="validation"), task("z", "label 3", part="held_out")]
    assert explain_too_few([*single, *watching]) is not None, "no two texts are alike"
    assert explain_too_few([*single, task("x", "label 1"), *watching]) is None
    assert str(explain_too_few(())).startswith(
        "0 tasks with 0 different first calls are too few: 0 for training, 0 for validation"
    )


def test_parts_have_the_shares_they_should_and_never_change(store: Store) -> None:
    messages = many(60)
    for number, (text, desk) in enumerate(messages[:30]):
        began(store, f"m{number}", text, "route", desk=desk)
    before = {one.text: one.part for one in read_first_call_tasks(store, TOOLS)}
    for number, (text, desk) in enumerate(messages[30:], 30):
        began(store, f"m{number}", text, "route", desk=desk)
    after = {one.text: one.part for one in read_first_call_tasks(store, TOOLS)}
    assert {text: after[text] for text in before} == before
    assert after == {text: part_of_group(text, held_out=HELD_OUT, validation=VALIDATION) for text in after}
    parts = [part_of_group(str(number), held_out=HELD_OUT, validation=VALIDATION) for number in range(2000)]
    assert abs(parts.count("held_out") / len(parts) - HELD_OUT) < 0.03
    assert abs(parts.count("validation") / len(parts) - VALIDATION) < 0.02


def cites(store: Store, run: str, text: str) -> None:
    """A run that searched, and whose answer cites what it found."""
    found = Passage(1, f"p-{run}", f"{run}.md", "Help", f"All about {run}.")
    steps = (
        Step(ToolCall("search_knowledge", {"query": f"about {text}"}), "found", passages=(found,)),
        Step(ToolCall("answer", {"text": "So.", "citations": [1]})),
    )
    store.begin(Trajectory(run, Task(f"t-{run}", text), Provenance(), AT, steps, Outcome.ANSWERED, None, AT))
    store.feedback.add_rating(Rating(f"r-{run}", run, "up", "ann", "", AT))


def test_datasets_are_of_queries_of_tasks_or_of_both_as_there_are_enough(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no feedback to tune the encoder with"):
        gather_dataset(store, lambda ids: {}, tools=TOOLS)
    for number, (text, desk) in enumerate(many(4)):
        began(store, f"few-{number}", text, "route", desk=desk)
    cites(store, "c0", "which card")
    with pytest.raises(DatasetError) as fault:
        gather_dataset(store, lambda ids: {}, tools=TOOLS)
    assert "2 queries with right passages are too few" in str(fault.value)
    assert "5 tasks with 4 different first calls are too few" in str(fault.value)
    for number, (text, desk) in enumerate(many()[4:]):
        began(store, f"m{number}", text, "route", desk=desk)
    tasks_alone = gather_dataset(store, lambda ids: {}, tools=TOOLS)
    assert (len(tasks_alone.judgements), len(tasks_alone.passages), len(tasks_alone.tasks)) == (0, 0, 61)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"query": "a", "positive": "b"}))
    with pytest.raises(DatasetError, match="3 queries with right passages are too few"):
        gather_dataset(store, lambda ids: {}, tools=TOOLS, pairs=pairs)
    for number in range(40):
        cites(store, f"q{number}", f"question {number}")
    both = gather_dataset(store, lambda ids: {}, tools=TOOLS)
    assert both.judgements
    assert len(both.tasks) == 101
    queries_alone = gather_dataset(store, lambda ids: {})
    assert (len(queries_alone.judgements), queries_alone.tasks) == (len(both.judgements), ())
    assert len({one.hash for one in (tasks_alone, both, queries_alone)}) == 3


def test_a_text_that_is_held_out_as_a_query_is_no_task_to_train_on_nor_the_other_way(store: Store) -> None:
    for number, (text, desk) in enumerate(many(40)):
        began(store, f"m{number}", text, "route", desk=desk)
    numbers = range(10_000, 10_040)
    for number in numbers:
        cites(store, f"q{number}", f"{number % 100} questions of order {number}")
    dataset = gather_dataset(store, lambda ids: {}, tools=TOOLS)
    queries = {one.query: one.part == "held_out" for one in dataset.judgements}
    tasks = {one.text: one.part == "held_out" for one in dataset.tasks}
    held = [queries[f"{number % 100} questions of order {number}"] for number in numbers]
    assert held == [tasks[f"{number % 100} questions of order #"] for number in numbers]
    assert 0 < sum(held) < len(held)


def test_tasks_are_read_back_as_they_were_and_a_changed_file_is_refused(store: Store, tmp_path: Path) -> None:
    for number, (text, desk) in enumerate([*many(), ("an odd\u2028end", "cash")]):
        began(store, f"m{number}", text, "route", desk=desk)
    dataset = gather_dataset(store, lambda ids: {}, tools=TOOLS)
    folder = write_encoder_dataset(dataset, tmp_path, created_at=AT)
    assert read_encoder_dataset(folder) == dataset
    assert json.loads((folder / "manifest.json").read_text())["tasks"] == {
        part: len(dataset.tasks_in(part)) for part in ("held_out", "validation", "train")
    }
    path = folder / "tasks.jsonl"
    path.write_text(path.read_text("utf-8").replace("held_out", "train", 1), encoding="utf-8")
    with pytest.raises(DatasetError, match="its hash differs"):
        read_encoder_dataset(folder)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_encoder_dataset(folder)


def test_a_folder_of_version_1_has_no_tasks(tmp_path: Path) -> None:
    dataset = make_dataset((RelevanceJudgement("a", (), (), "train"),), {})
    folder = tmp_path / "encoder-old"
    folder.mkdir()
    (folder / "queries.jsonl").write_text(json.dumps(asdict(dataset.judgements[0])) + "\n")
    (folder / "passages.jsonl").write_text("")
    manifest = {"version": 1, "hash": dataset.hash, "created_at": AT, "queries": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_encoder_dataset(folder) == dataset
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(DatasetError, match="version 3, this code reads 1 and 2"):
        read_encoder_dataset(folder)
