"""A project at work: runs are kept through a kill, taken up again, and branched from their corrections."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage

from agent.errors import AdapterError, StoreError, ToolsError
from agent.feedback import make_rating
from agent.llm.scripted import ScriptedModel, answer, call
from agent.memory.encoder import HashEncoder
from agent.runtime import INTERRUPTED, Runtime
from agent.settings import Project, find_project
from agent.trajectory import Correction, Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory

REPOSITORY = Path(__file__).parent.parent.parent

TOOLS = '''
import time
from langchain_core.tools import tool


def load_tools(context):
    notes = context.workspace / "notes.txt"

    @tool
    def write(text: str) -> str:
        """Write a note."""
        time.sleep(0.02)
        with notes.open("a") as file:
            file.write(text + "\\n")
        return f"{len(notes.read_text().splitlines())} notes"

    @tool
    def send(text: str) -> str:
        """Send a note out into the world."""
        with (context.project / "sent.txt").open("a") as file:
            file.write(text + "\\n")
        return "sent"

    @tool
    def burn() -> str:
        """Fail."""
        raise RuntimeError("on fire")

    write.metadata = {"effect": "workspace"}
    burn.metadata = {"effect": "read"}
    return [write, send, burn]
'''

WORKER = """
import sys
from pathlib import Path
from agent.llm.scripted import ScriptedModel, answer, call
from agent.runtime import Runtime
from agent.settings import find_project
from agent.store import Store
from agent.trajectory import Task

folder, run_id, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
project = find_project(folder, {})
begun = 0
if project.home.database.is_file():
    with Store(project.home.database) as store:
        known = {one.id: one.steps for one in store.runs()}
        begun = known.get(run_id, -1) + 1
        kept = known.get(run_id, 0)
        intent = store.open_intent(run_id) is not None if run_id in known else False
        print("kept", kept, flush=True)
else:
    kept, intent = 0, False
script = [call("write", text=f"note {number}") for number in range(kept + intent, steps)] + [answer("Done.")]
with Runtime(project, model=ScriptedModel(script)) as runtime:
    def tell(event):
        if event.kind == "observed":
            print("step", len(event.trajectory.steps), flush=True)
    if begun:
        made = runtime.resume(run_id, on_event=tell)
    else:
        made = runtime.run(Task("t", "Write."), run_id=run_id, on_event=tell)
    print("ended", made.outcome, flush=True)
