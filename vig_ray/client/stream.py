"""POST /v1/score/stream: samples go out and answers come in on one connection, a line each, in the same order.

What was sent and isn't answered yet is kept, in a window of bounded size: where the connection is cut, another one is
opened and gets these samples first. The server stops reading while nobody reads its answers, and the window stops this
side from reading ahead, so that neither holds more than that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from vig_ray.client.answers import Failed, Outcome, outcome_of
from vig_ray.client.batches import cancelled
from vig_ray.client.errors import ClientError, CutOffError, ServerError
from vig_ray.client.requests import CONNECTION_ERRORS, Requests, told
from vig_ray.client.retries import IN_TIME, LATER, TRIES_IN_TIME
from vig_ray.client.samples import Outgoing

PATH = "/v1/score/stream"
CONTENT_TYPE = "application/x-ndjson"

_WINDOW_BYTES = 64 << 20
now = time.monotonic
# In a line of the answer: of the server at that moment, not of the sample.
_LATER = frozenset({"Busy", "Timeout"})
# In the last line: what would come again with the same samples.
_FINAL = frozenset({"TooLarge", "Invalid"})


class _CutError(Exception):
    """This connection gives no further answers. `cause`: what it was, as `Retries.wait` takes it."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(told(cause))
        self.cause = cause


class _Moves:
    """Wakes whoever waits, each time something has moved."""

    def __init__(self) -> None:
        self.next = asyncio.get_running_loop().create_future()

    def notify(self) -> None:
        self.next.set_result(None)
        self.next = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        await asyncio.wait({self.next})  # awaited by itself, it would be cancelled with one of those who wait


class _Sent:
    """What one connection has sent: how many samples are unanswered, and since when this side
    has waited for the next answer to one of them."""

    def __init__(self) -> None:
        self.unanswered, self._since = 0, 0.0

    def went(self) -> None:
        """A sample goes out."""
        self.unanswered += 1
        if self.unanswered == 1:
            self.waits()

    def waits(self) -> None:
        """The waiting begins: the program may have taken its time over the answer before."""
        self._since = now()

    def left(self, timeout: float, ended_at: float | None) -> float | None:
        """Seconds that are left of `timeout`; None where no answer is due. `ended_at`: since when the last line is,
        None where it isn't."""
        if self.unanswered or ended_at is not None:
            return max(self._since, ended_at or 0.0) + timeout - now()
        return None


