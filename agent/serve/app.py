"""The HTTP service: tasks, runs and feedback over one runtime that all requests share.

A run continues in a thread; when its caller disconnects it is cancelled, and its record stays. The default is
loopback without a key: only programs on this machine are answered, and no web page on behalf of its reader. The
service is one process; accounts, rate limits and TLS belong in a proxy in front of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent.errors import BusyError, RatchetError, SettingsError, StoreError
from agent.feedback import service
from agent.records.run import Task, Trajectory
from agent.run.state import Event
from agent.run.views import event_view, result_view, run_view, summary_view
from agent.runtime import Runtime
from agent.serve.body import read_body
from agent.serve.guard import Guard
from agent.serve.replies import (
    FAILED,
    format_event,
    reply_to_http_error,
    reply_to_known_error,
    reply_to_unknown_error,
)
from agent.util.hosts import is_loopback
from agent.util.ids import new_id
from agent.util.logs import get_logger

MAX_RUNS = 64
"""Most runs at the same time; more of them wait."""
MAX_WAITING = 256
"""Most waiting runs; more of them are answered with 503."""
QUIET_SECONDS = 15.0
"""A stream without events sends a comment this often, so that no proxy closes it."""


T = TypeVar("T")

_log = get_logger("serve")


def create_app(
    runtime: Runtime, *, key: str | None, max_runs: int = MAX_RUNS, max_waiting: int = MAX_WAITING
) -> Starlette:
    """Return the service of a runtime, which the caller closes.

    Args:
        runtime: Shared by all requests.
        key: Callers send it as a bearer token; None answers only programs on this machine.
        max_runs: Most runs at the same time.
        max_waiting: Most runs that wait for their turn.
    """
    endpoints = _Service(runtime, max_runs, max_waiting)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            endpoints.cancel_all()

    routes = [
        Route("/v1/runs", endpoints.start, methods=["POST"]),
        Route("/v1/runs", endpoints.list_runs, methods=["GET"]),
        Route("/v1/runs/{id}", endpoints.get_run, methods=["GET"]),
        Route("/v1/runs/{id}/ratings", endpoints.rate, methods=["POST"]),
        Route("/v1/runs/{id}/corrections", endpoints.correct, methods=["POST"]),
        Route("/v1/adapter", endpoints.adapter, methods=["GET"]),
        Route("/healthz", _health, methods=["GET"]),
    ]
    handlers: Mapping[Any, Callable[[Request, Any], Response]] = {
        HTTPException: reply_to_http_error,
        RatchetError: reply_to_known_error,
        Exception: reply_to_unknown_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.add_middleware(Guard, key=key)
    return app


def check_bind(host: str, key: str | None) -> None:
    """Check that a service without a key listens on loopback. Raises SettingsError."""
    if key is None and not is_loopback(host):
        raise SettingsError(
            "serve", [f"{host} is open to other machines; set [serve] key_file, or listen on 127.0.0.1"]
        )


def read_key(path: Path) -> str:
    """Return the key that callers must send. Raises SettingsError when the file has none."""
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError("serve", [f"key_file {path} cannot be read ({fault}); write a key into it"]) from None
    if not key or not key.isascii() or len(key.split()) != 1:
        raise SettingsError("serve", [f"key_file {path} must contain one word of ASCII letters, digits and signs"])
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
        body = await read_body(request, {"task": str}, {"facts": dict, "stream": bool, "adapter": str})
        facts = body.get("facts", {})
        if not body["task"].strip():
            raise HTTPException(400, "task is empty; expected a text")
        if not all(isinstance(value, str) for value in facts.values()):
            raise HTTPException(400, "facts must be an object of texts")
        if len(self._running) >= self._max_runs + self._max_waiting:
            raise BusyError(f"{self._max_runs} runs are in progress and {self._max_waiting} wait; try again later")
        run_id = new_id()
        do = partial(self._do, Task(run_id, body["task"], facts), body.get("adapter"))
        if body.get("stream", False):
            return _EventStream(self, do)
        cancelled = threading.Event()
        finished: Trajectory = await self.do_until_disconnect(request.receive, partial(do, cancelled, None), cancelled)
        return JSONResponse(result_view(finished))

    async def list_runs(self, request: Request) -> Response:
        text = request.query_params.get("limit", "20")
        if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= 1000:
            raise HTTPException(400, f"limit is {text!r}; expected 1 to 1000")
        unfinished = request.query_params.get("unfinished", "false") == "true"
        summaries = await _in_thread(self._runtime.store.runs, int(text), unfinished)
        return JSONResponse({"runs": [summary_view(summary) for summary in summaries]})

    async def get_run(self, request: Request) -> Response:
        store = self._runtime.store

        def read() -> dict[str, Any]:
            trajectory = self._find(request.path_params["id"])
            outputs = store.feedback.output_corrections(trajectory.id)
            return run_view(
                trajectory, store.feedback.corrections(trajectory.id), store.feedback.ratings(trajectory.id), outputs
            )

        return JSONResponse(await _in_thread(read))

    async def rate(self, request: Request) -> Response:
        body = await read_body(request, {"verdict": str, "reviewer": str}, {"reason": str})

        def append() -> dict[str, Any]:
            run = self._find(request.path_params["id"]).id
            rating = service.rate(self._runtime, run, **body)
            return {"id": rating.id, "run": rating.run}

        return JSONResponse(await _in_thread(append), 201)

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
        body = await read_body(request, {"step": int, "reviewer": str}, optional)
        if "output" in body:
            return await self._correct_output(request.path_params["id"], body)
        if not all(isinstance(item, str) for item in body.get("plan", [])):
            raise HTTPException(400, "plan must be a list of texts")

        def append() -> dict[str, Any]:
            run = self._find(request.path_params["id"]).id
            correction = service.correct(self._runtime, run, **body)
            return {"id": correction.id, "run": correction.run, "step": correction.step}

        return JSONResponse(await _in_thread(append), 201)

    async def _correct_output(self, run: str, body: dict[str, Any]) -> Response:
        """Correct the output of a trained task that the step called."""
        others = body.keys() - {"output", "step", "reviewer", "reason"}
        if others:
            raise HTTPException(
                400, f"output cannot be combined with {', '.join(sorted(others))}; give one or the other"
            )

        def append() -> dict[str, Any]:
            correction = service.correct_output(
                self._runtime,
                self._find(run).id,
                body["step"],
                body["output"],
                reviewer=body["reviewer"],
                reason=body.get("reason", ""),
            )
            return {"id": correction.id, "run": correction.run, "step": correction.step}

        return JSONResponse(await _in_thread(append), 201)

    async def adapter(self, request: Request) -> Response:
        """Reply with the adapter of the next run, and with what is loaded now."""

        def read() -> dict[str, Any]:
            entry = self._runtime.serving()
            served = None if entry is None else {"id": entry.id, "tensors_sha256": entry.tensors_sha256}
            return {
                "next": served,
                "base": self._runtime.project.settings.model.base,
                "loaded": self._runtime.loaded(),
                "warnings": self._runtime.warnings,
            }

        return JSONResponse(await _in_thread(read))

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
        options: dict[str, Any] = {} if adapter is None else {"adapter": None if adapter == "base" else adapter}
        trajectory = self._runtime.run(task, run_id=task.id, cancelled=cancelled, on_event=on_event, **options)
        _log.info("run %s ended: %s", trajectory.id, trajectory.outcome)
        return self._runtime.reveal(trajectory)

    async def do_until_disconnect(self, receive: Receive, work: Callable[[], T], cancelled: threading.Event) -> T:
        """Do the work in a thread; a caller that disconnects, or the end of the service, cancels it."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._max_runs)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            cancelled.set()

        self._running.add(cancelled)
        fault: Exception | None = None
        results: list[T] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                try:
                    contained = partial(_without_exit, work)
                    results.append(
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
        return results[0]


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

        def report(event: Event) -> None:
            if event.kind != "ended":  # sent below, with masked values put back
                put(format_event(event.kind, event_view(event)))

        async def work() -> None:
            try:
                done = await self._service.do_until_disconnect(receive, partial(self._do, cancelled, report), cancelled)
                put(format_event("ended", event_view(Event("ended", done))))
            except RatchetError as fault:
                put(format_event("error", {"kind": "error", "error": str(fault)}))
            except Exception:
                _log.exception("a streamed run failed")
                put(format_event("error", {"kind": "error", "error": FAILED}))
            finally:
                put(None)

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            while True:
                data: bytes | None = b": still running\n\n"
                with anyio.move_on_after(QUIET_SECONDS):
                    data = await events.get()
                if data is None:
                    break
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(_without_exit, work, *arguments)


def _without_exit(work: Callable[..., T], *arguments: Any) -> T:
    """Do the work; an exception that ends a program, such as SystemExit in a tool, becomes a RuntimeError."""
    try:
        return work(*arguments)
    except Exception:
        raise
    except BaseException as fault:
        raise RuntimeError(f"{type(fault).__name__}: {fault}") from fault
