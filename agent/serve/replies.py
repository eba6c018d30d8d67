"""Error replies, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent.errors import AdapterError, BusyError, FeedbackError, RatchetError, StoreError, TaskError
from agent.util.logs import get_logger

_log = get_logger("serve")

FAILED = "the service failed; its log says why"
"""The text of the reply to an error that this project does not explain. The log goes to standard error."""

STATUS: Mapping[type[RatchetError], int] = {
    TaskError: 400,
    FeedbackError: 422,
    AdapterError: 409,
    StoreError: 503,
    BusyError: 503,
    RatchetError: 500,
}
"""HTTP status of each class of errors."""


def status_of(fault: RatchetError) -> int:
    """Return the HTTP status of an error, by its nearest class."""
    return next(STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS)


def format_event(kind: str, data: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def error_reply(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a reply with an error text."""
    return JSONResponse({"error": text}, status, headers)


def reply_to_http_error(request: Request, fault: HTTPException) -> Response:
    return error_reply(fault.status_code, fault.detail, fault.headers)


def reply_to_known_error(request: Request, fault: RatchetError) -> Response:
    headers = {"Retry-After": "10"} if isinstance(fault, BusyError) else None
    return error_reply(status_of(fault), str(fault), headers)


def reply_to_unknown_error(request: Request, fault: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=fault)
    return error_reply(500, FAILED)
