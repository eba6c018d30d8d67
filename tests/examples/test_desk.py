"""The demo desk: its halves share nothing, its files are what its code builds, its tickets can be solved."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.tools import ToolException

from agent.records.run import Outcome, Provenance, Step, ToolCall, Trajectory
from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge
from tuner.evaluation.checks import score
from tuner.evaluation.suite import SuiteTask, load_suite

DESK = Path(__file__).parents[2] / "examples" / "desk"
SPLITS = ("train", "held_out")
Row = dict[str, Any]


class WordOverlap:
    """Finds sections by the words they share with the query, rare ones first. Serves these tests alone."""

    def __init__(self, folder: Path) -> None:
        self._sections: list[tuple[Passage, set[str]]] = []
        for path in sorted(folder.glob("*.md")):
            title, *sections = re.split(r"^##? ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
            for section in sections:
                heading, text = section.split("\n", 1)
                passage = Passage(0, f"{path.name} {heading}", path.name, f"{title.strip()} > {heading}", text.strip())
                self._sections.append((passage, _stems(f"{title} {section}")))
        spread = Counter(stem for _, stems in self._sections for stem in stems)
        self._weights = {stem: math.log(len(self._sections) / count) ** 2 for stem, count in spread.items()}

    def search(self, query: str, k: int) -> Sequence[Passage]:
        words = _stems(query)
        ranked = sorted(self._sections, key=lambda section: -self._weight(words & section[1], section[1]))
        return [passage for passage, stems in ranked[:k] if words & stems]

    def _weight(self, shared: set[str], stems: set[str]) -> float:
        total, of = (sum(self._weights[stem] for stem in some) for some in (shared, stems))
        return total / math.sqrt(of)


def _stems(text: str) -> set[str]:
    return {re.sub(r"(ing|ed|es|s|e)$", "", word) for word in re.findall(r"[a-z]{2,}", text.lower())}


@pytest.fixture(scope="module")
def desk() -> Iterator[ModuleType]:
    before = set(sys.modules)
    yield _load("tickets")
    for name in set(sys.modules) - before:
        if name.startswith("desk_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def rows(desk: ModuleType) -> dict[str, list[Row]]:
    return {split: desk.build(split) for split in SPLITS}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    _load("desk_database").build(folder / "shop.db")
    return folder


def test_there_is_as_much_of_everything_as_promised(desk: ModuleType, rows: dict[str, list[Row]]) -> None:
    assert len(list((DESK / "articles").glob("*.md"))) >= 60
    assert sum(len(desk.phrasings(split)) for split in SPLITS) >= 260
    assert len(rows["train"]) >= 600
    assert len(rows["held_out"]) >= 240
    refusals = {split: sum(row["check"]["refusal"] for row in rows[split]) for split in SPLITS}
    assert refusals["held_out"] >= 40
    assert sum(refusals.values()) >= 80


def test_the_two_halves_share_no_phrasing(desk: ModuleType, rows: dict[str, list[Row]]) -> None:
    train, held_out = ({_words(p.template) for p in desk.phrasings(split)} for split in SPLITS)
    assert not train & held_out
    ids = [{row["phrasing"] for row in rows[split]} for split in SPLITS]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) >= 260


def test_the_two_halves_share_no_ticket_text_customer_order_or_product(
    rows: dict[str, list[Row]], project: Path
) -> None:
    with closing(sqlite3.connect(project / "shop.db")) as shop:
        names = [name for (name,) in shop.execute("select name from products")]
        orders = {order for (order,) in shop.execute("select id from orders")}
    found = []
    for split in SPLITS:
        texts = " ".join(row["task"]["text"].lower() for row in rows[split])
        named = set(re.findall(r"\d{5}", json.dumps(rows[split])))
        assert named <= orders
        found.append(
            {row["task"]["text"].lower() for row in rows[split]}
            | {row["task"]["facts"]["customer_id"] for row in rows[split]}
            | named
            | {name for name in names if name.lower() in texts}
        )
    assert not found[0] & found[1]


def test_the_two_halves_ask_about_different_articles(rows: dict[str, list[Row]]) -> None:
    train, held_out = ({cited for row in rows[split] for cited in row["check"].get("cites", ())} for split in SPLITS)
    assert not train & held_out
    assert len(held_out) >= 20
    assert all((DESK / "articles" / name).exists() for name in train | held_out)


def test_the_committed_files_are_what_the_code_builds(desk: ModuleType, rows: dict[str, list[Row]]) -> None:
    for split in SPLITS:
        path = DESK / "tickets" / f"{split}.jsonl"
        assert path.read_text(encoding="utf-8") == desk.to_lines(rows[split]), (
            f"{path} is stale; run python examples/desk/tickets.py"
        )


def test_the_committed_files_can_be_read_as_suites() -> None:
    train, held_out = (load_suite(DESK / "tickets" / f"{split}.jsonl") for split in SPLITS)
    assert all(task.solution for task in train.tasks)
    assert not any(task.solution for task in held_out.tasks)


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_sixty_tickets_hold_every_intent(split: str, rows: dict[str, list[Row]]) -> None:
    intents = Counter(row["phrasing"].split("/")[0] for row in rows[split][:60])
    assert set(intents) == {row["phrasing"].split("/")[0] for row in rows[split]}
    assert min(intents.values()) >= 2


@pytest.mark.parametrize("split", SPLITS)
def test_every_ticket_is_solved_by_its_solution(
    split: str, desk: ModuleType, rows: dict[str, list[Row]], project: Path, tmp_path: Path
) -> None:
    loaded, retriever = _load("desk_tools"), WordOverlap(DESK / "articles")
    suite = load_suite(DESK / "tickets" / f"{split}.jsonl")
    wrong = []
    for task, row in zip(suite.tasks, rows[split], strict=True):
        (tmp_path / "shop.db").unlink(missing_ok=True)
        context = ToolContext(tmp_path, project, task.task.facts, retriever)
        run = _run(task, desk.solve(row), loaded.Desk(context), context)
        scores = score(task, run, tmp_path, pristine=project)
        wrong += [] if scores.success else [(task.id, task.task.text, scores.reasons)]
    assert wrong == []


def test_every_solution_searches_with_words_of_the_customer(desk: ModuleType, rows: dict[str, list[Row]]) -> None:
    for row in rows["train"] + rows["held_out"]:
        for step in desk.solve(row):
            if step["tool"] == "search_knowledge":
                assert step["args"]["query"] in row["task"]["text"]


def test_every_solution_fits_the_schemas_of_the_tools(
    desk: ModuleType, rows: dict[str, list[Row]], project: Path, tmp_path: Path
) -> None:
    context = ToolContext(tmp_path, project, {"customer_id": "C1000", "today": "2026-05-14"})
    tools = {tool.name: tool for tool in _load("desk_tools").load_tools(context)}
    assert len(tools) >= 10
    assert {(tool.metadata or {}).get("effect") for tool in tools.values()} == {"read", "workspace"}
    for row in rows["train"] + rows["held_out"]:
        for step in desk.solve(row):
            if step["tool"] in tools:
                tools[step["tool"]].get_input_schema().model_validate(step["args"])
                assert set(step["args"]) == set(tools[step["tool"]].args)


def test_a_run_changes_its_own_copy_of_the_shop_alone(project: Path, tmp_path: Path) -> None:
    before = _dump(project / "shop.db")
    with closing(sqlite3.connect(project / "shop.db")) as shop:
        order, customer = shop.execute("select id, customer_id from orders where status = 'packing'").fetchone()
    facts = {"customer_id": customer, "today": "2026-05-14"}
    tools = {tool.name: tool for tool in _load("desk_tools").load_tools(ToolContext(tmp_path, project, facts))}
    assert tools["cancel_order"].invoke({"order_id": order}) == f"Order {order} is cancelled."
    assert _dump(tmp_path / "shop.db") != before
    assert _dump(project / "shop.db") == before


def test_a_run_without_a_shop_in_the_project_builds_the_same_one(project: Path, tmp_path: Path) -> None:
    facts = {"customer_id": "C1000", "today": "2026-05-14"}
    context = ToolContext(tmp_path / "run", tmp_path / "empty", facts)
    _load("desk_tools").Desk(context).list_orders()
    assert _dump(tmp_path / "run" / "shop.db") == _dump(project / "shop.db")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"desk_under_test_{name}", DESK / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _words(template: str) -> str:
    return " ".join(re.findall(r"[a-z{}_]+", template.lower()))


def _run(task: SuiteTask, solution: list[Row], desk: Any, context: ToolContext) -> Trajectory:
    """What a run that follows the solution would have on record."""
    run = Trajectory(task.id, task.task, Provenance(), "2026-05-14T09:00:00Z")
    for step in solution:
        failed = bool(run.steps) and run.steps[-1].error is not None
        assert ("plan" in step) == (not run.steps or failed)
        run = run.with_step(_step(step, desk, context))
    ended = Outcome.REFUSED if solution[-1]["tool"] == "hand_over" else Outcome.ANSWERED
    return replace(run, outcome=ended)


def _step(step: Row, desk: Any, context: ToolContext) -> Step:
    args = dict(step["args"])
    if isinstance(args.get("citations"), str):
        name = args["citations"].removeprefix("{cite:").removesuffix("}")
        args["citations"] = [passage.label for passage in context.seen if passage.document == name]
    call = ToolCall(step["tool"], args)
    if call.name in ("answer", "hand_over"):
        return Step(call)
    if call.name == "search_knowledge":
        request = {"type": "tool_call", "id": "1", "name": call.name, "args": args}
        message = search_knowledge(context, 3).invoke(request)
        return Step(call, message.text, passages=tuple(message.artifact))
    try:
        return Step(call, getattr(desk, call.name)(**args))
    except ToolException as refusal:
        return Step(call, error=str(refusal))


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as shop:
        return list(shop.iterdump())
