"""Connections of requests that are answered before all of their body has come."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send


class CloseUnread:
    """ASGI middleware: where the answer comes before the whole body, the connection is closed after it.

    First what still comes is read and dropped, until the body's end or `seconds` after the request began: a connection
    closed on unread bytes is reset, and the client may never see the answer. A client that sends a byte now and then
    would otherwise keep its connection for ever.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        until = asyncio.get_running_loop().time() + self._seconds
        body_ended = False

        async def receiving() -> Any:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def sending(message: Any) -> None:
            if body_ended:
                await send(message)
            elif message["type"] == "http.response.start":
                await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                try:
                    async with asyncio.timeout_at(until):
                        while not body_ended:
                            await receiving()
                except TimeoutError:
                    pass
                await send({"type": "http.response.body"})

        await self.app(scope, receiving, sending)


def _has_body(scope: Scope) -> bool:
    lengths = {name.lower(): value for name, value in scope["headers"]}
    return b"transfer-encoding" in lengths or lengths.get(b"content-length", b"0") != b"0"
