"""`POST /v1/score/stream`: samples of any number in, a line for each out, in order, as they are scored.

    reads rows ──▶ at most `window` samples under way ──▶ writes answers in the order of the rows

Rows are lines of NDJSON (`rows.py`), or those of Arrow's record batches (`arrow.py`).

Reading stops while the window is full, and the window stays full while the client doesn't read its answers: so a client
that sends a million samples holds as many here as one that sends a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app import arrow
from serve_app.api import Api
from serve_app.auth import place_of
from serve_app.clients import current
from serve_app.errors import RequestError, WholeRequestError, invalid_request
from serve_app.http import GONE
from serve_app.quota import Admission
from serve_app.rows import Body, Row, lines
from serve_app.schema import Score, StreamRequest, TextOnly

log = logging.getLogger("vig_ray.serve")

NDJSON = "application/x-ndjson"
READERS: dict[str, Callable[..., AsyncIterator[Row]]] = {
    NDJSON: lines, "application/jsonl": lines, "application/ndjson": lines, arrow.CONTENT_TYPE: arrow.arrow_rows,
}  # fmt: skip
"""What reads a stream's rows, by the body's content type."""
_AGAIN_S = 0.5
_ROOM_AFTER_S = 0.25


def content_type_of(request: Request) -> str:
    """Without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class ScoreStream(Response):
    """The response to a stream. `accepted` holds its place while it lasts, and raises RequestError where none is free.

    That and the rest of what refuses it as a whole comes before its first line; after that errors are lines.
    """

    def __init__(
        self, request: Request, api: Api, accepted: Callable[[], AbstractAsyncContextManager[tuple[Admission, float]]]
    ) -> None:
        super().__init__(media_type=NDJSON)
        self._request, self._api, self._accepted = request, api, accepted
        # Half of the places at most, and no more than its key may have.
        self._window = int(max(1, min(api.config.queue // 2, api.quotas.at_once(current().key))))
        self._max_bytes = int(api.config.max_body_mb * 2**20)
        self._held_bytes = 0
        body = Body(request, seconds=api.config.timeout, check=self._check)
        self._rows = READERS[content_type_of(request)](body, max_bytes=self._max_bytes)
        self._answers: asyncio.Queue[asyncio.Task[bytes] | RequestError | None] = asyncio.Queue()
        self._left = asyncio.Event()  # a sample has been answered
        self._under_way: set[asyncio.Task[bytes]] = set()
        self._read = self._failed = 0
        self._gone = False
        self._has_spare = True  # the place that it was let in with, for the first sample

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the request has them
        """Answer; returns when the last line is out, or the client has gone."""
        async with self._accepted() as (place, _):
            work = asyncio.current_task()
            assert work is not None
            reading = asyncio.create_task(self._reading(place, work))
            try:
                await self._writing(place, send)
            except asyncio.CancelledError:
                if not self._gone or work.uncancel():  # somebody else has cancelled it, too
                    raise
            except ClientDisconnect:
                pass
            finally:
                for task in (reading, *self._under_way):
                    task.cancel()

    async def _writing(self, place: Admission, send: Send) -> None:
        head = [(b"content-type", NDJSON.encode())]
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": head})
        written = 0
        while isinstance(answer := await self._answers.get(), asyncio.Task):
            line = await answer
            await self._send(send, {"type": "http.response.body", "body": line + b"\n", "more_body": True})
            written += 1
            self._leave(place, answer)
        last = _last_line(written, self._failed, answer)
        await self._send(send, {"type": "http.response.body", "body": last, "more_body": False})

    async def _send(self, send: Send, message: Any) -> None:
        """Raises ClientDisconnect where a client doesn't take its answers for as long as a request may take."""
        try:
            async with asyncio.timeout(self._api.config.timeout):
                await send(message)
        except (TimeoutError, OSError) as error:
            raise ClientDisconnect from error

    async def _reading(self, place: Admission, work: asyncio.Task[None]) -> None:
        """Begin each sample as its line has come; then tell the writer that there are no more, and why. Where the
        client goes away, cancel `work`."""
        why: RequestError | None = None
        try:
            async for row in self._rows:
                await self._enter(place, row)
        except RequestError as error:
            why = error
        except ClientDisconnect:
            self._gone = True
            work.cancel()
            return
        except Exception as error:  # else the writer would wait for ever
            log.error("internal error in a stream: %s", place_of(error))
            why = RequestError(500, "Internal", "an error in this server; its log says more")
        self._answers.put_nowait(why)
        while why is None and (await self._request.receive())["type"] != "http.disconnect":
            pass
        if why is None:
            self._gone = True
            work.cancel()

    async def _enter(self, place: Admission, row: Row) -> None:
        await self._check()
        while not self._has_room(row.size, place):
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROOM_AFTER_S):  # places are given back by others, too
                    await self._left.wait()
            await self._check()
        if self._read:  # the first one was counted with the request
            await self._count(place)
        self._held_bytes += row.size
        task = asyncio.create_task(self._answer(self._read, row))
        self._read += 1
        self._under_way.add(task)
        self._answers.put_nowait(task)

    async def _count(self, place: Admission) -> None:
        """Count a sample to its key, once that may have it. Raises RequestError where it would have to wait longer than
        a request may take: until tomorrow, for one."""
        while True:
            try:
                place.count()
                return
            except RequestError as error:
                seconds = float(error.headers.get("Retry-After", "inf"))
                if seconds > self._api.config.timeout:
                    raise
            await asyncio.sleep(seconds)

    async def _check(self) -> None:
        """Raise RequestError where the server is about to end or the key isn't taken any more, ClientDisconnect where
        the client has gone."""
        if self._request.scope.get(GONE, bool)():
            raise ClientDisconnect
        self._api.check_open()
        await self._api.check_key(current().key)

    def _has_room(self, size: int, place: Admission) -> bool:
        """Whether another sample may begin, whose place it then has."""
        if self._has_spare:
            self._has_spare = False
            return True
        if self._under_way and (len(self._under_way) >= self._window or self._held_bytes + size > self._max_bytes):
            return False
        return place.take()

    def _leave(self, place: Admission, task: asyncio.Task[bytes]) -> None:
        self._under_way.discard(task)
        place.give()
        self._left.set()

    async def _answer(self, index: int, row: Row) -> bytes:
        """The line that answers one: {"index", "id", "result"} or {"index", "id", "error"}, without its end."""
        try:
            request, image = row.request()
            name = request.id
            result = await self._score(request, image)
        except ValidationError as error:
            refusal, name = invalid_request(error), row.name
        except RequestError as error:
            refusal, name = error, row.name
        else:
            head = f'{{"index":{index},"id":{json.dumps(name)},"result":'
            return head.encode() + result.model_dump_json().encode() + b"}"
        finally:
            self._held_bytes -= row.size
        self._failed += 1
        problem = {"kind": refusal.kind, "message": refusal.message}
        return json.dumps({"index": index, "id": name, "error": problem}).encode()

    async def _score(self, request: StreamRequest, image: bytes | None) -> Score | TextOnly:
        """Raises RequestError. What is busy is asked again while the sample's time lasts: nobody else would."""
        seconds = self._api.config.timeout
        end = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(end):
                while True:
                    try:
                        return await self._api.score(request, image)
                    except WholeRequestError as error:
                        if error.status != 503 or asyncio.get_running_loop().time() + _AGAIN_S > end:
                            raise
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError as error:
            raise RequestError(504, "Timeout", f"no score within {seconds:g} seconds, the limit") from error


def _last_line(samples: int, failed: int, why: RequestError | None) -> bytes:
    last: dict[str, Any] = {"end": why is None, "samples": samples, "failed": failed}
    if why is not None:
        last["error"] = {"kind": why.kind, "message": why.message}
    return json.dumps(last).encode() + b"\n"
