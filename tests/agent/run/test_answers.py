"""Runs whose answers are checked: what is given, what is kept, what a watcher sees, and what is learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool

from agent.cli.main import main
from agent.config.project import find_project
from agent.encoders.encoder import HashEncoder
from agent.grounding.check import Mode
from agent.llm.scripted import ScriptedModel, answer, call
from agent.records.feedback import Correction, Rating
from agent.records.run import Outcome, Task, ToolCall, Trajectory
from agent.run.loop import run
from agent.run.state import Event, Options
from agent.run.views import event_view, result_view, run_view
from agent.runtime import Runtime
from agent.storage.store import Store
from tools.basics import answer as answer_tool
from tools.basics import hand_over
from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge
from tuner.data.curate import curate

TRUE = "Kayaks are rented from 9 o'clock."
MADE_UP = "Dogs swim for free."
BOTH = f"{TRUE} {MADE_UP}"
NONE = "The documents do not say. Shall I hand this over to a person?"
SEARCH = call("search_knowledge", query="kayaks")


class Shelf:
    """Two passages, whatever is asked."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        found = [("a", "rent.md", "Boats > Kayaks", TRUE), ("b", "lake.md", "Lake", "The lake is 12 metres deep.")]
        return [Passage(0, *one, score=0.9) for one in found][:k]


def made_tools(folder: Path) -> list[BaseTool]:
    """Those of one run."""
    return [search_knowledge(ToolContext(folder, folder, retriever=Shelf())), answer_tool(), hand_over()]


@pytest.fixture
def tools(tmp_path: Path) -> list[BaseTool]:
    return made_tools(tmp_path)


def done(tools: Sequence[BaseTool], mode: Mode, *replies: AIMessage, task: str = "Kayaks?", **rest: Any) -> Trajectory:
    options = Options(grounded=mode)
    return run(Task("t", task), ScriptedModel(replies), tools, options=options, encoder=HashEncoder, **rest)


@pytest.mark.parametrize(
    ("mode", "given", "withheld", "cited"),
    [
        ("off", BOTH, (), ["lake.md"]),
        ("mark", f"{BOTH} [not in the documents]", (), ["lake.md"]),
        ("withhold", TRUE, (MADE_UP,), ["rent.md"]),
    ],
)
def test_an_answer_is_given_as_the_setting_says_and_kept_as_it_was_said(
    tools: list[BaseTool], store: Store, mode: Mode, given: str, withheld: tuple[str, ...], cited: list[str]
) -> None:
    made = done(tools, mode, SEARCH, answer(BOTH, 2), recorder=store)
    assert (made.outcome, made.answer) == (Outcome.ANSWERED, given)
    assert [passage.document for passage in made.citations] == cited
    last = made.steps[-1]
    assert last.call == ToolCall("answer", {"text": BOTH, "citations": [2]})
    assert last.withheld == withheld
    assert (last.grounding is None) == (mode == "off")
    assert store.get(made.id) == made


@pytest.mark.parametrize(
    ("task", "reply"), [("Dogs?", NONE), ("狗可以游泳吗\uff1f", "文档中没有相关说明。需要为您转接人工吗\uff1f")]
)
def test_with_nothing_left_the_documents_do_not_say(tools: list[BaseTool], task: str, reply: str) -> None:
    made = done(tools, "withhold", SEARCH, answer(MADE_UP, 1), task=task)
    assert (made.answer, made.citations) == (reply, ())


def test_an_answer_before_anything_was_shown_is_withheld(tools: list[BaseTool]) -> None:
    assert done(tools, "withhold", answer(TRUE)).answer == NONE


def test_a_hand_over_is_not_checked(tools: list[BaseTool]) -> None:
    made = done(tools, "withhold", call("hand_over", reason="Dogs are not mine."))
    assert (made.outcome, made.steps[-1].grounding) == (Outcome.REFUSED, None)


