"""The samples of a stream, one after another, out of a body that is still coming."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from starlette.requests import Request

from serve_app.errors import RequestError
from serve_app.schema import StreamRequest

_LOOKED_AFTER_S = 1.0


class Row(Protocol):
    """One sample as it came."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""

    @property
    def name(self) -> str | None:
        """Its id, also where it is wrong otherwise."""

    def request(self) -> tuple[StreamRequest, bytes | None]:
        """What it asks for, and its image where that came as bytes. Raises ValidationError or RequestError."""


class Body:
    """What comes of a request's body. `check` raises where there is no reason to go on."""

    def __init__(self, request: Request, *, seconds: float, check: Callable[[], Awaitable[None]]) -> None:
        self._chunks = request.stream().__aiter__()
        self._seconds, self._check = seconds, check
        self._began = 0.0

    def begin(self) -> None:
        """A row begins, whose time runs from now."""
        self._began = asyncio.get_running_loop().time()

    async def chunk(self) -> bytes | None:
        """What comes next; None at the end. Raises RequestError where a row takes longer than `seconds`, what `check`
        does, and ClientDisconnect."""
        loop = asyncio.get_running_loop()
        coming = asyncio.ensure_future(anext(self._chunks, None))
        try:
            while True:
                await self._check()
                left = self._began + self._seconds - loop.time()
                if (await asyncio.wait([coming], timeout=max(0.0, min(_LOOKED_AFTER_S, left))))[0]:
                    return coming.result()
                if left <= 0:
                    raise RequestError(408, "Timeout", f"no whole sample came for {self._seconds:g} seconds, the limit")
        finally:
            coming.cancel()


class Line:
    """A line of NDJSON."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    @property
    def size(self) -> int:
        """See `Row`."""
        return len(self._line)

    @property
    def name(self) -> str | None:
        """See `Row`."""
        try:
            name = json.loads(self._line).get("id")
        except (ValueError, AttributeError, RecursionError):
            return None
        return name if isinstance(name, str) else None

    def request(self) -> tuple[StreamRequest, bytes | None]:
        """See `Row`."""
        return StreamRequest.model_validate_json(self._line), None


async def lines(body: Body, *, max_bytes: int) -> AsyncIterator[Row]:
    """The lines of NDJSON that aren't blank. Raises RequestError for one that is too long, and as `Body.chunk` does."""
    rest, read = bytearray(), 0

    def check_length(length: int) -> None:
        if length > max_bytes:
            limit = f"{max_bytes / 2**20:g} MiB, the limit of a sample (--max-body-mb)"
            raise RequestError(413, "TooLarge", f"line {read + 1} is longer than {limit}")

    body.begin()
    while (chunk := await body.chunk()) is not None:
        begin = len(rest)
        rest += chunk
        if (last := rest.rfind(b"\n", begin)) >= 0:
            whole, rest = bytes(rest[:last]), rest[last + 1 :]
            for line in whole.split(b"\n"):
                check_length(len(line))
                if line.strip(b" \t\r"):
                    yield Line(line)
                    read += 1
                    body.begin()
        check_length(len(rest))
    if rest.strip(b" \t\r"):
        yield Line(bytes(rest))
