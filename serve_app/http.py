"""The HTTP server of an entrance: uvicorn, with bounds on what a connection holds."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 * 1024
_MOST_AHEAD = 16
GONE = "vig_ray.gone"
"""In a request's scope: a function that says whether its client has gone. A message says so, too, which comes only once
the body was read."""
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than the idle time after which proxies and clients of the usual kind reuse a connection


class BoundedConnection(HttpToolsProtocol):
    """A connection of which nothing is kept that its client can make as large, or hold for as long, as it likes:

    - the line and headers of a request come within `seconds` and are shorter than 64 KiB, and so is what is neither
      they nor a body (chunks' extensions, trailers, which are dropped);
    - requests that are sent before the answer to an earlier one are few;
    - an answer that nobody reads is dropped with its connection after `seconds`.

    uvicorn itself waits for all of them for ever, and keeps all that comes. Checked against uvicorn 0.54.
    """

    seconds = 60.0
    _timer: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None
    # Bytes of answers that the client hadn't taken when they were last looked at, and `_resumed` then.
    _unread = 0, 0
    _resumed = 0  # how often it has taken so much that writing went on
    _in_head, _head_bytes, _has_brought = True, 0, False
    _running: Any = None  # the request that is being answered; `cycle` is the last one that came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time of the first request's head begins with its connection."""
        super().connection_made(transport)
        self._arm()
        self._watch = self.loop.call_later(self.seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more, and nothing answered."""
        self._disarm()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Refuse what is too long and isn't a body."""
        self._has_brought = False
        super().data_received(data)
        if self._in_head or not self._has_brought:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse("The request's headers are too long.")
        if not self._in_head and (self.cycle is None or self.cycle.response_complete):
            self._arm()  # an empty line has ended the time that an idle connection has

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        self._arm()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers come here, too: they would stand among the headers, which were judged before them."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """It has come whole."""
        self._in_head, self._has_brought = False, True
        self._disarm()
        super().on_headers_complete()
        if len(self.pipeline) > _MOST_AHEAD:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which the application bounds."""
        self._has_brought = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body's end."""
        self._has_brought = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        reference = weakref.ref(cycle)  # in a ring of references it would keep its body until they are collected
        cycle.scope[GONE] = lambda: (there := reference()) is not None and there.disconnected
        super()._start_asgi_task(cycle, app)

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

    def resume_writing(self) -> None:
        """The client has taken some of what was written."""
        self._resumed += 1
        super().resume_writing()

    def _look(self) -> None:
        """Whether the client still takes what was written, where nothing more is until it does."""
        unread = self.transport.get_write_buffer_size(), self._resumed
        waits = self.flow.write_paused or self._running is None or self._running.response_complete
        if unread[0] and unread == self._unread and (waits or self.transport.is_closing()):
            self.transport.abort()
            return
        self._unread = unread
        self._watch = self.loop.call_later(self.seconds, self._look)

    def _refuse(self, why: str) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.send_400_response(why)


def settings(app: Any, *, seconds: float, **options: Any) -> uvicorn.Config:
    """uvicorn's, for an ASGI application; `seconds`: for the head of a request."""

    class Bounded(BoundedConnection):
        pass

    Bounded.seconds = seconds
    return uvicorn.Config(
        app, loop="uvloop", http=Bounded, ws="none", lifespan="on", log_level="critical", access_log=False,
        server_header=False, backlog=_BACKLOG, timeout_keep_alive=_KEEP_ALIVE_S, **options,
    )  # fmt: skip