"""

OpenRuntime = Callable[[Sequence[AIMessage]], Runtime]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[agent]\nmax_steps = 40\n')
    (tmp_path / "own.py").write_text(TOOLS)
    return find_project(tmp_path, {})


@pytest.fixture
def opened(project: Project) -> Iterator[OpenRuntime]:
    """Runtimes of one project, each with a script; all are closed after the test."""
    made: list[Runtime] = []

    def open_one(replies: Sequence[AIMessage]) -> Runtime:
        made.append(Runtime(project, model=ScriptedModel(replies), encoder=HashEncoder()))
        return made[-1]

    yield open_one
    for runtime in made:
        runtime.close()


def notes(runtime: Runtime, run_id: str) -> list[str]:
    return (runtime.home.workspaces / run_id / "notes.txt").read_text().splitlines()


def correction(run_id: str, step: int, text: str) -> Correction:
    made = ToolCall("write", {"text": text})
    return Correction(f"c-{text}", run_id, step, made, "Better.", (), "ann", "", "2026-01-01T00:00:00Z")


@pytest.mark.slow
def test_kill_9_at_any_instant_loses_no_finished_step_and_resume_goes_on(project: Project) -> None:
    chance = random.Random(7)
    steps, acknowledged, kills, ended = 24, 0, 0, False
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(project.folder), "run-1", str(steps)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as output:
            deadline = 0.0
            for line in output:
                kind, _, value = line.strip().partition(" ")
                if kind == "kept":
                    assert int(value) >= acknowledged
                elif kind == "step":
                    acknowledged = int(value)
                    if not deadline and attempt < 6:
                        deadline = time.monotonic() + chance.uniform(0, 0.08)
                    if deadline and time.monotonic() > deadline:
                        process.send_signal(signal.SIGKILL)
                        kills += 1
                        deadline = float("inf")
                elif kind == "ended":
                    ended = True
                    assert value == "answered"
            process.wait(30)
        if ended:
            break
    assert ended
    assert kills >= 5
    with Runtime(project, model=ScriptedModel([])) as runtime:
        made = runtime.store.get("run-1")
        calls = [step.call.arguments["text"] for step in made.steps[:-1] if step.call is not None]
        assert calls == [f"note {number}" for number in range(steps)]
        # A call that was cut off is made again: a note may stand twice, and none is missing.
        assert set(notes(runtime, "run-1")) == set(calls)


def test_a_run_cut_off_behind_its_last_step_is_only_ended(opened: OpenRuntime) -> None:
    runtime = opened([])
    with opened([call("write", text="a"), answer("Done.")]) as first:
        made = first.run(Task("t", "Write."), run_id="whole")
    cut = replace(made, id="cut", outcome=None, ended_at=None)
    runtime.store.begin(cut)
    again = runtime.resume("cut")
    assert (again.outcome, len(again.steps)) == (Outcome.ANSWERED, 2)
    assert runtime.store.get("cut").outcome is Outcome.ANSWERED


def test_an_interrupted_call_with_an_effect_on_the_world_is_not_made_again(opened: OpenRuntime) -> None:
    with opened([call("write", text="a"), answer("Done.")]) as first:
        made = first.run(Task("t", "Send."), run_id="whole")
    runtime = opened([answer("I do not know whether it was sent.")])
    runtime.store.begin(replace(made, id="cut", steps=made.steps[:1], outcome=None, ended_at=None))
    runtime.store.intend("cut", 1, Step(ToolCall("send", {"text": "a"}), thought="Send."))
    again = runtime.resume("cut")
    assert [step.error for step in again.steps] == [None, INTERRUPTED, None]
    assert not (runtime.project.folder / "sent.txt").exists()
    assert runtime.store.get("cut") == again


def test_a_correction_branches_the_run_and_replays_what_its_workspace_held(opened: OpenRuntime) -> None:
    first = opened([call("write", text="a"), call("send", text="b"), call("write", text="wrong"), answer("Done.")])
    parent = first.run(Task("t", "Write."), run_id="parent")
    with pytest.raises(StoreError, match="has ended"):
        first.resume("parent")
    first.store.correct(correction("parent", 2, "worse"))
    first.store.correct(correction("parent", 2, "right"))
    runtime = opened([call("write", text="more"), answer("All done.")])
    branch = runtime.resume("parent")
    assert (branch.outcome, branch.answer) == (Outcome.ANSWERED, "All done.")
    assert branch.branch is not None
    assert (branch.branch.run, branch.branch.step) == ("parent", 2)
    assert branch.steps[:2] == parent.steps[:2]
    assert [step.author for step in branch.steps] == ["model", "model", "correction", "model", "model"]
    assert notes(runtime, branch.id) == ["a", "right", "more"]
    assert notes(runtime, "parent") == ["a", "wrong"]
    assert (runtime.project.folder / "sent.txt").read_text() == "b\n"
    assert runtime.store.get(branch.id) == branch
    assert runtime.store.get("parent") == parent


def test_a_failure_of_ours_in_a_corrected_step_ends_the_branch_as_crashed(opened: OpenRuntime) -> None:
    runtime = opened([call("write", text="a"), answer("Done.")])
    runtime.run(Task("t", "Write."), run_id="parent")
    runtime.store.correct(replace(correction("parent", 0, "x"), call=ToolCall("burn", {})))
    branch = runtime.resume("parent")
    assert branch.outcome is Outcome.CRASHED
    assert "on fire" in (runtime.store.get(branch.id).error or "")


def test_documents_are_searched_and_cited(opened: OpenRuntime, project: Project) -> None:
    articles = project.folder / "articles"
    articles.mkdir()
    (articles / "returns.md").write_text("# Returns\n\nSend a tent back within thirty days.\n")
    with opened([call("search_knowledge", query="send a tent back"), answer("Thirty days.", 1)]) as runtime:
        runtime.memory.add_folder(articles)
        made = runtime.run(Task("t", "How long?"))
    assert [(one.document, one.heading) for one in made.citations] == [("returns.md", "Returns")]


def test_a_broken_tool_file_is_told_with_its_line(opened: OpenRuntime, project: Project) -> None:
    (project.folder / "own.py").write_text("def load_tools(context):\n    return 1 / 0\n")
    with pytest.raises(ToolsError, match=r"own\.py, line 2: ZeroDivisionError"):
        opened([]).run(Task("t", "Write."))


def test_an_adapter_needs_the_local_model(opened: OpenRuntime) -> None:
    with pytest.raises(AdapterError, match="needs the local model"):
        opened([]).run(Task("t", "Write."), adapter="a-1")


def test_what_was_scrubbed_is_put_back_for_who_asked(opened: OpenRuntime) -> None:
    runtime = opened([answer("Mail went to <email_1>.")])
    made = runtime.run(Task("t", "Mail ann@example.com."))
    assert made.answer == "Mail went to <email_1>."
    assert runtime.reveal(made).answer == "Mail went to ann@example.com."


def test_tools_can_be_looked_at_without_a_run(opened: OpenRuntime) -> None:
    runtime = opened([])
    with runtime.checking_tools(Task("t", "Write.")) as tools:
        assert {"write", "send", "burn", "answer"} <= {tool.name for tool in tools}
    assert not runtime.home.workspaces.exists()
    assert runtime.loaded() == {"base": "scripted", "revision": "", "adapters": {}}


def test_a_correction_is_recalled_by_the_next_run_and_stays_with_its_own_branch(opened: OpenRuntime) -> None:
    runtime = opened([answer("What?"), answer("Noted."), answer("Noted again.")])
    first = runtime.run(Task("one", "note down 12345 please"))
    assert first.provenance.recalled == ()
    runtime.store.correct(correction(first.id, 0, "12345"))
    branch = runtime.resume(first.id)
    assert branch.provenance.recalled == ()
    second = runtime.run(Task("two", "note down 777 please"))
    assert second.provenance.recalled == (Recalled("note down # please", "write", run=first.id),)
    assert runtime.store.get(second.id) == second


def test_right_steps_are_corrections_and_those_of_accepted_runs(opened: OpenRuntime) -> None:
    runtime = opened(
        [call("write", text="a"), answer("One."), call("write", text="b"), answer("Two."), call("write", text="c")]
    )
    for run_id in ("accepted", "corrected", "unjudged"):
        runtime.run(Task(run_id, "Write."), run_id=run_id)
    accepted = runtime.store.get("accepted")
    runtime.store.rate(make_rating(accepted, verdict="up", reviewer="ann", id="r1", at="now"))
    runtime.store.correct(correction("corrected", 0, "better"))
    said = [step.call for step in runtime.right_steps()]
    assert said == [*(step.call for step in accepted.steps), ToolCall("write", {"text": "better"})]


def test_recall_can_be_switched_off(opened: OpenRuntime, project: Project) -> None:
    (project.folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[memory]\nrecall = 0\n', "utf-8")
    runtime = opened([answer("What?"), answer("Noted.")])
    runtime.project = find_project(project.folder, {})
    first = runtime.run(Task("one", "note down 12345 please"))
    runtime.store.correct(correction(first.id, 0, "12345"))
    assert runtime.run(Task("two", "note down 777 please")).provenance.recalled == ()


def test_what_is_recalled_takes_no_more_tokens_than_allowed(opened: OpenRuntime, project: Project) -> None:
    runtime = opened([])
    for number, text in enumerate(("note down 12345 please", "please note this down now", "note it down")):
        run_id = f"r{number}"
        runtime.store.begin(Trajectory(run_id, Task(run_id, text), Provenance(), "now", (Step(None),)))
        runtime.store.correct(replace(correction(run_id, 0, str(number)), plan=(f"plan {number}",)))
    task = Task("new", "note down 777 please")
    whole = runtime.recalled(task)
    assert len(whole) == 3
    assert whole[-1].run == "r0"
    settings = '[tools]\nfiles = ["own.py"]\n[memory]\nrecall_tokens = 24\n'
    (project.folder / "ratchet.toml").write_text(settings, "utf-8")
    runtime.project = find_project(project.folder, {})
    assert runtime.recalled(task) == whole[1:]
