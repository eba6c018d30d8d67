"""TODO: agent/serve/replies.py"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent.errors import AdapterError, BusyError, FeedbackError, RatchetError, StoreError, TaskError

STATUS: Mapping[type[RatchetError], int] = {
    TaskError: 400,
    FeedbackError: 422,
    AdapterError: 409,
    StoreError: 503,
    BusyError: 503,
    RatchetError: 500,
}
"""HTTP status of each error, by its nearest class."""


def status_of(fault: RatchetError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS)


def _sse(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)


def _http_error(request: Request, fault: HTTPException) -> Response:
    return _error(fault.status_code, fault.detail, fault.headers)


def _known_error(request: Request, fault: RatchetError) -> Response:
    headers = {"Retry-After": "10"} if isinstance(fault, BusyError) else None
    return _error(status_of(fault), str(fault), headers)


def _unknown_error(request: Request, fault: Exception) -> Response:
    return _error(500, FAILED)


FAILED = "the service failed; its log says why"
"""What a caller is told of an error that this project does not explain."""
