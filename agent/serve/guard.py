"""Decides which requests are answered: those with the key, or, without a key, those from this machine."""

from __future__ import annotations

import hmac

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.serve.replies import error_reply
from agent.util.hosts import is_loopback, is_loopback_origin, read_host


class Guard:
    """Checks the key; without one, accepts only loopback names. Both accept only JSON bodies."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key is None:
            refusal = _not_of_this_machine(scope)
            if refusal is not None:
                return refusal
        elif scope["path"] != "/healthz":
            expected, sent = b"Bearer " + self._key.encode(), headers.get(b"authorization", b"")
            if not hmac.compare_digest(expected, sent):
                return error_reply(401, "send the key as `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"})
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            return error_reply(415, "send JSON, with Content-Type: application/json")
        return None


def _not_of_this_machine(scope: Scope) -> Response | None:
    """Return the error reply to a request that a web page of another host may have caused; None for any other.

    Without it, a page could point its own name at this machine (DNS rebinding) and act for its reader.
    """
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
    named = read_host(hosts[0]) if len(hosts) == 1 else None
    if named is None:
        found = ", ".join(map(repr, hosts)) or "none"
        return error_reply(400, f"the Host header is {found}; expected one, as host or host:port")
    if not is_loopback(named):
        return error_reply(421, f"host {hosts[0]!r} is not of this machine; use 127.0.0.1, or set a key")
    for origin in (value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"origin"):
        if not is_loopback_origin(origin):
            return error_reply(403, f"the page's origin {origin!r} is not of this machine; set a key")
    return None
