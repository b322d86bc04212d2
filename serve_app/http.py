"""The HTTP server of an entrance: uvicorn, with bounds on what comes before a request's body."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 * 1024
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than the idle time after which proxies and clients of the usual kind reuse a connection


class BoundedHead(HttpToolsProtocol):
    """A connection that is closed where the line and headers of a request don't come within `seconds`, or are longer
    than 64 KiB. uvicorn itself waits for them for ever, and keeps all that comes. Checked against uvicorn 0.54.
    """

    seconds = 60.0
    _timer: asyncio.TimerHandle | None = None
    _in_head, _head_bytes = True, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time of the first request's head begins with its connection."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head that is too long."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse("The request's headers are too long.")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """It has come whole."""
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._arm()  # an answer is under way on this connection, and a refusal would be written into it
        else:
            self._refuse("The request's headers did not come in time.")

    def _refuse(self, why: str) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.send_400_response(why)


def settings(app: Any, *, seconds: float, **options: Any) -> uvicorn.Config:
    """uvicorn's, for an ASGI application; `seconds`: for the head of a request."""

    class Bounded(BoundedHead):
        pass

    Bounded.seconds = seconds
    return uvicorn.Config(
        app, loop="uvloop", http=Bounded, ws="none", lifespan="on", log_level="critical", access_log=False,
        server_header=False, backlog=_BACKLOG, timeout_keep_alive=_KEEP_ALIVE_S, **options,
    )  # fmt: skip
