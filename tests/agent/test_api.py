"""The Python API in a script, in asyncio, in a notebook, and beside files that have the names of our packages."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage

from agent import Agent, Outcome, ScriptedModel
from agent.encoders.encoder import HashEncoder
from agent.errors import FeedbackError, MemoryIndexError, SettingsError, TaskError, ToolsError
from agent.llm.scripted import answer, call
from tools import Copied, ToolContext, tool

REPOSITORY = Path(__file__).parents[2]
QUIET = {"memory": {"recall": 0}}


@tool(effect="read")
def find_book(title: Annotated[str, Copied()]) -> str:
    """Look a book up in the catalogue."""
    return f"{title} is in."


@tool(effect="read")
async def count_books(context: ToolContext) -> str:
    """Count the books."""
    await asyncio.sleep(0)
    return f"7 books for {context.facts['reader']}."


@pytest.fixture
def open_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    opened: list[Agent] = []

    def open_one(*replies: AIMessage, **options: Any) -> Agent:
        options = {"tools": [find_book, count_books], "settings": QUIET, **options}
        agent = Agent(project=tmp_path, model=ScriptedModel(replies), encoder=HashEncoder(), **options)
        opened.append(agent)
        return agent

    yield open_one
    for agent in opened:
        agent.close()


def test_a_run_is_corrected_resumed_rated_and_found_again(open_agent: Callable[..., Agent]) -> None:
    agent = open_agent(call("count_books"), answer("7."), answer("Yes, it is in."))
    run = agent.run("Is Walden in?", context={"reader": "Ada"})
    assert (run.answer, run.outcome, run.citations) == ("7.", Outcome.ANSWERED, ())
    assert run.steps[0].observation == "7 books for Ada."
    assert repr(run) == f"<run {run.id}: answered after 2 steps: '7.'>"
    fixed = run.correct(step=0, tool="find_book", arguments={"title": "Walden"}, reviewer="Eve").resume()
    fixed.rate("up", reviewer="Eve")
    assert [step.observation for step in fixed.steps] == ["Walden is in.", "Yes, it is in."]
    assert agent.runs.get() == fixed
    assert [summary.id for summary in agent.runs.list()] == [fixed.id, run.id]
    assert agent.runs.search("it is IN") == (fixed,)
    assert [one.correction.reviewer for one in agent.runs.corrections()] == ["Eve"]
    assert fixed.to_dict()["ratings"][0]["verdict"] == "up"
    agent.runs.set_kind(agent.runs.corrections()[0].correction.id, "fact", reviewer="Eve")
    assert agent.runs.corrections()[0].kind == "fact"


def test_feedback_that_does_not_fit_is_refused(open_agent: Callable[..., Agent]) -> None:
    run = open_agent(answer("7.")).run("How many?")
    with pytest.raises(FeedbackError, match="nothing to correct"):
        run.correct(step=0)
    with pytest.raises(FeedbackError, match="give one of them"):
        run.correct(step=0, output="spam", answer="8.")
    with pytest.raises(FeedbackError, match="has no step 4"):
        run.correct(step=4, answer="8.")


def test_events_are_streamed_and_the_last_one_is_the_end(open_agent: Callable[..., Agent]) -> None:
    agent = open_agent(call("find_book", title="Walden"), answer("Yes."))
    events = list(agent.stream("Is Walden in?"))
    assert events[0].kind == "started"
    assert events[-1].kind == "ended"
    assert agent.runs.get(events[-1].trajectory.id).answer == "Yes."
    with pytest.raises(TaskError, match="the task is empty"):
        list(agent.stream(" "))


def test_a_reader_that_stops_early_cancels_the_run(open_agent: Callable[..., Agent]) -> None:
    released = threading.Event()

    @tool(effect="read")
    def wait() -> str:
        """Wait."""
        released.wait(10)
        return "done"

    agent = open_agent(call("wait"), answer("Yes."), tools=[wait])
    stream = agent.stream("Wait.")
    assert next(stream).kind == "started"
    threading.Timer(0.2, released.set).start()
    stream.close()  # type: ignore[attr-defined]
    assert agent.runs.get().outcome is Outcome.CANCELLED


def test_runs_go_on_beside_each_other_in_asyncio(open_agent: Callable[..., Agent]) -> None:
    agent = open_agent(*[answer("Yes.")] * 5)

    async def work() -> tuple[list[str | None], list[str]]:
        runs = await asyncio.gather(*(agent.arun(f"Question {number}") for number in range(4)))
        return [run.answer for run in runs], [event.kind async for event in agent.astream("One more")]

    answers, kinds = asyncio.run(work())
    assert answers == ["Yes."] * 4
    assert (kinds[0], kinds[-1]) == ("started", "ended")
    assert len(agent.runs.list()) == 5


def test_a_cancelled_call_cancels_its_run(open_agent: Callable[..., Agent]) -> None:
    @tool(effect="read")
    def wait() -> str:
        """Wait."""
        time.sleep(0.3)
        return "done"

    agent = open_agent(call("wait"), answer("Yes."), tools=[wait])

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(agent.arun("Wait."), 0.15)

    asyncio.run(work())
    assert agent.runs.get().outcome is Outcome.CANCELLED


def test_a_cell_of_a_notebook_runs_inside_a_running_event_loop(open_agent: Callable[..., Agent]) -> None:
    agent = open_agent(call("count_books"), answer("7."))
    cell = compile("run = agent.run('How many?', context={'reader': 'Ada'})\nshown = repr(run)", "<cell>", "exec")
    names: dict[str, Any] = {"agent": agent}

    async def kernel() -> None:
        exec(cell, names)

    asyncio.run(kernel())
    assert names["run"].steps[0].observation == "7 books for Ada."
    assert names["shown"].endswith("answered after 2 steps: '7.'>")


def test_documents_are_read_before_the_first_run_and_cited(open_agent: Callable[..., Agent], folder: Path) -> None:
    agent = open_agent(call("search_knowledge", query="tent"), answer("Within thirty days.", 1), documents=folder)
    run = agent.run("When may I return a tent?")
    assert [passage.document for passage in run.citations] == ["returns.md"]
    assert [document.name for document in agent.documents.list()] == ["returns.md", "shipping.md", "stoves.txt"]
    assert agent.documents.search("parcels", 1)[0].document == "shipping.md"
    (folder / "stoves.txt").unlink()
    assert [report.removed for report in agent.documents.sync()] == [("stoves.txt",)]
    agent.documents.remove("shipping.md")
    assert [document.name for document in agent.documents.list()] == ["returns.md"]


def test_what_a_person_said_is_forgotten(open_agent: Callable[..., Agent]) -> None:
    agent = open_agent(answer("Yes."), answer("No."))
    agent.run("Is Walden in?", context={"reader": "C1040"})
    other = agent.run("Is Emma in?", context={"reader": "C1041"})
    assert len(agent.forget("C1040", dry_run=True).runs.runs) == 1
    assert len(agent.runs.list()) == 2
    agent.forget("C1040")
    assert [summary.id for summary in agent.runs.list()] == [other.id]


def test_adapters_and_suites_are_listed_where_there_are_none(open_agent: Callable[..., Agent], tmp_path: Path) -> None:
    agent = open_agent()
    assert (agent.adapters.list(), agent.adapters.history(), agent.adapters.active()) == ((), (), None)
    assert (agent.encoder_adapters.list(), agent.encoder_adapters.active(), agent.tasks.list()) == ((), None, ())


def test_arguments_of_the_agent_that_do_not_hold_are_refused(open_agent: Callable[..., Agent], tmp_path: Path) -> None:
    def free(keys: dict[str, str]) -> str:
        """Take anything."""
        return str(keys)

    def unannotated(title) -> str:  # type: ignore[no-untyped-def]
        """Find."""
        return str(title)

    with pytest.raises(ToolsError, match=r"test_api\.py, line \d+: unannotated: argument 'title' has no annotation"):
        open_agent(tools=[unannotated])
    with pytest.raises(ToolsError, match="tool free, argument 'keys': an object with arbitrary keys"):
        open_agent(tools=[free])
    with pytest.raises(ToolsError, match="'find_book' is taken by Agent"):
        open_agent(tools=[find_book, find_book])
    with pytest.raises(MemoryIndexError, match="is not a folder of documents"):
        open_agent(documents=tmp_path / "none")
    with pytest.raises(SettingsError) as caught:
        open_agent(settings={"agent": {"max_steps": "four"}, "agnt": {}, "tools": {"file": ()}})
    assert len(caught.value.faults) == 3
    with pytest.raises(TaskError, match="context 'reader' is 7, expected a text"):
        open_agent().run("Hello", context={"reader": 7})


def test_settings_and_instructions_of_the_program_go_before_those_of_the_file(
    open_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    (tmp_path / "ratchet.toml").write_text('[agent]\ninstructions = "Be short."\nmax_steps = 3\n')
    agent = open_agent(instructions="Be long.", home=tmp_path / "elsewhere")
    assert agent.project.settings.agent.instructions == "Be long."
    assert agent.project.settings.agent.max_steps == 3
    assert agent.project.home.root == tmp_path / "elsewhere"


def test_the_quickstart_runs(open_agent: Callable[..., Agent], capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("quickstart", REPOSITORY / "examples" / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    replies = [call("find_book", title="Waldo"), answer("No."), answer("Yes, Walden is in.")]
    quickstart.main(open_agent(*replies, tools=[quickstart.find_book]))
    assert capsys.readouterr().out == "No. ()\nYes, Walden is in.\n"


SCRIPT = """
from agent import Agent, ScriptedModel
from agent.llm.scripted import answer
with Agent(model=ScriptedModel([answer("Yes.")]), settings={"memory": {"recall": 0}}) as agent:
    print(agent.run("Is Walden in?").answer)
