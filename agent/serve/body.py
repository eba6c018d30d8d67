"""Reads the JSON body of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY = 1_000_000
"""Most bytes of a request's body."""


async def read_body(request: Request, required: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    """Return the JSON object of a request, with its keys checked.

    Args:
        request: The request, whose body was not read yet.
        required: The type of each key that must be there.
        optional: The type of each key that may be there.

    Raises:
        HTTPException: 413 for a body that is too long, 400 for any other fault.
    """
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes")
    try:
        body = json.loads(raw)
    except ValueError as fault:
        raise HTTPException(400, f"the body is not JSON ({fault})") from None
    if not isinstance(body, dict):
        raise HTTPException(400, f"the body is a JSON {type(body).__name__}; expected an object")
    kinds = {**required, **optional}
    unknown = [name for name in body if name not in kinds]
    absent = [name for name in required if name not in body]
    wrong = [name for name in body if name in kinds and type(body[name]) is not kinds[name]]
    if unknown or absent or wrong:
        keys = ", ".join(
            f"{name} ({kind.__name__}{'' if name in required else ', optional'})" for name, kind in kinds.items()
        )
        problem = f"unknown {unknown[0]}" if unknown else f"missing {absent[0]}" if absent else f"wrong {wrong[0]}"
        raise HTTPException(400, f"{problem}; expected {keys}")
    return body
