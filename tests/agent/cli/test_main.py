"""The command line: what it prints where, how it exits, and that what it keeps can be seen and corrected."""

from __future__ import annotations

import getpass
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from agent.cli.main import main
from agent.config.project import Project
from agent.config.reader import load_settings
from agent.encoders.encoder import HashEncoder
from agent.llm.scripted import ScriptedModel, answer, call
from agent.registry.artifact import seal
from agent.registry.registry import Registry, State
from agent.runtime import Runtime
from agent.storage.store import Store
from tuner.data.curate import curate
from tuner.data.dataset import write_dataset

REPOSITORY = Path(__file__).parents[3]

TOOLS = '''
import time
from langchain_core.tools import tool


@tool
def look(order: int, slow: float = 0) -> str:
    """Look an order up."""
    time.sleep(slow)
    if order == 404:
        raise SystemExit(0)
    return f"Order {order} is on its way.\\x1b[31m"


TOOLS = [look]
'''

LOOK = call("look", order=1, plan=["look", "answer"], thought="Look it up.")
SAY = answer("It is on its way.", thought="Say so.")

Ratchet = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n')
    (tmp_path / "own.py").write_text(TOOLS)
    return tmp_path


@pytest.fixture
def ratchet(folder: Path) -> Ratchet:
    """Runs a command in the project, with a model that says the given replies."""

    def command(*words: str, replies: Sequence[AIMessage] = ()) -> int:
        def opened(project: Project, progress: Callable[[str], None]) -> Runtime:
            return Runtime(project, model=ScriptedModel(replies), encoder=HashEncoder(), progress=progress)

        return main(["--project", str(folder), *words], open_runtime=opened)

    return command


