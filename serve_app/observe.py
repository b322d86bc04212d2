"""The outermost middleware: a request's id, its line in the log, its trace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.logs import ACCESS
from serve_app.request import CurrentRequest, begin
from serve_app.traces import Traces, end_of

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PROBES = ("/healthz", "/readyz")
_TELLS_LATER = (502, 503, 504)  # what a client may try again, so a warning and no error


class Observe:
    """ASGI middleware. `access`: whether each request has a line in the log. `traces`: where spans are sent, None for
    nowhere. `refused(kind, status)` is called for each request that is answered with an error.

    `id_answered`: whether what stands before this puts the id that came in, its own where none did, into the answer, as
    Ray Serve's proxy does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: bool,
        traces: Traces | None = None,
        refused: Callable[[str, int], None] | None = None,
        id_answered: bool = False,
    ) -> None:
        self.app, self._access, self._traces = app, access, traces
        self._refused, self._id_answered = refused, id_answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell of it."""
        if scope["type"] != "http":
            await self.app(scope, self._closing(receive) if scope["type"] == "lifespan" else receive, send)
            return
        began = time.monotonic()
        sent = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
        good = _ID.fullmatch(sent) is not None
        request = CurrentRequest(sent.decode() if good else uuid.uuid4().hex)
        answered = None if good and self._id_answered else request.id.encode()
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if answered is not None:
                    message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", answered)]}
            await send(message)

        with self._traced(request, scope) as span:
            begin(request)
            try:
                await self.app(scope, receive, sending)
            finally:
                if span is not None:
                    end_of(span, request, method=scope["method"], route=_route(scope), status=status)
                if request.error is not None and status is not None and self._refused is not None:
                    self._refused(request.error, status)
                if self._access and not (scope["path"] in _PROBES and status == 200):
                    _log(scope, request, status, time.monotonic() - began)

    def _closing(self, receive: Receive) -> Receive:
        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._traces is not None:
                await asyncio.to_thread(self._traces.close)
            return message

        return receiving

    def _traced(self, request: CurrentRequest, scope: Scope) -> AbstractContextManager[Any]:
        if self._traces is None or scope["path"] in _PROBES:
            return contextlib.nullcontext()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        return self._traces.request(request, scope["method"], headers)


def _route(scope: Scope) -> str | None:
    """The route's path as the application declares it; None where the request reached none."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def _log(scope: Scope, request: CurrentRequest, status: int | None, seconds: float) -> None:
    level = logging.INFO
    if status is None or status >= 500:
        level = logging.WARNING if status in _TELLS_LATER or status is None else logging.ERROR
    fields = {
        "request_id": request.id,
        "method": scope["method"],
        "route": scope["path"],  # without the query, in which somebody may have put a key
        "status": status,
        "seconds": round(seconds, 4),
        "samples": request.samples,
        "key": (scope.get("state") or {}).get("key_name"),
        "error": request.error if status is not None else "Disconnected",
    }
    ACCESS.log(level, "request", extra={"event": "request", "fields": fields})
