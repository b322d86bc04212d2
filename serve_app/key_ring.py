"""The keys that are taken now, read anew when their file changes."""

from __future__ import annotations

import asyncio
import datetime
import hmac
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import compress

from serve_app.errors import RequestError
from serve_app.keys import Key, hash_of, read_keys
from vig_ray.errors import StageError

log = logging.getLogger("vig_ray.serve")

_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_EVERY = 1.0
"""Seconds between two looks at the file, and the most that a request waits for one."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class KeyRing:
    """`keys`, until the file at `path` says otherwise; without a path for ever.

    The file is looked at before a request is checked, at most once a second and in a thread: a key that was taken out
    of it is refused two seconds later at the latest, and only a file system that hangs delays that. A file that can't
    be read, or in which something is wrong, changes nothing and is logged once.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        *,
        path: str | None = None,
        policies: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._keys, self._path, self._policies, self._clock, self._now = tuple(keys), path, policies, clock, now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._look: Future[None] | None = None
        self._began = float("-inf")
        self._seen: tuple[int, ...] | None = None
        self._told = ""

    async def refresh(self) -> None:
        """Look at the file if it is time to."""
        if self._path is None:
            return
        if (self._look is None or self._look.done()) and self._clock() - self._began >= _EVERY:
            self._began = self._clock()
            self._look = self._thread.submit(self._read_if_changed, self._path)
        # A look that hangs makes no request wait that comes after its second.
        left = _EVERY - (self._clock() - self._began)
        if self._look is not None and not self._look.done() and left > 0:
            await asyncio.wait([asyncio.wrap_future(self._look)], timeout=left)

    def _read_if_changed(self, path: str) -> None:
        try:
            found = os.stat(path)
            # Inode and ctime too: a file put in another's place may have its size and its time.
            seen = found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns
            if seen == self._seen:
                return
            keys = read_keys(path, self._policies)
        except (OSError, StageError) as error:
            message = str(error) if isinstance(error, StageError) else f"--keys {path}: {error.strerror}"
            if message != self._told:
                log.error("%s; the keys from before stay", message)
            self._told = message
            # What is wrong in a file stays wrong until it changes; what can't be read may be readable in a moment.
            if isinstance(error, StageError) and not isinstance(error.__cause__, OSError):
                self._seen = seen
            return
        before, after = {key.name for key in self._keys}, {key.name for key in keys}
        if keys != self._keys:
            changed = [f"{sign}{name}" for sign, names in (("+", after - before), ("-", before - after))
                       for name in sorted(names)]  # fmt: skip
            log.info("--keys %s: read anew, %d keys %s", path, len(keys), " ".join(changed))
        self._keys, self._seen, self._told = keys, seen, ""

    def find(self, given: bytes) -> Key:
        """The key with these bytes. Raises RequestError where there is none, or not any more."""
        given_hash = hash_of(given)
        # All are compared, and each comparison takes the same time, so that the time reveals nothing.
        matches = [hmac.compare_digest(given_hash, key.sha256) for key in self._keys]
        key = next(compress(self._keys, matches), None)
        if key is None:
            raise RequestError(401, "Key", "needs the header 'Authorization: Bearer KEY'", _CHALLENGE)
        self._check_time(key)
        return key

    def check(self, key: Key) -> None:
        """Raise RequestError where a key that was found isn't taken any more."""
        if not any(key.sha256 == other.sha256 for other in self._keys):
            raise RequestError(401, "Key", f"the key {key.name!r} is not taken any more", _CHALLENGE)
        self._check_time(key)

    def _check_time(self, key: Key) -> None:
        if key.expires is not None and self._now() >= key.expires:
            raise RequestError(401, "Key", f"the key {key.name!r} has expired", _CHALLENGE)
