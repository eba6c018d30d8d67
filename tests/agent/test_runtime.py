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
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from agent.config.project import Project, find_project
from agent.encoders.encoder import HashEncoder
from agent.errors import AdapterError, StoreError, ToolsError
from agent.feedback.approved import newest_approved_steps
from agent.feedback.validation import make_correction, make_rating
from agent.llm.scripted import ScriptedModel, answer, call
from agent.records.feedback import Correction
from agent.records.run import Outcome, Provenance, Recalled, Step, Task, ToolCall, Trajectory
from agent.run.resume import INTERRUPTED
from agent.run.tools import make_frame
from agent.runtime import Runtime

REPOSITORY = Path(__file__).parents[2]

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
from agent.config.project import find_project
from agent.storage.store import Store
from agent.records.run import Task

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
    assert [step.effect_unknown for step in again.steps] == [False, True, False]
    assert not (runtime.project.folder / "sent.txt").exists()
    assert runtime.store.get("cut") == again


def test_a_correction_branches_the_run_and_replays_what_its_workspace_held(opened: OpenRuntime) -> None:
    first = opened([call("write", text="a"), call("send", text="b"), call("write", text="wrong"), answer("Done.")])
    parent = first.run(Task("t", "Write."), run_id="parent")
    with pytest.raises(StoreError, match="has ended"):
        first.resume("parent")
    first.store.feedback.add_correction(correction("parent", 2, "worse"))
    first.store.feedback.add_correction(correction("parent", 2, "right"))
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


def test_a_step_whose_tool_raised_is_corrected_and_the_run_taken_up_from_there(opened: OpenRuntime) -> None:
    first = opened([call("write", text="a"), call("burn")])
    parent = first.run(Task("t", "Write."), run_id="parent")
    assert parent.outcome is Outcome.CRASHED, "the model has nothing more to say"
    assert [step.error for step in first.store.get("parent").steps] == [None, "burn raised RuntimeError: on fire."]
    with first.checking_tools(parent.task) as tools:
        frame = make_frame(tools, first.options)
        given: dict[str, Any] = {
            "tools": tools,
            "frame": frame,
            "scrubber": None,
            "reviewer": "ann",
            "id": "c-1",
            "at": "now",
        }
        first.store.feedback.add_correction(make_correction(parent, 1, tool="write", arguments={"text": "b"}, **given))
    runtime = opened([answer("Done.")])
    branch = runtime.resume("parent")
    assert (branch.outcome, branch.answer) == (Outcome.ANSWERED, "Done.")
    assert [step.error for step in branch.steps] == [None, None, None]
    assert notes(runtime, branch.id) == ["a", "b"]


def test_a_corrected_step_whose_tool_raises_does_not_end_the_branch(opened: OpenRuntime) -> None:
    opened([call("write", text="a"), answer("Done.")]).run(Task("t", "Write."), run_id="parent")
    runtime = opened([answer("It failed.")])
    runtime.store.feedback.add_correction(replace(correction("parent", 0, "x"), call=ToolCall("burn", {})))
    branch = runtime.resume("parent")
    assert (branch.outcome, branch.steps[0].error) == (Outcome.ANSWERED, "burn raised RuntimeError: on fire.")


def test_a_run_that_crashed_before_its_first_step_is_to_be_started_again(opened: OpenRuntime) -> None:
    runtime = opened([])
    assert runtime.run(Task("t", "Write."), run_id="empty").outcome is Outcome.CRASHED
    with pytest.raises(StoreError, match=r"has ended \(crashed\).*; start the task again"):
        runtime.resume("empty")


def test_a_shared_call_that_fails_when_it_is_repeated_is_told_with_its_step(
    opened: OpenRuntime, project: Project
) -> None:
    runtime = opened([call("write", text="a"), answer("Done.")])
    runtime.run(Task("t", "Write."), run_id="parent")
    runtime.store.feedback.add_correction(correction("parent", 1, "b"))
    (project.folder / "own.py").write_text(TOOLS.replace("time.sleep(0.02)", "raise SystemExit(0)"))
    with pytest.raises(ToolsError, match=r"step 0 \(write\) succeeded in the run and fails when it is repeated"):
        runtime.resume("parent")


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


def masked_correction(runtime: Runtime, run: Trajectory, text: str) -> Correction:
    with runtime.checking_tools(run.task) as tools:
        frame, scrubber = make_frame(tools, runtime.options), runtime.scrubber_of(run)
        words: dict[str, Any] = {"reviewer": "ann", "id": text, "at": "now"}
        arguments = {"text": text}
        return make_correction(
            run, 0, tools=tools, frame=frame, scrubber=scrubber, tool="write", arguments=arguments, **words
        )