def test_who_watches_sees_nothing_that_is_withheld(tools: list[BaseTool]) -> None:
    events: list[Event] = []
    done(tools, "withhold", SEARCH, answer(BOTH), on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds == ["started", "proposed", "observed", "proposed", "observed", "ended"]
    views = [event_view(event) for event in events]
    assert all(MADE_UP not in json.dumps(view) for view in views[:4])
    assert views[4]["step"]["call"]["arguments"]["text"] == TRUE
    assert views[4]["step"]["observation"] == TRUE
    assert views[5]["answer"] == TRUE


def test_without_withholding_the_text_is_streamed(tools: list[BaseTool]) -> None:
    events: list[Event] = []
    done(tools, "mark", SEARCH, answer(BOTH), on_event=events.append)
    proposed = [event.step.call for event in events if event.kind == "proposed" and event.step is not None]
    assert proposed[-1] == ToolCall("answer", {"text": BOTH, "citations": []})


def test_a_run_that_is_to_be_checked_needs_an_encoder(tools: list[BaseTool]) -> None:
    with pytest.raises(ValueError, match="there is no encoder; give one"):
        run(Task("t", "?"), ScriptedModel([]), tools, options=Options(grounded="mark"))


def test_the_views_tell_what_each_sentence_rests_on(tools: list[BaseTool]) -> None:
    made = done(tools, "withhold", SEARCH, answer(BOTH))
    for view in (result_view(made), run_view(made)):
        assert view["answer"] == TRUE
        first, second = view["grounding"]["sentences"]
        assert first["evidence"] == ({"text": TRUE, "label": 1, "document": "rent.md", "heading": "Boats > Kayaks"},)
        assert (first["supported"], first["withheld"]) == (True, False)
        assert (second["text"], second["supported"], second["withheld"]) == (MADE_UP, False, True)
    assert run_view(made)["steps"][-1]["call"]["arguments"]["text"] == BOTH
    assert result_view(done(tools, "off", answer(BOTH)))["grounding"] is None


AT = "2026-01-01T00:00:00Z"


def test_what_was_withheld_is_never_learnt(tmp_path: Path, store: Store) -> None:
    whole = done(made_tools(tmp_path), "withhold", SEARCH, answer(TRUE, 1), run_id="whole", recorder=store)
    cut = done(made_tools(tmp_path), "withhold", SEARCH, answer(BOTH, 1), run_id="cut", recorder=store)
    fixed = done(made_tools(tmp_path), "withhold", SEARCH, answer(BOTH, 1), run_id="fixed", recorder=store)
    for number, made in enumerate((whole, cut)):
        store.feedback.add_rating(Rating(f"r{number}", made.id, "up", "ann", "", AT))
    right = ToolCall("answer", {"text": TRUE, "citations": [1]})
    store.feedback.add_correction(Correction("c", fixed.id, 1, right, "", (), "ann", "", AT))
    rows = {row.run: row for row in curate(store).rows}
    assert sorted(rows["whole"].targets) == [0, 1]
    assert sorted(rows["cut"].targets) == [0]
    assert rows["fixed"].targets[1].call == right
    assert all(MADE_UP not in repr(row.targets) for row in rows.values())


TOOLS = """
from langchain_core.tools import tool


@tool
def look(order: int) -> str:
    \"\"\"Look an order up.\"\"\"
    return f"Order {order} went to ann@example.com on Monday."


look.metadata = {"effect": "read"}
TOOLS = [look]
"""
LOOK = call("look", order=41)
SAY = answer("Order 41 went to <email_1> on Monday. It arrives tomorrow.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(TOOLS)
    (tmp_path / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[agent]\ngrounded = "withhold"\n')
    return tmp_path


def test_the_setting_holds_for_a_project_and_for_a_run_that_is_resumed(folder: Path) -> None:
    with Runtime(find_project(folder, {}), model=ScriptedModel([LOOK, SAY, SAY]), encoder=HashEncoder()) as runtime:
        made = runtime.run(Task("t", "Where is order 41?"))
        assert made.answer == "Order 41 went to <email_1> on Monday."
        assert runtime.reveal(made).answer == "Order 41 went to ann@example.com on Monday."
        assert runtime.reveal(made).steps[-1].withheld == ("It arrives tomorrow.",)
        fix = Correction("c", made.id, 0, ToolCall("look", {"order": 41}), "", (), "ann", "", AT)
        runtime.store.feedback.add_correction(fix)
        assert runtime.resume(made.id).steps[-1].withheld == ("It arrives tomorrow.",)


def test_a_persons_own_answer_is_given_whole(folder: Path) -> None:
    with Runtime(find_project(folder, {}), model=ScriptedModel([LOOK, SAY]), encoder=HashEncoder()) as runtime:
        made = runtime.run(Task("t", "Where is order 41?"))
        call_ = ToolCall("answer", {"text": "It arrives tomorrow.", "citations": []})
        runtime.store.feedback.add_correction(Correction("c", made.id, 1, call_, "", (), "ann", "", AT))
        branch = runtime.resume(made.id)
        assert (branch.answer, branch.steps[-1].grounding) == ("It arrives tomorrow.", None)


def test_the_command_line_gives_what_is_supported_and_show_tells_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ratchet(*words: str) -> int:
        return main(
            ["--project", str(folder), *words],
            open_runtime=lambda project, progress: Runtime(
                project, model=ScriptedModel([LOOK, SAY]), encoder=HashEncoder(), progress=progress
            ),
        )

    assert ratchet("run", "Where is order 41?") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "Order 41 went to ann@example.com on Monday.",
        "  withheld: 1 sentence without support in the observations",
    ]
    assert "tomorrow" not in shown.err
    assert ratchet("show", "last") == 0
    kept = capsys.readouterr().out
    assert "  supported (1.00): Order 41 went to <email_1> on Monday." in kept
    assert "    a tool: Order 41 went to <email_1> on Monday." in kept
    assert "): It arrives tomorrow." in kept
    assert "  reply: Order 41 went to <email_1> on Monday." in kept
