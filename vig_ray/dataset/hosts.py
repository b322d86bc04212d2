"""Politeness to the hosts that images are fetched from, each by itself: so many requests at once, a rest when it asks
for one, and none for a while to a host that doesn't answer at all."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_SILENT_REQUESTS = 8  # in a row without an answer, after which a host is left alone for so long:
_SILENT_S = 300.0
_FORGOTTEN_ABOVE = 4096


class SilentError(Exception):
    """A host that hasn't answered several requests in a row isn't asked for a while."""


class Host:
    """One host. All its methods are called from one event loop."""

    def __init__(self, at_once: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._rests_until = self._left_until = 0.0
        self._unanswered = self.users = 0

    def rest(self, seconds: float) -> None:
        """Let no request begin for so long."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    def answered(self) -> None:
        """A request got an answer, whatever it was."""
        self._unanswered, self._left_until = 0, 0.0

    def unanswered(self) -> None:
        """A request got none: no connection, or nothing over it."""
        self._unanswered += 1
        if self._unanswered >= _SILENT_REQUESTS:
            self._left_until = time.monotonic() + _SILENT_S

    @property
    def idle(self) -> bool:
        """Whether it isn't asked now, and may be."""
        return not self.users and time.monotonic() >= max(self._rests_until, self._left_until)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a slot, and until the host has rested. Raises SilentError."""
        async with self._slots:
            while (rest := self._rests_until - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            if time.monotonic() < self._left_until:
                raise SilentError(f"not asked: {self._unanswered} requests in a row had no answer")
            yield


class Hosts:
    """All hosts by their names; idle ones are forgotten when there are many."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._hosts: dict[str, Host] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Host]:
        """A host, once it may be asked. Raises SilentError."""
        if len(self._hosts) > _FORGOTTEN_ABOVE:
            self._hosts = {each: host for each, host in self._hosts.items() if not host.idle}
        host = self._hosts.setdefault(name, Host(self._at_once))
        host.users += 1
        try:
            async with host.turn():
                yield host
        finally:
            host.users -= 1


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds that a Retry-After header asks to wait, as a number or a date; None for what is neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
