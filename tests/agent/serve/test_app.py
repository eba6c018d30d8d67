"""The HTTP service on a real server: runs, streams, feedback, who may ask, and what an error looks like."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, StructuredTool

from agent import errors
from agent.config.project import find_project
from agent.encoders.encoder import HashEncoder
from agent.errors import AdapterError, FeedbackError, RatchetError, SettingsError
from agent.llm.prompt.render import Frame
from agent.llm.scripted import ScriptedModel, answer, call
from agent.llm.step_model import Proposal, Stepper
from agent.records.run import Provenance, ToolCall, Trajectory
from agent.runtime import Runtime, TrainedTasks
from agent.serve.app import check_bind, create_app, read_key
from agent.serve.replies import status_of

TOOLS = '''
import asyncio
from langchain_core.tools import tool


@tool
def look(order: int) -> str:
    """Look an order up."""
    return f"Order {order} is on its way."


@tool
def fail(how: str) -> str:
    """Fail."""
    raise {"exit": SystemExit(0), "cancel": asyncio.CancelledError(), "key": KeyError("44000")}[how]


TOOLS = [look, fail]
'''


class Endless:
    """Looks one order up after another, slowly, until it is cancelled."""

    def provenance(self) -> Provenance:
        return Provenance(base="endless")

    def propose(
        self,
        trajectory: Trajectory,
        frame: Frame,
        *,
        temperature: float,
        seed: int,
        max_tokens: int,
        max_seconds: float,
        cancelled: threading.Event,
        on_text: Callable[[str], None] | None = None,
    ) -> Proposal:
        if cancelled.wait(0.05):
            return Proposal(None, finish_reason="cancelled")
        return Proposal(ToolCall("look", {"order": len(trajectory.steps)}))


@contextmanager
def serving(
    folder: Path,
    model: Sequence[AIMessage] | Stepper,
    *,
    key: str | None = None,
    agent: str = "",
    tasks: TrainedTasks | None = None,
    **limits: int,
) -> Iterator[httpx.Client]:
    """A client of a service with this model, which is ended afterwards."""
    (folder / "ratchet.toml").write_text('[tools]\nfiles = ["own.py"]\n[agent]\nmax_steps = 1000\n' + agent)
    (folder / "own.py").write_text(TOOLS)
    chosen = model if isinstance(model, Stepper) else ScriptedModel(model)
    with Runtime(find_project(folder, {}), model=chosen, encoder=HashEncoder(), tasks=tasks) as runtime:
        app = create_app(runtime, key=key, **limits)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20)


class Verbs:
    """A trained task that says the second word of a text."""

    def tools(self) -> list[BaseTool]:
        def verb_of(text: str) -> str:
            return json.dumps({"labels": [text.split()[1]]})

        return [StructuredTool.from_function(verb_of, description="Say the verb.", metadata={"effect": "read"})]

    def right_output(self, tool: str, arguments: Mapping[str, Any], said: str) -> Mapping[str, Any]:
        if said not in arguments["text"]:
            raise FeedbackError(f"{said!r} is no verb of {tool}")
        return {"labels": [said]}


def test_what_a_trained_task_should_have_given_is_kept_beside_the_run(tmp_path: Path) -> None:
    script = [call("verb_of", text="i really want it", plan=["ask"], thought="Ask."), answer("ok", thought="Say.")]
    settings = '[tools.tasks]\nverb_of = "verbs"\n'
    with serving(tmp_path, script, agent=settings, tasks=Verbs()) as client:
        url = f"/v1/runs/{client.post('/v1/runs', json={'task': 'Tell the verb.'}).json()['id']}"
        fix = {"step": 0, "output": "want", "reviewer": "ann"}
        assert client.post(f"{url}/corrections", json=fix).status_code == 201
        shown = client.get(url).json()
        assert (shown["corrections"], [one["output"] for one in shown["outputs"]]) == ([], [{"labels": ["want"]}])
        assert client.post(f"{url}/corrections", json={**fix, "output": "sold"}).status_code == 422
        both = client.post(f"{url}/corrections", json={**fix, "thought": "x"})
        assert (both.status_code, "output cannot be combined with thought" in both.json()["error"]) == (400, True)


def test_a_task_is_done_looked_at_rated_and_corrected(tmp_path: Path) -> None:
    script = [
        call("look", order=1, plan=["look"], thought="Look."),
        answer("Mail ann@example.com.", thought="Say."),
    ]
    with serving(tmp_path, script) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        task = {"task": "Where is order 1? I am ann@example.com.", "facts": {"customer": "C1"}}
        made = client.post("/v1/runs", json=task).json()
        assert (made["outcome"], made["answer"], made["adapter"]) == (
            "answered",
            "Mail ann@example.com.",
            None,
        )
        assert client.get("/v1/runs").json()["runs"][0]["id"] == made["id"]
        url = f"/v1/runs/{made['id']}"
        rating = {"verdict": "down", "reviewer": "ann", "reason": "wrong order"}
        assert client.post(f"{url}/ratings", json=rating).status_code == 201
        fix = {"step": 0, "reviewer": "ann", "arguments": {"order": 2}}
        assert client.post(f"{url}/corrections", json=fix).json()["step"] == 0
        wrong = client.post(f"{url}/corrections", json={**fix, "kind": "opinion"})
        assert (wrong.status_code, "a habit or an exception" in wrong.text) == (422, True)
        shown = client.get(url).json()
        assert shown["task"]["facts"] == {"customer": "C1"}
        assert shown["steps"][0]["observation"] == "Order 1 is on its way."
        assert [one["verdict"] for one in shown["ratings"]] == ["down"]
        assert [one["call"]["arguments"] for one in shown["corrections"]] == [{"order": 2}]
        assert client.get("/v1/adapter").json()["next"] is None


def test_feedback_is_masked_as_its_run_is(tmp_path: Path) -> None:
    script = [call("look", order=1, plan=["look"], thought="Look."), answer("Mail <email_1>.", thought="Say.")]
    secrets = ("ann@example.com", "jo@x.example", "hunter22-horse")
    given = "Mail ann@example.com and jo@x.example, password: hunter22-horse."
    masked = "Mail <email_1> and <email_2>, password: <key_1>."
    with serving(tmp_path, script) as client:
        url = f"/v1/runs/{client.post('/v1/runs', json={'task': 'I am ann@example.com.'}).json()['id']}"
        fix = {"step": 1, "reviewer": "ann", "answer": given, "thought": given, "reason": given, "kind": "habit"}
        assert client.post(f"{url}/corrections", json=fix).status_code == 201
        fix = {"step": 0, "reviewer": "ann", "arguments": {"order": 2}, "thought": given, "plan": ["tell jo@x.example"]}
        assert client.post(f"{url}/corrections", json=fix).status_code == 201
        rating = {"verdict": "down", "reviewer": "ann", "reason": given}
        assert client.post(f"{url}/ratings", json=rating).status_code == 201
        text = client.get(url).text
        second, first = json.loads(text)["corrections"]
        assert second["call"]["arguments"]["text"] == second["thought"] == second["reason"] == masked
        assert (first["thought"], first["plan"]) == (masked, ["tell <email_2>"])
        assert json.loads(text)["ratings"][0]["reason"] == masked
    files = [path for path in (tmp_path / ".ratchet").rglob("*") if path.is_file()]
    assert files
    kept = [text.encode(), *(path.read_bytes() for path in files)]
    assert not any(one.encode() in content for one in secrets for content in kept)


def test_a_corrected_output_is_masked(tmp_path: Path) -> None:
    text = "i saw jo@x.example there"
    script = [call("verb_of", text=text, plan=["ask"], thought="Ask."), answer("ok", thought="Say.")]
    settings = '[tools.tasks]\nverb_of = "verbs"\n'
    with serving(tmp_path, script, agent=settings, tasks=Verbs()) as client:
        made = client.post("/v1/runs", json={"task": "Whom did jo@x.example see?"}).json()
        fix = {"step": 0, "output": "saw", "reviewer": "ann", "reason": "jo@x.example"}
        url = f"/v1/runs/{made['id']}"
        assert client.post(f"{url}/corrections", json=fix).status_code == 201
        assert client.get(url).json()["outputs"][0]["reason"] == "<email_1>"


def test_a_stream_tells_each_step_as_it_comes(tmp_path: Path) -> None:
    script = [call("look", order=1), answer("Yes.")]
    with serving(tmp_path, script) as client:
        text = client.post("/v1/runs", json={"task": "Where?", "stream": True}).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    kinds = ["started", "proposed", "observed", "proposed", "observed", "ended"]
    assert [event["kind"] for event in events if event["kind"] != "text"] == kinds
    assert (events[-1]["outcome"], events[-1]["answer"]) == ("answered", "Yes.")


@pytest.mark.parametrize("how", ["exit", "cancel", "key"])
def test_whatever_a_tool_raises_the_run_ends_with_an_outcome_and_the_service_goes_on(tmp_path: Path, how: str) -> None:
    script = [call("fail", how=how), answer("It failed.")]
    with serving(tmp_path, script * 2) as client:
        made = client.post("/v1/runs", json={"task": "Fail."}).json()
        text = client.post("/v1/runs", json={"task": "Fail.", "stream": True}).text
        shown = client.get(f"/v1/runs/{made['id']}").json()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert (made["outcome"], made["answer"]) == ("answered", "It failed.")
    assert (events[-1]["kind"], events[-1]["outcome"]) == ("ended", "answered")
    observed = next(event["step"] for event in events if event["kind"] == "observed")
    for step in (shown["steps"][0], observed):
        assert step["error"].startswith("fail raised ")
        assert step["effect_unknown"]


class Broken(Endless):
    """A model that ends its program, or fails as no error of ours does."""

    def __init__(self, fault: BaseException) -> None:
        self._fault = fault

    def provenance(self) -> Provenance:
        raise self._fault


@pytest.mark.parametrize("fault", [SystemExit(0), OSError("no weights")], ids=repr)
def test_an_unexpected_failure_is_a_json_error_an_event_and_in_the_log(
    tmp_path: Path, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, Broken(fault)) as client:
        # uvicorn closes the connection of a request that failed, and a new one must not be sent on it.
        reply = client.post("/v1/runs", json={"task": "Fail."}, headers={"Connection": "close"})
        text = client.post("/v1/runs", json={"task": "Fail.", "stream": True}).text
        assert client.get("/healthz").status_code == 200
    assert (reply.status_code, reply.json()) == (500, {"error": "the service failed; its log says why"})
    last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
    assert json.loads(last.removeprefix("data: ")) == {"kind": "error", **reply.json()}
    records = [record for record in caplog.records if record.name == "ratchet.serve"]
    assert [record.getMessage() for record in records] == ["POST /v1/runs failed", "a streamed run failed"]
    assert all(record.exc_info for record in records)


def test_what_nothing_shown_supports_is_withheld_and_named(tmp_path: Path) -> None:
    said = "Order 1 is on its way. It is in Lima."
    with serving(tmp_path, [call("look", order=1), answer(said)] * 2, agent='grounded = "withhold"\n') as client:
        made = client.post("/v1/runs", json={"task": "Where?"}).json()
        shown = client.get(f"/v1/runs/{made['id']}").json()
        text = client.post("/v1/runs", json={"task": "Where?", "stream": True}).text
    assert made["answer"] == shown["answer"] == "Order 1 is on its way."
    first, second = made["grounding"]["sentences"]
    assert [one["text"] for one in first["evidence"]] == ["Order 1 is on its way."]
    assert (second["text"], second["withheld"]) == ("It is in Lima.", True)
    assert shown["steps"][1]["call"]["arguments"]["text"] == said
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    assert [event["kind"] for event in events] == ["started", "proposed", "observed", "proposed", "observed", "ended"]
    assert all("Lima" not in line for line in lines[:4])
    assert events[4]["step"]["call"]["arguments"]["text"] == events[5]["answer"] == "Order 1 is on its way."


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_hangs_up_cancels_the_run_and_it_is_kept(tmp_path: Path, stream: bool) -> None:
    with serving(tmp_path, Endless()) as client:
        if stream:
            with client.stream("POST", "/v1/runs", json={"task": "Where?", "stream": True}) as reply:
                next(line for line in reply.iter_lines() if "observed" in line)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/runs", json={"task": "Where?"}, timeout=2.0)
        for _ in range(100):
            newest = next(iter(client.get("/v1/runs").json()["runs"]), {"outcome": None})
            if newest["outcome"]:
                break
            time.sleep(0.05)
        assert newest["outcome"] == "cancelled"
        assert newest["steps"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/runs", {}, 400, "missing task"),
        ("POST", "/v1/runs", {"task": " "}, 400, "task is empty"),
        ("POST", "/v1/runs", {"task": "x", "fact": {}}, 400, "unknown fact; expected task (str), facts"),
        ("POST", "/v1/runs", {"task": "x", "facts": {"a": 1}}, 400, "facts must be an object of texts"),
        ("POST", "/v1/runs", {"task": "x", "adapter": "a-1"}, 409, "needs the local model"),
        ("POST", "/v1/runs", [], 400, "expected an object"),
        ("GET", "/v1/runs/none", None, 404, "there is no run"),
        ("GET", "/v1/runs?limit=0", None, 400, "expected 1 to 1000"),
        ("POST", "/v1/runs/last/ratings", {"verdict": "fine", "reviewer": "a"}, 422, "up or down"),
        ("POST", "/v1/runs/last/corrections", {"step": 9, "reviewer": "a"}, 422, "has no step 9"),
        ("POST", "/v1/runs/last/corrections", {"step": True, "reviewer": "a"}, 400, "wrong step"),
        ("GET", "/v2", None, 404, "Not Found"),
    ],
)
def test_an_error_has_a_status_and_says_what_is_wrong(
    tmp_path: Path, method: str, path: str, body: Any, status: int, said: str
) -> None:
    with serving(tmp_path, [answer("Yes.")]) as client:
        client.post("/v1/runs", json={"task": "first"})
        reply = client.request(method, path, json=body) if body is not None else client.request(method, path)
        assert reply.status_code == status
        assert said in reply.json()["error"]


def test_what_is_not_json_or_too_long_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, []) as client:
        assert client.post("/v1/runs", content=b'{"task": "x"}').status_code == 415
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/runs", content=b"{", headers=headers).status_code == 400
        assert client.post("/v1/runs", content=b" " * 1_000_001, headers=headers).status_code == 413


def test_more_runs_than_may_wait_are_refused_and_told_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, Endless(), max_runs=1, max_waiting=0) as client:
        with client.stream("POST", "/v1/runs", json={"task": "Take long.", "stream": True}) as going:
            next(going.iter_lines())
            refused = client.post("/v1/runs", json={"task": "Me too."})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "try again later" in refused.json()["error"]


def test_a_key_is_asked_for_when_it_is_set(tmp_path: Path) -> None:
    with serving(tmp_path, [], key="s3cret") as client:
        assert client.get("/v1/runs").status_code == 200
        assert client.get("/v1/runs", headers={"Authorization": "Bearer other"}).status_code == 401
        assert client.get("/v1/runs", headers={"Authorization": ""}).json()["error"].startswith("send the key")
        assert client.get("/healthz", headers={"Authorization": ""}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost:8777", "LOCALHOST", "127.0.0.1", "127.3.2.1:80", "[::1]:8777")),
        *((host, 421) for host in ("evil.example", "127.evil.com", "127.0.0.1.evil.com:80", "localhost.evil.com")),
        *((host, 421) for host in ("localhost.", "127.1", "0x7f.1", "2130706433", "0.0.0.0", "[::2]", "10.0.0.1")),
        *((host, 400) for host in ("127.0.0.1, evil.com", "evil.com@127.0.0.1", "127.0.0.1@evil.com", "127.0.0.1/x")),
        *((host, 400) for host in ("[::1", "[::1]x", "::1", "localhost:x", "localhost:99999", "[evil.com]", "")),
    ],
)
def test_without_a_key_only_names_of_this_machine_are_answered(tmp_path: Path, host: str, status: int) -> None:
    assert _ask(tmp_path, [(b"host", host.encode())]) == status


def test_a_request_with_no_host_or_with_two_is_refused(tmp_path: Path) -> None:
    assert _ask(tmp_path, []) == 400
    assert _ask(tmp_path, [(b"host", b"evil.com"), (b"host", b"localhost")]) == 400
    assert _ask(tmp_path, [(b"host", b"localhost"), (b"Host", b"localhost")]) == 400
    assert _ask(tmp_path, [(b"host", b"\xff\x00")]) == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *((origin, 200) for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:8777")),
        *((origin, 403) for origin in ("null", "http://127.evil.com", "http://localhost.evil.com", "http://[::1")),
        *((origin, 403) for origin in ("http://localhost:80@evil.com", "https://evil.com", "")),
    ],
)
def test_without_a_key_only_pages_of_this_machine_are_answered(tmp_path: Path, origin: str, status: int) -> None:
    assert _ask(tmp_path, [(b"host", b"localhost"), (b"origin", origin.encode())]) == status


def test_with_a_key_any_host_and_origin_is_answered(tmp_path: Path) -> None:
    headers = [(b"host", b"ratchet.example"), (b"origin", b"https://app.example")]
    assert _ask(tmp_path, [*headers, (b"authorization", b"Bearer s3cret")], key="s3cret") == 200
    assert _ask(tmp_path, headers, key="s3cret") == 401


def _ask(folder: Path, headers: Sequence[tuple[bytes, bytes]], *, key: str | None = None) -> int:
    """The status of `GET /v1/runs` with these headers and no others, which no client would send."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    path = {"path": "/v1/runs", "raw_path": b"/v1/runs", "query_string": b"", "root_path": ""}
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "headers": headers, **path}
    with Runtime(find_project(folder, {}), model=ScriptedModel([]), encoder=HashEncoder()) as runtime:
        asyncio.run(create_app(runtime, key=key)(scope, receive, send))
    return int(sent[0]["status"])


def test_a_public_bind_needs_a_key(tmp_path: Path) -> None:
    check_bind("127.0.0.1", None)
    check_bind("0.0.0.0", "key")
    for host in ("127.evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "127."):
        with pytest.raises(SettingsError, match="open to other machines"):
            check_bind(host, None)
    with pytest.raises(SettingsError, match="open to other machines"):
        check_bind("0.0.0.0", None)
    (tmp_path / "key").write_text("s3cret\n")
    assert read_key(tmp_path / "key") == "s3cret"
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(SettingsError, match="one word"):
        read_key(tmp_path / "key")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_every_error_of_ours_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RatchetError)]
    made = [kind("here", ["x"]) if kind is SettingsError else kind("x") for kind in kinds]
    assert all(400 <= status_of(fault) < 600 for fault in made)
    assert (status_of(FeedbackError("x")), status_of(AdapterError("x"))) == (422, 409)
