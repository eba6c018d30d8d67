"""The HTTP service: tasks in, runs out, feedback on them, over one runtime that is shared by all requests.

A run goes on in a thread; when its caller hangs up it is cancelled, and kept. Loopback and no key is the
default: then only programs of this machine are answered, and no web page on behalf of its reader. One
process; accounts, rate limits and TLS are left to a proxy in front.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent.errors import BusyError, RatchetError, SettingsError, StoreError
from agent.feedback.validation import make_arbitration, make_correction, make_output_correction, make_rating
from agent.records.run import Task, Trajectory
from agent.run.state import Event
from agent.run.tools import make_frame
from agent.run.views import event_view, result_view, run_view, summary_view
from agent.runtime import Runtime
from agent.serve.body import _body
from agent.serve.guard import _Guard
from agent.serve.replies import FAILED, _http_error, _known_error, _sse, _unknown_error
from agent.util.hosts import is_loopback
from agent.util.ids import new_id, timestamp

MAX_RUNS = 64
"""Runs at once; further ones wait."""
MAX_WAITING = 256
"""Runs that may wait; further ones are refused."""
QUIET_SECONDS = 15.0
"""A stream without events says something this often, so that nobody in between closes it."""


T = TypeVar("T")

_log = logging.getLogger("ratchet.serve")


def create_app(
    runtime: Runtime, *, key: str | None, max_runs: int = MAX_RUNS, max_waiting: int = MAX_WAITING
) -> Starlette:
    """The service of a runtime, which stays the caller's. With a key, it is asked for as a bearer token."""
    service = _Service(runtime, max_runs, max_waiting)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.cancel_all()

    routes = [
        Route("/v1/runs", service.start, methods=["POST"]),
        Route("/v1/runs", service.list_runs, methods=["GET"]),
        Route("/v1/runs/{id}", service.get_run, methods=["GET"]),
        Route("/v1/runs/{id}/ratings", service.rate, methods=["POST"]),
        Route("/v1/runs/{id}/corrections", service.correct, methods=["POST"]),
        Route("/v1/adapter", service.adapter, methods=["GET"]),
        Route("/healthz", _health, methods=["GET"]),
    ]
    handlers: Mapping[Any, Callable[[Request, Any], Response]] = {
        HTTPException: _http_error,
        RatchetError: _known_error,
        Exception: _unknown_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.add_middleware(_Guard, key=key)
    return app


def check_bind(host: str, key: str | None) -> None:
    """Refuse to be open to other machines without a key. Raises SettingsError."""
    if key is None and not is_loopback(host):
        raise SettingsError(
            "serve", [f"{host} is open to other machines; set [serve] key_file, or listen on 127.0.0.1"]
        )


def read_key(path: Path) -> str:
    """The key callers must send. Raises SettingsError when the file holds none."""
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError("serve", [f"key_file {path} cannot be read ({fault}); write a key into it"]) from None
    if not key or not key.isascii() or len(key.split()) != 1:
        raise SettingsError("serve", [f"key_file {path} must hold one word of ASCII letters, digits and signs"])
    return key


class _Service:
    """The endpoints, over one runtime."""

    def __init__(self, runtime: Runtime, max_runs: int, max_waiting: int) -> None:
        self._runtime = runtime
        self._max_runs = max_runs
        self._max_waiting = max_waiting
        self._running: set[threading.Event] = set()
        self._limiter: anyio.CapacityLimiter | None = None

    def cancel_all(self) -> None:
        for cancelled in list(self._running):
            cancelled.set()

    async def start(self, request: Request) -> Any:
        body = await _body(request, {"task": str}, {"facts": dict, "stream": bool, "adapter": str})
        facts = body.get("facts", {})
        if not body["task"].strip():
            raise HTTPException(400, "task is empty; say what is to be done")
        if not all(isinstance(value, str) for value in facts.values()):
            raise HTTPException(400, "facts must be an object of texts")
        if len(self._running) >= self._max_runs + self._max_waiting:
            raise BusyError(f"{self._max_runs} runs are going and {self._max_waiting} wait; try again later")
        run_id = new_id()
        do = partial(self._do, Task(run_id, body["task"], facts), body.get("adapter"))
        if body.get("stream", False):
            return _EventStream(self, do)
        cancelled = threading.Event()
        finished: Trajectory = await self._watched(request.receive, partial(do, cancelled, None), cancelled)
        return JSONResponse(result_view(finished))

    async def list_runs(self, request: Request) -> Response:
        text = request.query_params.get("limit", "20")
        if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= 1000:
            raise HTTPException(400, f"limit is {text!r}; expected 1 to 1000")
        unfinished = request.query_params.get("unfinished", "false") == "true"
        found = await _threaded(self._runtime.store.runs, int(text), unfinished)
        return JSONResponse({"runs": [summary_view(one) for one in found]})

    async def get_run(self, request: Request) -> Response:
        store = self._runtime.store

        def read() -> dict[str, Any]:
            trajectory = self._find(request.path_params["id"])
            outputs = store.output_corrections(trajectory.id)
            return run_view(trajectory, store.corrections(trajectory.id), store.ratings(trajectory.id), outputs)

        return JSONResponse(await _threaded(read))

    async def rate(self, request: Request) -> Response:
        body = await _body(request, {"verdict": str, "reviewer": str}, {"reason": str})

        def append() -> dict[str, Any]:
            trajectory = self._find(request.path_params["id"])
            scrubber = self._runtime.scrubber_of(trajectory)
            rating = make_rating(trajectory, **body, scrubber=scrubber, id=uuid4().hex, at=timestamp())
            self._runtime.store.rate(rating)
            return {"id": rating.id, "run": rating.run}

        return JSONResponse(await _threaded(append), 201)

    async def correct(self, request: Request) -> Response:
        optional = {
            "output": str,
            "tool": str,
            "arguments": dict,
            "answer": str,
            "citations": list,
            "thought": str,
            "plan": list,
            "reason": str,
            "kind": str,
        }
        body = await _body(request, {"step": int, "reviewer": str}, optional)
        if "output" in body:
            return await self._correct_output(request.path_params["id"], body)
        kind = body.pop("kind", None)
        if not all(isinstance(item, str) for item in body.get("plan", [])):
            raise HTTPException(400, "plan must be a list of texts")

        def append() -> dict[str, Any]:
            trajectory = self._find(request.path_params["id"])
            scrubber = self._runtime.scrubber_of(trajectory)
            with self._runtime.checking_tools(trajectory.task) as tools:
                correction = make_correction(
                    trajectory,
                    tools=tools,
                    frame=make_frame(tools, self._runtime.options),
                    scrubber=scrubber,
                    **body,
                    id=uuid4().hex,
                    at=timestamp(),
                )
            belongs = (
                None
                if kind is None
                else make_arbitration(
                    correction,
                    kind,
                    scrubber=scrubber,
                    reviewer=correction.reviewer,
                    reason=correction.reason,
                    id=uuid4().hex,
                    at=correction.at,
                )
            )
            self._runtime.store.correct(correction)
            if belongs is not None:
                self._runtime.store.arbitrate(belongs)
            return {"id": correction.id, "run": correction.run, "step": correction.step}

        return JSONResponse(await _threaded(append), 201)

    async def _correct_output(self, run: str, body: dict[str, Any]) -> Response:
        """What a trained task should have given, in place of what the step should have been."""
        others = body.keys() - {"output", "step", "reviewer", "reason"}
        if others:
            raise HTTPException(400, f"output goes without {', '.join(sorted(others))}; give one or the other")

        def append() -> dict[str, Any]:
            trajectory = self._find(run)
            correction = make_output_correction(
                trajectory,
                body["step"],
                body["output"],
                right_output=self._runtime.tasks.right_output,
                scrubber=self._runtime.scrubber_of(trajectory),
                reviewer=body["reviewer"],
                reason=body.get("reason", ""),
                id=uuid4().hex,
                at=timestamp(),
            )
            self._runtime.store.correct_output(correction)
            return {"id": correction.id, "run": correction.run, "step": correction.step}

        return JSONResponse(await _threaded(append), 201)

    async def adapter(self, request: Request) -> Response:
        """What the next run will use, and what the model holds in memory now."""

        def look() -> dict[str, Any]:
            entry = self._runtime.serving()
            served = None if entry is None else {"id": entry.id, "tensors_sha256": entry.tensors_sha256}
            return {
                "next": served,
                "base": self._runtime.project.settings.model.base,
                "loaded": self._runtime.loaded(),
                "warnings": self._runtime.warnings,
            }

        return JSONResponse(await _threaded(look))

    def _find(self, name: str) -> Trajectory:
        store = self._runtime.store
        try:
            return store.get(name)
        except StoreError as fault:
            store.runs(1)  # raises where the store itself is at fault
            raise HTTPException(404, str(fault)) from None

    def _do(
        self,
        task: Task,
        adapter: str | None,
        cancelled: threading.Event,
        on_event: Callable[[Event], None] | None,
    ) -> Trajectory:
        chosen: dict[str, Any] = {} if adapter is None else {"adapter": None if adapter == "base" else adapter}
        done = self._runtime.run(task, run_id=task.id, cancelled=cancelled, on_event=on_event, **chosen)
        return self._runtime.reveal(done)

    async def _watched(self, receive: Receive, work: Callable[[], T], cancelled: threading.Event) -> T:
        """Do the work in a thread; a caller who hangs up, or the end of the service, cancels it."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._max_runs)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            cancelled.set()

        self._running.add(cancelled)
        fault: Exception | None = None
        made: list[T] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                try:
                    contained = partial(_contained, work)
                    made.append(
                        await anyio.to_thread.run_sync(contained, limiter=self._limiter, abandon_on_cancel=True)
                    )
                except Exception as raised:  # outside of the group, which would wrap it
                    fault = raised
                group.cancel_scope.cancel()
        finally:
            cancelled.set()
            self._running.discard(cancelled)
        if fault is not None:
            raise fault
        return made[0]


class _EventStream:
    """Server-sent events of one run, ended by `ended` or, when the run could not be done, `error`."""

    def __init__(self, service: _Service, do: Callable[..., Trajectory]) -> None:
        self._service = service
        self._do = do

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[bytes | None] = asyncio.Queue()
        cancelled = threading.Event()

        def put(data: bytes | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, data)

        def tell(event: Event) -> None:
            if event.kind != "ended":  # told below, with what was scrubbed put back
                put(_sse(event.kind, event_view(event)))

        async def work() -> None:
            try:
                done = await self._service._watched(receive, partial(self._do, cancelled, tell), cancelled)
                put(_sse("ended", event_view(Event("ended", done))))
            except RatchetError as fault:
                put(_sse("error", {"kind": "error", "error": str(fault)}))
            except Exception:
                _log.exception("a streamed run failed")
                put(_sse("error", {"kind": "error", "error": FAILED}))
            finally:
                put(None)

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            while True:
                data: bytes | None = b": still at it\n\n"
                with anyio.move_on_after(QUIET_SECONDS):
                    data = await events.get()
                if data is None:
                    break
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _threaded(work: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(_contained, work, *arguments)


def _contained(work: Callable[..., T], *arguments: Any) -> T:
    """Do work in a thread. What a user's code raises to end its program, or a task, must not end the service."""
    try:
        return work(*arguments)
    except Exception:
        raise
    except BaseException as fault:
        raise RuntimeError(f"{type(fault).__name__}: {fault}") from fault
