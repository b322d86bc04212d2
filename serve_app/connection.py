"""Connections of requests that are answered before all of their body has come."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import RequestError

_SHORT_BYTES, _SHORT_S = 1 << 20, 0.05


class CloseUnread:
    """ASGI middleware: where the answer comes before the whole body, the connection is closed after it.

    First what still comes is read and dropped, until the body's end or `seconds` after the request began: a connection
    closed on unread bytes is reset, and the client may never see the answer. A client that sends a byte now and then
    would otherwise keep its connection for ever.

    A short body, which mostly has come by then, is read and dropped before the answer, so that the connection stays: a
    server that is busy would else be asked over a new one each time.

    `streams`: paths whose answers begin before the body's end in any case. They aren't said to close the connection,
    after which many clients would send no more; it is closed under a client that sends on after the time.
    """

    def __init__(self, app: ASGIApp, *, seconds: float, streams: Collection[str] = ()) -> None:
        self.app, self._seconds, self._streams = app, seconds, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        loop, is_stream = asyncio.get_running_loop(), scope["path"] in self._streams
        until = loop.time() + self._seconds
        body_ended, is_short = False, not is_stream and _length(scope) <= _SHORT_BYTES

        async def receiving() -> Any:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start" and is_short and not body_ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SHORT_S):
                        while not body_ended:
                            await receiving()
            if body_ended:
                await send(message)
            elif message["type"] == "http.response.start" and not is_stream:
                await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            elif message["type"] == "http.response.start" or message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                try:
                    async with asyncio.timeout_at(loop.time() + self._seconds if is_stream else until):
                        while not body_ended:
                            await receiving()
                except TimeoutError:
                    if is_stream:
                        return  # an answer without its end has its connection closed
                await send({"type": "http.response.body"})

        await self.app(scope, receiving, sending)


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Give the block up, with RequestError, where the client goes away. To be entered once all of the body was read.

    HTTP servers tell of it by a message, and leave it to the application to look.
    """
    work, gone = asyncio.current_task(), False
    assert work is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        work.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError as error:
        if gone and not work.uncancel():  # else somebody else has cancelled it, too
            raise RequestError(499, "Disconnected", "the client did not wait for its answer") from error
        raise
    finally:
        watching.cancel()


def _length(scope: Scope) -> float:
    """The body's length as told; infinite where it isn't."""
    digits = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
    return int(digits) if digits.isdigit() else math.inf


def _has_body(scope: Scope) -> bool:
    lengths = {name.lower(): value for name, value in scope["headers"]}
    return b"transfer-encoding" in lengths or lengths.get(b"content-length", b"0") != b"0"