class Stream:
    """One stream of samples, over as many connections as it takes.

    `samples`: read ahead by at most `window` samples. `resume`: go on with another connection after one that was cut.
    """

    def __init__(
        self, requests: Requests, samples: AsyncIterator[Outgoing | Failed], *, resume: bool, window: int
    ) -> None:
        self._requests, self._samples, self._resume, self._most = requests, samples, resume, window
        self._window: deque[Outgoing | Failed] = deque()
        self._bytes = 0
        self._ended = False
        self._broken: Exception | None = None  # what the samples raised
        self._moves = _Moves()
        self._answered = 0  # the number of the window's first sample
        self._late = 0  # how often it was answered that it takes too long
        self._ended_at = 0.0

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        """One outcome a sample, in order. What `samples` raise is raised after the outcomes of those before it.

        Raises CutOffError where the answer was cut off and isn't to be gone on with, or was so too often with nothing
        answered in between; ServerError where the stream as a whole is refused.
        """
        filling = asyncio.create_task(self._fill())
        tries = 0
        try:
            while await self._more():
                before = self._answered
                try:
                    async with aclosing(self._connection()) as connection:
                        async for outcome in connection:
                            yield outcome
                except _CutError as cut:
                    tries = 1 if self._answered > before else tries + 1
                    # A stream that was refused before it began has nothing to go on with.
                    again = self._resume or (isinstance(cut.cause, ServerError) and self._answered == before)
                    wait = self._requests.retries.wait(tries, cut.cause) if again else None
                    if wait is None:
                        raise self._cut_off(cut) from cut.cause
                    await asyncio.sleep(wait)
            if self._broken is not None:
                raise self._broken
        finally:
            await cancelled(filling)

    def _cut_off(self, cut: _CutError) -> Exception:
        if isinstance(cut.cause, ServerError):
            return cut.cause
        return CutOffError(
            f"{self._requests.url}{PATH}: the answer was cut off after {self._answered:,} samples: {cut}",
            self._answered,
        )

    async def _fill(self) -> None:
        """Read samples into the window, as long as there is room."""
        try:
            async for sample in self._samples:
                while self._window and (len(self._window) >= self._most or self._bytes >= _WINDOW_BYTES):
                    await self._moves.wait()
                self._window.append(sample)
                self._bytes += len(sample.body) if isinstance(sample, Outgoing) else 0
                self._moves.notify()
        except Exception as error:
            self._broken = error
        self._ended, self._ended_at = True, now()
        self._moves.notify()

    def _pop(self) -> Outgoing | Failed:
        sample = self._window.popleft()
        self._answered += 1
        self._late = 0
        self._bytes -= len(sample.body) if isinstance(sample, Outgoing) else 0
        self._moves.notify()
        return sample

    async def _more(self) -> bool:
        """Wait for a sample; whether there is one."""
        while not self._window and not self._ended:
            await self._moves.wait()
        return bool(self._window)

    async def _connection(self) -> AsyncGenerator[Outcome]:
        """The outcomes that one connection gives; ends with the samples. Raises _CutError, ServerError."""
        sent, answers = _Sent(), 0
        async with aclosing(self._lines(sent)) as lines:
            reading: asyncio.Task[Any] | None = None
            try:
                while True:
                    while self._window and isinstance(self._window[0], Failed):
                        failed = self._pop()
                        assert isinstance(failed, Failed)
                        yield failed
                    if reading is None:
                        reading = asyncio.create_task(_next(lines))
                        sent.waits()
                    await self._wait(reading, sent)
                    if not reading.done():
                        continue
                    line, reading = reading.result(), None
                    if self._is_end(line, sent, answers):
                        return
                    yield self._outcome(line, sent, answers)
                    answers += 1
            finally:
                await cancelled(*([] if reading is None else [reading]))

    async def _wait(self, reading: asyncio.Task[Any], sent: _Sent) -> None:
        """Wait for a line or a move. Raises _CutError where no answer has come in time to a sample that was sent, or
        after all of them the last line."""
        left = sent.left(self._requests.timeout, self._ended_at if self._ended and not self._window else None)
        if left is not None and left <= 0 and not reading.done():
            raise _CutError(TimeoutError())
        await asyncio.wait({reading, self._moves.next}, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _is_end(self, line: Any, sent: _Sent, answers: int) -> bool:
        """Whether there is nothing more to come. `line`: None where the connection has ended.

        Raises _CutError where there is, and this was the connection's last line; ServerError where it says that the
        same would come again.
        """
        if line is not None and "end" not in line:
            return False
        if line is not None and line["end"] is True and self._ended and not self._window and not sent.unanswered:
            if line.get("samples") != answers:
                raise ClientError(f"{self._requests.url}{PATH}: answers end with {line.get('samples')} of {answers}")
            return True
        if self._resume and self._ended and not self._window:
            return True  # nothing is missing but the line that says so
        why = Failed("", "the connection ended before the last line")
        if line is not None and "error" in line:
            why = Failed(str(line["error"]["kind"]), str(line["error"]["message"]))
        if why.kind in _FINAL:
            raise ServerError(self._requests.url, 413 if why.kind == "TooLarge" else 422, why.kind, why.message)
        raise _CutError(ConnectionError(why.message))

    def _outcome(self, line: Any, sent: _Sent, answers: int) -> Outcome:
        """What a line says of the window's first sample, which is taken off. Raises _CutError, ClientError."""
        if not sent.unanswered or line.get("index") != answers:
            raise ClientError(f"{self._requests.url}{PATH}: an answer numbered {line.get('index')}, not {answers}")
        try:
            outcome = outcome_of(line)
        except ValidationError as error:
            raise ClientError(f"{self._requests.url}{PATH}: answers what vig serve doesn't; is it one?") from error
        if isinstance(outcome, Failed) and outcome.kind in _LATER and not self._is_too_late(outcome):
            raise _CutError(ServerError(self._requests.url, 503, outcome.kind, outcome.message))
        sample = self._pop()
        assert isinstance(sample, Outgoing)
        if sample.id is not None and line.get("id") != sample.id:
            raise ClientError(f"{self._requests.url}{PATH}: answers {line.get('id')!r} where {sample.id!r} is due")
        sent.unanswered -= 1
        return outcome

    def _is_too_late(self, outcome: Failed) -> bool:
        """Whether the window's first sample was often enough said to take too long for that to be its outcome."""
        self._late += outcome.kind == "Timeout"
        return self._late >= min(TRIES_IN_TIME, self._requests.retries.times + 1)

    async def _body(self, sent: _Sent) -> AsyncIterator[bytes]:
        """The window's samples as lines, those that are still to come among them."""
        number = 0
        while True:
            # What has failed may have left the window before it was its turn here.
            while (number := max(number, self._answered)) < self._answered + len(self._window):
                sample = self._window[number - self._answered]
                number += 1
                if isinstance(sample, Outgoing):
                    sent.went()
                    yield sample.line
            if self._ended:
                return
            await self._moves.wait()

    async def _lines(self, sent: _Sent) -> AsyncGenerator[dict[str, Any]]:
        """The lines of the answer, as JSON objects; ends where the answer does, the beginning of a line dropped.

        Raises _CutError where the connection fails or the server is busy, ServerError where it refuses.
        """
        rest = b""
        try:
            async with self._requests.post(PATH, self._body(sent), CONTENT_TYPE) as response:
                if response.status != 200:
                    refused = await self._requests.error_of(response)
                    if refused.status in LATER | IN_TIME:
                        raise _CutError(refused)
                    raise refused
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in filter(None, lines):
                        yield self._read(line)
        except CONNECTION_ERRORS as error:
            raise _CutError(error) from error

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ClientError(f"{self._requests.url}{PATH}: answers no lines of JSON; is it vig serve?")
        return value


async def _next(lines: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(lines, None)