def test_a_run_prints_its_answer_on_stdout_and_its_steps_on_stderr(
    ratchet: Ratchet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ratchet("run", "Where is order 1?", "--fact", "customer=C1", replies=[LOOK, SAY]) == 0
    shown = capsys.readouterr()
    assert shown.out == "It is on its way.\n"
    assert "  plan: look; answer\n  thought: Look it up.\n  call: look {" in shown.err
    assert "  result: Order 1 is on its way." in shown.err
    assert "\x1b" not in shown.err
    assert ratchet("show", "last", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["task"]["facts"] == {"customer": "C1"}
    assert record["outcome"] == "answered"


def test_a_run_as_json(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("run", "Where?", "--json", replies=[LOOK, SAY]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["outcome"], made["answer"], made["steps"]) == ("answered", "It is on its way.", 2)
    assert ratchet("run", "Where?", "--json", replies=[call("hand_over", reason="No.")]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["outcome"], made["answer"]) == ("refused", "No.")


def test_a_run_without_an_answer_exits_3(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("run", "Where?", replies=[LOOK]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "No answer: crashed (our own code failed" in shown.err


def test_a_tool_that_ends_its_program_ends_neither_the_run_nor_the_command(
    ratchet: Ratchet, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves = call("look", order=404, thought="Look it up.")
    assert ratchet("run", "Where?", replies=[leaves, SAY]) == 0
    shown = capsys.readouterr()
    assert shown.out == "It is on its way.\n"
    assert "  error: look raised SystemExit: 0. Whether it took effect is not known" in shown.err
    assert ratchet("run", "Where?", replies=[leaves]) == 3
    shown = capsys.readouterr()
    assert "No answer: crashed" in shown.err
    assert "Traceback" not in shown.err
    assert ratchet("--debug", "run", "Where?", replies=[leaves, SAY]) == 0
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert "own.py" in shown.err
    assert ratchet("correct", "last", "0", "--arg", "order=2", "--reviewer", "ann") == 0
    assert ratchet("resume", "last", replies=[SAY]) == 0


@pytest.mark.parametrize(("code", "exit_code"), [(0, 1), (None, 1), ("stop", 1), (7, 7)])
def test_a_command_that_is_broken_off_by_sys_exit_does_not_end_as_if_it_were_done(
    folder: Path, capsys: pytest.CaptureFixture[str], code: Any, exit_code: int
) -> None:
    def opened(project: Project, progress: Callable[[str], None]) -> Runtime:
        sys.exit(code)

    assert main(["--project", str(folder), "run", "Where?"], open_runtime=opened) == exit_code
    assert ("was broken off by sys.exit" in capsys.readouterr().err) == (exit_code == 1)


def test_log_and_show_tell_everything_that_is_kept(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("log") == 0
    assert "no runs yet" in capsys.readouterr().err
    ratchet("run", "Where is order 1?", replies=[LOOK, SAY])
    ratchet("rate", "last", "down", "--reviewer", "ann", "--reason", "too short")
    ratchet("correct", "last", "1", "--answer", "Tomorrow.", "--reviewer", "ann", "--reason", "says when")
    capsys.readouterr()
    assert ratchet("log") == 0
    assert "answered" in capsys.readouterr().out
    assert ratchet("log", "--unfinished", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert ratchet("show", "last") == 0
    shown = capsys.readouterr().out
    for expected in (
        "task: Where is order 1?",
        "made by: base scripted; no adapter; prompt 4-",
        "step 0: 0 tokens",
        '  call: look {"order": 1}',
        "  result: Order 1 is on its way.",
        "  corrected by ann at ",
        '    call: answer {"text": "Tomorrow.", "citations": []}',
        "outcome: answered (the agent gave its answer)",
        "rated down by ann at ",
        ": too short",
    ):
        assert expected in shown


def test_a_correction_takes_what_is_left_out_and_is_taken_up_by_resume(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratchet("run", "Where?", replies=[LOOK, SAY])
    capsys.readouterr()
    assert ratchet("correct", "last", "0", "--arg", "order=2", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["call"], made["thought"], made["plan"]) == ({"name": "look", "arguments": {"order": 2}}, "", [])
    assert made["reviewer"] == getpass.getuser()
    assert ratchet("resume", made["run"], "--json", replies=[SAY]) == 0
    branch = json.loads(capsys.readouterr().out)
    with Store(folder / ".ratchet" / "ratchet.db") as store:
        kept = store.get(branch["id"])
    assert kept.branch is not None
    assert kept.branch.run == made["run"]
    assert kept.steps[0].observation.startswith("Order 2")
    assert (kept.steps[0].plan, kept.steps[0].thought) == ((), "")


def test_a_step_without_a_thought_is_corrected_without_one(
    ratchet: Ratchet, capsys: pytest.CaptureFixture[str]
) -> None:
    ratchet("run", "Where?", replies=[call("look", order=1), answer("Yes.")])
    assert ratchet("correct", "last", "0", "--tool", "look", "--arg", "order=2") == 0
    assert ratchet("correct", "last", "1", "--answer", "No.") == 0
    assert ratchet("correct", "last", "0", "--thought", " ") == 1
    assert "the thought has 0 characters, expected 1 to 80; shorten it, or leave it out" in capsys.readouterr().err
    assert ratchet("correct", "--help") == 0
    assert "without --plan or --thought, none is trained" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "nothing"], 1, "there is no run 'nothing'"),
        (["correct", "last", "0", "--tool", "fly"], 1, "there is no tool 'fly' in this run; tools: "),
        (["correct", "last", "0", "--arg", "order=x"], 1, "look takes order: integer"),
        (["correct", "last", "7", "--thought", "x"], 1, "has no step 7; it has steps 0 to 1"),
        (["correct", "last", "0"], 2, "nothing to correct"),
        (["correct", "last", "0", "--args", "{"], 2, "--args is not JSON"),
        (["correct", "last", "0", "--args", "[]"], 2, "--args is a JSON list"),
        (["correct", "last", "0", "--args", "{}", "--arg", "order=1"], 2, "give one of the two"),
        (["rate", "last", "fine"], 2, "invalid choice"),
        (["resume", "last"], 1, "has ended (answered)"),
        (["run", " "], 2, "the task is empty"),
        (["run", "x", "--fact", "customer"], 2, "expected name=value"),
        (["run", "x", "--adapter", "a-1"], 1, "needs the local model"),
        (["docs", "add"], 2, "no folder of documents is named"),
        (["docs", "remove", "x.md"], 1, "no document is named 'x.md'"),
        (["promote", "a-1"], 1, "there is no adapter 'a-1'"),
        (["merge", "a-1=0.5", "a-2"], 1, "there is no adapter 'a-1'"),
        (["merge", "a-1"], 2, "required: ADAPTER=WEIGHT"),
        (["merge", "a-1", "a-2=half"], 2, "expected an adapter's id, or id=weight, found 'a-2=half'"),
        (["rollback"], 1, "the base is served"),
        (["serve", "--host", "0.0.0.0"], 1, "open to other machines"),
        (["init"], 1, "exists already"),
        (["fly"], 2, "invalid choice"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_an_error_is_one_clear_message_and_an_exit_code(
    ratchet: Ratchet, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    ratchet("run", "Where?", replies=[LOOK, SAY])
    capsys.readouterr()
    assert ratchet(*words) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


def test_every_fault_of_the_settings_is_told(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ratchet.toml").write_text("[agent]\nmax_steps = 0\nplann = true\n")
    assert ratchet("log") == 1
    assert "2 fault(s)" in capsys.readouterr().err


def test_init_writes_settings_that_hold_and_never_over_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--project", str(tmp_path)]) == 0
    load_settings(tmp_path / "ratchet.toml")
    assert main(["--project", str(tmp_path), "init"]) == 1
    capsys.readouterr()
    assert main(["init", "--print", "--project", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "ratchet.toml").read_text()
    assert main(["init", "--project", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_documents_are_added_listed_found_and_removed(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    articles = folder / "articles"
    articles.mkdir()
    (articles / "returns.md").write_text("# Returns\n\nSend a tent back within thirty days.\n")
    assert ratchet("docs", "list", "--json") == 0
    assert ratchet("docs", "add", str(articles)) == 0
    assert ratchet("docs", "add", str(articles), "--json") == 0
    assert ratchet("docs", "list") == 0
    assert ratchet("docs", "search", "send a tent back") == 0
    assert ratchet("docs", "rebuild") == 0
    assert ratchet("docs", "remove", "returns.md") == 0
    assert ratchet("docs", "search", "tent", "--json") == 0
    out = capsys.readouterr().out
    assert "1 added, 0 changed, 0 unchanged" in out
    assert '"unchanged": ["returns.md"]' in out
    assert "returns.md > Returns\nSend a tent back" in out
    assert "removed returns.md\n[]" in out
    assert ratchet("run", "Back?", replies=[call("search_knowledge", query="x"), answer("No.", 1)]) == 3


def sealed_adapter(folder: Path, id: str) -> None:
    made = folder / id
    made.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "auto_mapping": None}
    (made / "adapter_config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (made / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    seal(
        made,
        id=id,
        base="b",
        base_revision="1",
        dataset_hash="d",
        parent=None,
        tuning="t",
        created_at="2026-01-01T00:00:00Z",
        code_version="0",
    )
    Registry(folder).add(made)


def test_adapters_are_listed_and_rolled_back(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = folder / ".ratchet" / "adapters"
    for id in ("a-1", "a-2"):
        sealed_adapter(home, id)
        Registry(home).transition(id, State.GATED, "better", "now")
        Registry(home).promote(id, "better", "now")
    assert ratchet("adapters") == 0
    assert "* a-2      active" in capsys.readouterr().out
    assert ratchet("rollback") == 0
    assert ratchet("adapters", "--json") == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert listed["served"] == "a-1"
    assert [one["state"] for one in listed["adapters"]] == ["active", "retired"]
    assert any(one["reason"] == "rolled back by hand" for one in listed["history"])


def test_no_adapter_is_promoted_past_the_gate(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed_adapter(folder / ".ratchet" / "adapters", "a-1")
    assert ratchet("promote", "a-1", "--force") == 2
    assert ratchet("promote", "a-1") == 1
    assert "no held-out suite is named" in capsys.readouterr().err


def test_models_and_doctor_look_without_loading(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("models") == 0
    assert "* smollm2-135m-instruct" in capsys.readouterr().out
    assert ratchet("models", "--json") == 0
    assert {one["kind"] for one in json.loads(capsys.readouterr().out)} == {"model", "encoder"}
    assert ratchet("doctor", "--json") in (0, 1)
    assert json.loads(capsys.readouterr().out)[0]["what"] == "Python"


def test_doctor_reports_settings_and_tools_that_others_could_have_written(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(what: str) -> list[tuple[str, str]]:
        assert ratchet("doctor", "--json") in (0, 1)
        every = json.loads(capsys.readouterr().out)
        return [(one["level"], f"{one['found']}; {one['advice']}") for one in every if one["what"] == what]

    assert [level for level, _ in found("settings") + found("tools own.py")] == ["ok", "ok"]
    (folder / "own.py").chmod(0o666)
    ((level, said),) = found("tools own.py")
    assert level == "missing"
    assert said.startswith(f"{folder / 'own.py'}: everybody may write to it; ")
    assert f"RATCHET_TRUST={folder}" in said
    assert ratchet("run", "Where?", replies=[LOOK, SAY]) == 1
    assert "everybody may write to it" in capsys.readouterr().err
    (folder / "own.py").unlink()
    assert found("tools own.py")[0][0] == "missing"
    (folder / "ratchet.toml").chmod(0o666)
    ((level, said),) = found("settings")
    assert level == "missing"
    assert said.startswith(f"{folder / 'ratchet.toml'}: everybody may write to it; ")
    assert found("tools own.py") == []
    assert ratchet("doctor") == 1
    assert "-> others could run programs as you" in capsys.readouterr().out


def test_a_trusted_folder_is_worked_in_whoever_may_write_there(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own.py", "ratchet.toml", "."):
        (folder / name).chmod(0o777)
    assert ratchet("run", "Where?", replies=[LOOK, SAY]) == 1
    assert f"RATCHET_TRUST={folder}" in capsys.readouterr().err
    assert not (folder / ".ratchet").exists()
    monkeypatch.setenv("RATCHET_TRUST", str(folder))
    assert ratchet("run", "Where?", replies=[LOOK, SAY]) == 0


def test_the_tuning_commands_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("tune", "eval", "demo", "merge", "promote"):
        assert main([command, "--help"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ratchet")


def test_chat_does_one_task_a_line(ratchet: Ratchet, folder: Path) -> None:
    done = chat(folder, "Where?\n\nAnd now?\n")
    assert done.returncode == 0
    for expected in ("  thought: Look it up.", "  call: look {", "  result: Order 1", "It is on its way."):
        assert done.stdout.count(expected) == 2
    lines = chat(folder, "Where?\n", "--json").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in lines][-1] == "ended"


CHAT = """
import sys
from agent.cli.main import main
from agent.llm.scripted import ScriptedModel, answer, call
from agent.runtime import Runtime

slow = float(sys.argv[2])
look, say = call("look", order=1, slow=slow, thought="Look it up."), answer("It is on its way.")
script = [look, say, say] if slow else [look, say] * 2

def opened(project, progress):
    return Runtime(project, model=ScriptedModel(script), progress=progress)

sys.exit(main(["--project", sys.argv[1], "chat", *sys.argv[3:]], open_runtime=opened))
"""


def chat(folder: Path, lines: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHAT, str(folder), "0", *words],
        input=lines,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_ctrl_c_cancels_the_task_keeps_it_and_returns_to_the_prompt(folder: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", CHAT, str(folder), "3"]
    with (
        os.fdopen(leader, "r+b", buffering=0) as terminal,
        subprocess.Popen(command, cwd=REPOSITORY, stdin=follower, stdout=follower, stderr=follower) as process,
    ):
        os.close(follower)
        heard = Heard(leader)
        try:
            heard.wait_for("> ")
            terminal.write(b"Where?\n")
            heard.wait_for("call: look")
            process.send_signal(signal.SIGINT)
            heard.wait_for("No answer: cancelled")
            heard.wait_for("> ")
            terminal.write(b"And now?\n")
            heard.wait_for("It is on its way.")
            heard.wait_for("> ")
            assert ended_by_ctrl_c(process) == 130
        finally:
            process.kill()
    with Store(folder / ".ratchet" / "ratchet.db") as store:
        assert [one.outcome for one in store.runs()] == ["answered", "cancelled"]
        assert [len(one.steps) for one in store.trajectories()] == [1, 1]


def ended_by_ctrl_c(process: subprocess.Popen[bytes]) -> int:
    """Press as a person would: readline loses a signal that comes between its prompt and its wait for a key."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(3)
    raise AssertionError("the prompt does not end by Ctrl-C")


class Heard:
    """What a terminal has shown."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._text = ""

    def wait_for(self, expected: str) -> None:
        deadline = time.monotonic() + 30
        while expected not in self._text:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self._text
            self._text += os.read(self._terminal, 4096).decode(errors="replace")
        self._text = self._text.partition(expected)[2]


def test_a_reader_that_goes_away_is_no_traceback(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli.main", "init", "--print"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        said = errors.read()
    process.wait(20)
    assert b"Traceback" not in said


def test_debug_shows_where_an_error_came_from(ratchet: Ratchet) -> None:
    with pytest.raises(Exception, match="there are no runs yet"):
        ratchet("--debug", "show", "last")


def test_messages_are_logged_on_standard_error_with_verbose_or_ratchet_log(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[tuning]\ncontexts = 4\n')
    leaves = call("look", order=404, thought="Look it up.")
    assert ratchet("run", "Where?", replies=[leaves, SAY]) == 0
    logged = capsys.readouterr().err
    assert logged.count("[tuning] contexts = 4 is no longer used") == 1
    assert "DEBUG" not in logged
    monkeypatch.setenv("RATCHET_LOG", "error")
    assert ratchet("log") == 0
    assert "no longer used" not in capsys.readouterr().err
    assert ratchet("log", "--verbose") == 0
    assert "WARNING ratchet.config:" in capsys.readouterr().err
    monkeypatch.setenv("RATCHET_LOG", "debug")
    assert ratchet("run", "Where?", replies=[leaves, SAY]) == 0
    assert "DEBUG ratchet.run:" in capsys.readouterr().err
    monkeypatch.setenv("RATCHET_LOG", "loud")
    assert ratchet("log") == 1
    assert 'RATCHET_LOG = "loud": expected one of "debug"' in capsys.readouterr().err


def test_only_a_local_model_is_measured(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("bench") == 1
    assert "only a local model can be measured, and this project uses a ScriptedModel" in capsys.readouterr().err


# -- what a reviewer gives is masked -------------------------------------------------------------------------

SECRETS = ("jo@x.example", "sk-0123456789abcdefghij", "hunter22-horse")
GIVEN = f"ask {SECRETS[0]} with {SECRETS[1]}, password: {SECRETS[2]}"
"""What a reviewer writes."""
MASKED = "ask <email_1> with <key_1>, password: <key_2>"


def give_feedback(ratchet: Ratchet) -> None:
    """Feedback of every kind, with secrets in every text of it."""
    ratchet("run", "Where is order 1?", replies=[LOOK, SAY])
    words = ["--thought", GIVEN, "--plan", f"look; tell {SECRETS[0]}", "--reason", GIVEN]
    assert ratchet("correct", "last", "0", "--arg", "order=2", *words) == 0
    assert ratchet("correct", "last", "1", "--answer", GIVEN, "--kind", "habit", *words) == 0
    assert ratchet("rate", "last", "down", "--reason", GIVEN) == 0


def files_with_secrets(folder: Path) -> list[tuple[Path, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path, one) for path in files for one in SECRETS if one.encode() in path.read_bytes()]


def test_no_secret_of_a_reviewer_is_in_the_store_or_a_dataset(
    ratchet: Ratchet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_feedback(ratchet)
    with Store(folder / ".ratchet" / "ratchet.db") as store:
        first, second = store.feedback.corrections()
        (rating,), (arbitration,) = store.feedback.ratings(), store.feedback.arbitrations()
    assert ratchet("arbitrate", first.id, "habit", "--reason", GIVEN) == 0
    shown = capsys.readouterr()
    assert not any(one in shown.out + shown.err for one in SECRETS)
    # Each command is a process of its own that knows no values; so none reuses a placeholder of another.
    assert "masked as <email_1>, <key_1>, <key_2>, which run" in shown.err
    assert (first.thought, first.reason) == (MASKED, MASKED)
    assert first.plan == ("look", "tell <email_1>")
    assert second.call.arguments["text"].startswith("ask <email_2> with <key_3>")
    assert arbitration.reason == second.reason
    assert rating.reason.startswith("ask <email_3> with <key_5>")
    assert files_with_secrets(folder / ".ratchet") == []
    with Store(folder / ".ratchet" / "ratchet.db") as store:
        write_dataset(curate(store), folder / "sets", validation_share=0.0, created_at="now", provenance={})
    assert "<email_1>" in "".join(path.read_text() for path in (folder / "sets").rglob("train.jsonl"))
    assert files_with_secrets(folder / "sets") == []


def test_a_reviewers_words_are_kept_as_they_are_where_nothing_is_masked(ratchet: Ratchet, folder: Path) -> None:
    (folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[privacy]\nscrub = false\n')
    give_feedback(ratchet)
    with Store(folder / ".ratchet" / "ratchet.db") as store:
        first, second = store.feedback.corrections()
        (rating,) = store.feedback.ratings()
    assert first.thought == first.reason == second.call.arguments["text"] == rating.reason == GIVEN


# -- kinds of corrections --------------------------------------------------------------------------------------


def listed(ratchet: Ratchet, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert ratchet("corrections", "--json", *words) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_corrections_are_listed_with_their_kind(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    ratchet("run", "Where is order 1?", replies=[LOOK, SAY])
    words = ("--kind", "fact", "--reason", "not in the handbook", "--reviewer", "ann")
    assert ratchet("correct", "last", "1", "--answer", "It is lost.", *words) == 0
    assert ratchet("correct", "last", "0", "--thought", "Look it up.", "--reviewer", "ann") == 0
    fact, habit = listed(ratchet, capsys)
    assert (fact["kind"], fact["decided_by"], fact["trained"]) == ("fact", "ann", False)
    assert (fact["why"], fact["by_reviewer"]) == ("not in the handbook", True)
    assert (habit["kind"], habit["step"], habit["decided_by"], habit["by_reviewer"]) == ("habit", 0, "", False)
    assert ratchet("corrections", "--kind", "fact") == 0
    shown = capsys.readouterr().out
    assert fact["id"][:12] in shown
    assert habit["id"][:12] not in shown
    assert ratchet("corrections", "--kind", "exception") == 0
    assert capsys.readouterr().err.endswith("No correction is an exception.\n")
    assert ratchet("show", "last") == 0
    assert "    fact, says ann: not in the handbook" in capsys.readouterr().out


def test_a_reviewer_changes_the_kind_of_a_correction(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    assert ratchet("corrections") == 1
    assert "no runs yet" in capsys.readouterr().err
    ratchet("run", "Where?", replies=[LOOK, SAY])
    assert ratchet("corrections") == 0
    assert "There are no corrections yet." in capsys.readouterr().err
    capsys.readouterr()
    words = ("correct", "last", "0", "--arg", "order=2", "--kind", "exception", "--reviewer", "ann")
    assert ratchet(*words, "--reason", "a friend", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kind"] == "exception"
    (one,) = listed(ratchet, capsys)
    assert (one["kind"], one["decided_by"], one["by_reviewer"], one["why"]) == ("exception", "ann", True, "a friend")
    assert (one["trained"], one["recalled"]) == (False, True)
    assert ratchet("arbitrate", made["id"][:8], "habit", "--reviewer", "bob", "--reason", "they all do") == 0
    assert capsys.readouterr().out == f"correction {made['id']} is a habit, says bob\n"
    assert ratchet("arbitrate", made["id"], "fact", "--reviewer", "eve", "--json") == 0
    assert json.loads(capsys.readouterr().out)["by"] == "reviewer"
    assert ratchet("arbitrate", made["id"], "habit", "--reviewer", "bob", "--reason", "they all do") == 0
    assert ratchet("corrections") == 0
    shown = capsys.readouterr().out
    assert "habit  bob" in shown
    assert "they all do" in shown
    assert ratchet("arbitrate", "zzz", "habit") == 1
    assert "there is no correction 'zzz'; `ratchet corrections` lists" in capsys.readouterr().err
    assert ratchet("arbitrate", made["id"], "opinion") == 2


def test_what_supersedes_a_correction_is_listed(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    for order in (2, 3):
        ratchet("run", "Where is it?", replies=[LOOK, SAY])
        assert ratchet("correct", "last", "0", "--arg", f"order={order}", "--reviewer", "ann") == 0
    older, newer = listed(ratchet, capsys)
    assert (older["superseded_by"], newer["superseded_by"]) == (newer["id"], None)
    assert (older["trained"], older["recalled"], newer["trained"]) == (False, False, True)
    assert ratchet("corrections") == 0
    assert f"superseded by {newer['id'][:12]}" in capsys.readouterr().out


def test_show_says_which_runs_were_recalled(ratchet: Ratchet, capsys: pytest.CaptureFixture[str]) -> None:
    ratchet("run", "Where is order 12345?", replies=[LOOK, SAY])
    ratchet("rate", "last", "up")
    capsys.readouterr()
    ratchet("show", "last", "--json")
    first = json.loads(capsys.readouterr().out)["id"]
    ratchet("run", "Where is order 77777?", replies=[LOOK, SAY])
    capsys.readouterr()
    assert ratchet("show", "last") == 0
    assert f"recalled: Where is order #? -> look (look; answer) (run {first})" in capsys.readouterr().out