"""


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_script_needs_no_settings_file(tmp_path: Path) -> None:
    done = run_script(tmp_path)
    assert (done.stdout, done.stderr) == ("Yes.\n", "")
    assert (tmp_path / ".ratchet" / "ratchet.db").is_file()


@pytest.mark.parametrize("name", ["tools.py", "tools/__init__.py", "tuner.py"])
def test_a_file_that_hides_a_package_of_ours_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    done = run_script(tmp_path)
    package = name.partition("/")[0].removesuffix(".py")
    assert f"ImportError: `{package}` is {tmp_path / name}, which hides the package `{package}`" in done.stderr
    assert f"rename yours (for example my_{package}.py)" in done.stderr


@pytest.mark.slow
def test_the_real_model_is_corrected_and_tuned(tmp_path: Path, models_folder: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(models_folder)
    settings = {**QUIET, "tuning": {"epochs": 1, "min_steps": 2, "validation_share": 0.0}}
    steps: list[int] = []
    with Agent(tools=[find_book], project=tmp_path, home=home, settings=settings) as agent:
        run = agent.run("Is Walden in?")
        assert run.steps
        fixed = run.correct(step=0, tool="find_book", arguments={"title": "Walden"}, reviewer="Eve").resume()
        assert fixed.steps[0].observation == "Walden is in."
        fixed.rate("up", reviewer="Eve")
        candidate = agent.tune(on_progress=lambda progress: steps.append(progress.step))
        assert steps
        assert agent.adapters.get(candidate.id).adapter.state == "trained"
        assert candidate.report is not None
        assert candidate.report.is_file()
        assert agent.run("Is Emma in?", adapter=candidate.id).adapter == candidate.id