def test_a_correction_has_the_placeholders_of_its_run_and_its_tool_gets_the_values(opened: OpenRuntime) -> None:
    runtime = opened([call("write", text="to <email_1>"), answer("Done."), answer("Done again.")])
    made = runtime.run(Task("t", "Write to ann@example.com."), run_id="run")
    fix = masked_correction(runtime, made, "to ann@example.com and jo@x.example")
    assert fix.call.arguments == {"text": "to <email_1> and <email_2>"}
    runtime.store.feedback.add_correction(fix)
    branch = runtime.resume("run")
    assert branch.steps[0].call == fix.call
    assert notes(runtime, branch.id) == ["to ann@example.com and jo@x.example"]
    assert b"jo@x.example" not in runtime.store.path.read_bytes()


def test_a_value_that_is_not_known_any_more_gets_a_placeholder_that_stands_for_no_other(opened: OpenRuntime) -> None:
    with opened([call("write", text="to <email_1>"), answer("Ask <email_3>.")]) as first:
        made = first.run(Task("t", "Write to ann@example.com."), run_id="run")
    with opened([]) as second:
        fix = masked_correction(second, made, "to jo@x.example")
        assert fix.call.arguments == {"text": "to <email_2>"}
        second.store.feedback.add_correction(fix)
        assert masked_correction(second, made, "again jo@x.example").call.arguments == {"text": "again <email_2>"}
    third = opened([answer("Done.")])
    assert masked_correction(third, made, "to al@y.example").call.arguments == {"text": "to <email_4>"}
    assert third.resume("run").steps[0].call == fix.call


def test_a_run_that_is_taken_up_by_another_process_gives_no_placeholder_twice(opened: OpenRuntime) -> None:
    with opened([call("write", text="a")]) as first:
        made = first.run(Task("t", "Write to ann@example.com."), run_id="whole")
        first.store.begin(replace(made, id="cut", outcome=None, error=None, ended_at=None))
    (first.project.folder / "own.py").write_text(TOOLS.replace('return "sent"', 'return "sent to jo@x.example"'))
    again = opened([call("send", text="b"), answer("Done.")]).resume("cut")
    assert again.steps[1].observation == "sent to <email_2>"


def test_nothing_is_masked_where_the_settings_say_so(opened: OpenRuntime, project: Project) -> None:
    (project.folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[privacy]\nscrub = false\n', "utf-8")
    runtime = opened([call("write", text="a"), answer("Done.")])
    runtime.project = find_project(project.folder, {})
    made = runtime.run(Task("t", "Write to ann@example.com."))
    assert runtime.scrubber_of(made) is None
    assert masked_correction(runtime, made, "to jo@x.example").call.arguments == {"text": "to jo@x.example"}


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
    runtime.store.feedback.add_correction(correction(first.id, 0, "12345"))
    branch = runtime.resume(first.id)
    assert branch.provenance.recalled == ()
    second = runtime.run(Task("two", "note down 777 please"))
    assert second.provenance.recalled == (Recalled("note down # please", "write", run=first.id),)
    assert runtime.store.get(second.id) == second


def test_approved_steps_are_corrections_and_those_of_accepted_runs(opened: OpenRuntime) -> None:
    runtime = opened(
        [call("write", text="a"), answer("One."), call("write", text="b"), answer("Two."), call("write", text="c")]
    )
    for run_id in ("accepted", "corrected", "unreviewed"):
        runtime.run(Task(run_id, "Write."), run_id=run_id)
    accepted = runtime.store.get("accepted")
    runtime.store.feedback.add_rating(
        make_rating(accepted, verdict="up", scrubber=None, reviewer="ann", id="r1", at="now")
    )
    runtime.store.feedback.add_correction(correction("corrected", 0, "better"))
    calls = [step.call for step in newest_approved_steps(runtime.store)]
    assert calls == [*(step.call for step in accepted.steps), ToolCall("write", {"text": "better"})]


def test_recall_can_be_switched_off(opened: OpenRuntime, project: Project) -> None:
    (project.folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[memory]\nrecall = 0\n', "utf-8")
    runtime = opened([answer("What?"), answer("Noted.")])
    runtime.project = find_project(project.folder, {})
    first = runtime.run(Task("one", "note down 12345 please"))
    runtime.store.feedback.add_correction(correction(first.id, 0, "12345"))
    assert runtime.run(Task("two", "note down 777 please")).provenance.recalled == ()


def test_what_is_recalled_takes_no_more_tokens_than_allowed(opened: OpenRuntime, project: Project) -> None:
    runtime = opened([])
    for number, text in enumerate(("note down 12345 please", "please note this down now", "note it down")):
        run_id = f"r{number}"
        runtime.store.begin(Trajectory(run_id, Task(run_id, text), Provenance(), "now", (Step(None),)))
        runtime.store.feedback.add_correction(replace(correction(run_id, 0, str(number)), plan=(f"plan {number}",)))
    task = Task("new", "note down 777 please")
    whole = runtime.recalled(task)
    assert len(whole) == 3
    assert whole[-1].run == "r0"
    settings = '[tools]\nfiles = ["own.py"]\n[memory]\nrecall_tokens = 24\n'
    (project.folder / "ratchet.toml").write_text(settings, "utf-8")
    runtime.project = find_project(project.folder, {})
    assert runtime.recalled(task) == whole[1:]
