"""Fetching images by their URLs: many hosts at once, few requests to each, into a cache, with the checksum compared.

A URL is other people's data: it may lead to public addresses only, or to hosts that the user lists.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
import yarl

import vig_ray
from vig_ray.addresses import CheckedResolver, NotPublicError, is_address, is_public
from vig_ray.dataset.fetch_cache import FetchCache, FetchOptions
from vig_ray.dataset.fields import shorten
from vig_ray.dataset.hosts import Host, Hosts, SilentError, seconds_of
from vig_ray.dataset.images import is_image_file
from vig_ray.dataset.schema import RowError
from vig_ray.errors import StageError
from vig_ray.storage import one_line

T = TypeVar("T")

AGENT = f"vig-ray/{vig_ray.__version__} (images of a dataset, at its user's request)"
MAX_FETCHED_BYTES = 128 << 20

_REQUESTS = 64  # at a time, to all hosts together
_THREADS = 8  # that read and write the cache
_REDIRECTS = 5
_TIMEOUT = aiohttp.ClientTimeout(total=300, connect=20, sock_read=30)  # seconds
_TRIES = 3  # after faults of a connection or a server
_TRIES_BUSY = 6  # of a host that says it is busy
_BACKOFF_S = 1.0  # doubled with each try
_LONGEST_REST_S = 300.0
_BUSY = (429, 503)
_FAULTS = (408, 500, 502, 504)
_REMEMBERED = 1 << 16  # of failures, so that a URL that is gone isn't asked for again
_FORGOTTEN_ABOVE = 1 << 13


class _AgainError(Exception):
    """It may work when tried again: after so many seconds, or as backing off has it."""

    def __init__(self, error: RowError, host: Host | None = None, seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.host, self.seconds = error, host, seconds


class Fetcher:
    """Fetches images, in a thread of its own; for use in a `with` statement, at whose end it gives up what it is at."""

    def __init__(self, options: FetchOptions) -> None:
        self._cache = FetchCache(options.cache)
        self._private = frozenset(_plain(host) for host in options.private)
        self._hosts = Hosts(options.at_once)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._asked: dict[tuple[str, str | None], Future[str]] = {}
        self._failed: OrderedDict[tuple[str, str | None], tuple[str, str]] = OrderedDict()
        self._session: aiohttp.ClientSession
        self._slots: asyncio.Semaphore

    def __enter__(self) -> Fetcher:
        self._thread.start()
        self._run(self._begin()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown(cancel_futures=True)

    def ask(self, url: str, sha256: str | None) -> Future[str]:
        """The URI of the image in the cache, once it is there; or RowError, why it can't be had. To be called from one
        thread. Raises StageError, in the future, where the cache can't be read or written."""
        known = self._asked.get((url, sha256))
        if known is None or known.done():
            if len(self._asked) >= _FORGOTTEN_ABOVE:
                self._asked = {each: future for each, future in self._asked.items() if not future.done()}
            known = self._asked[url, sha256] = self._run(self._fetched(url, sha256))
        return known

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _begin(self) -> None:
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._allowed), limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, headers={"User-Agent": AGENT}, trust_env=False
        )
        self._slots = asyncio.Semaphore(_REQUESTS)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task is not None}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._pool, call, *arguments)

    async def _fetched(self, url: str, sha256: str | None) -> str:
        uri = self._cache.uri(url, sha256)
        if await self._in_thread(self._cache.holds, uri):
            return uri
        if (url, sha256) in self._failed:
            raise RowError(*self._failed[url, sha256])
        try:
            file = await self._tried(url, sha256)
        except RowError as error:
            self._failed[url, sha256] = error.kind, str(error).removeprefix(f"{error.kind}: ")
            if len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
            raise
        with file:
            await self._in_thread(self._cache.put, uri, file)
        return uri

    async def _tried(self, url: str, sha256: str | None) -> SpooledTemporaryFile[bytes]:
        """The image's file, after as many tries as it takes. Raises RowError."""
        tried = 0
        while True:
            tried += 1
            try:
                return await self._asked_for(url, sha256)
            except _AgainError as again:
                seconds = again.seconds
                if seconds is None:
                    seconds = _BACKOFF_S * 2 ** (tried - 1) * random.uniform(1, 1.5)  # not all at the same moment
                if tried >= (_TRIES_BUSY if again.host else _TRIES) or seconds > _LONGEST_REST_S:
                    raise again.error from again
                if again.host is None:
                    await asyncio.sleep(seconds)
                else:
                    again.host.rest(seconds)

    async def _asked_for(self, url: str, sha256: str | None) -> SpooledTemporaryFile[bytes]:
        """What is at a URL, by way of redirects, each a request like the first. Raises RowError or _AgainError."""
        asked = url
        for _ in range(_REDIRECTS + 1):
            target = self._checked(asked)
            try:
                async with self._hosts.turn(_plain(target.raw_host or "")) as host, self._slots:
                    try:
                        async with self._session.get(target, allow_redirects=False) as answer:
                            host.answered()
                            if answer.status in (301, 302, 303, 307, 308):
                                asked = _redirected(asked, answer.headers.get("Location", ""))
                                continue
                            _check_status(answer, url, host)
                            return await self._body(answer, url, sha256)
                    except (aiohttp.ClientConnectionError, TimeoutError) as error:
                        if not isinstance(error, aiohttp.ClientConnectorDNSError):
                            host.unanswered()
                        raise _not_answered(error, target) from error
            except SilentError as error:
                raise RowError("NoAnswer", f"{shorten(url)}: {target.raw_host} is {error}") from error
            except (aiohttp.InvalidURL, UnicodeError) as error:  # the latter of a host that can't be a name
                raise _no_url(asked) from error
            except aiohttp.ClientError as error:  # the body ended early, or it isn't HTTP
                raise _AgainError(RowError("BadAnswer", f"{shorten(url)}: {one_line(error)[:200]}")) from error
        raise RowError("TooManyRedirects", f"{shorten(url)}: more than {_REDIRECTS}, the last to {shorten(asked)}")

    def _checked(self, url: str) -> yarl.URL:
        """A URL as it is asked for. Raises RowError where it isn't one that may be."""
        try:
            target = yarl.URL(url)  # what aiohttp takes for its host is what is checked
            host = _plain(target.raw_host or "")
        except ValueError as error:
            raise _no_url(url) from error
        if target.scheme not in ("http", "https") or not host:
            raise RowError("ImageUrl", f"{shorten(url)}: not an http(s) URL")
        if is_address(host) and not self._allowed(host, host):
            raise _not_public(target)
        return target

    def _allowed(self, host: str, address: str) -> bool:
        return is_public(address) or _plain(host) in self._private

    async def _body(self, answer: aiohttp.ClientResponse, url: str, sha256: str | None) -> SpooledTemporaryFile[bytes]:
        """The body of an answer, if it is an image and the one that is meant. Raises RowError."""
        too_large = RowError(
            "TooLarge", f"{shorten(url)}: more than {MAX_FETCHED_BYTES} bytes, which is the most allowed"
        )
        if (answer.content_length or 0) > MAX_FETCHED_BYTES:
            raise too_large
        digest, size, head = hashlib.sha256(), 0, b""
        file = self._cache.scratch()
        try:
            async for chunk in answer.content.iter_chunked(1 << 16):
                size += len(chunk)
                if size > MAX_FETCHED_BYTES:
                    raise too_large
                if len(head) < 16:
                    head += chunk
                    if len(head) >= 16:
                        _check_head(head, url)
                digest.update(chunk)
                _write(file, chunk)
            _check_head(head, url)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise RowError("Checksum", f"{shorten(url)}: its SHA-256 is {digest.hexdigest()}, not {sha256}")
        except BaseException:
            file.close()
            raise
        return file


def _plain(host: str) -> str:
    return host.strip().strip("[]").lower().rstrip(".")


def _no_url(url: str) -> RowError:
    return RowError("ImageUrl", f"{shorten(url)}: not a URL that can be asked for")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _no_url(location) from error


def _not_public(url: yarl.URL) -> RowError:
    host = url.raw_host
    return RowError(
        "PrivateAddress",
        f"{shorten(str(url))}: {host} isn't on the public internet; for a store of your own: --fetch-private {host}",
    )


def _write(file: SpooledTemporaryFile[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise StageError(f"{tempfile.gettempdir()}: images that are fetched can't be held there: {error}") from error


def _check_status(answer: aiohttp.ClientResponse, url: str, host: Host) -> None:
    """Raise RowError or _AgainError unless the answer is the image."""
    if answer.status == 200:
        return
    reason = f" {answer.reason}" if answer.reason else ""
    error = RowError(f"HTTP{answer.status}", f"{shorten(url)}: the server answers {answer.status}{reason}")
    if answer.status in _BUSY:
        raise _AgainError(error, host, seconds_of(answer.headers.get("Retry-After")))
    raise _AgainError(error) if answer.status in _FAULTS else error


def _check_head(head: bytes, url: str) -> None:
    if not is_image_file(head):
        raise RowError("NotAnImage", f"{shorten(url)}: begins {head[:16]!r}" if head else f"{shorten(url)}: 0 bytes")


def _not_answered(error: Exception, url: yarl.URL) -> Exception:
    """What a request that got no answer is to its row."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, NotPublicError):
            return _not_public(url)
        unknown = RowError("HostNotFound", f"{shorten(str(url))}: {url.raw_host}: {error.os_error.strerror}")
        return _AgainError(unknown) if error.os_error.errno == socket.EAI_AGAIN else unknown
    if isinstance(error, TimeoutError):
        return _AgainError(RowError("Timeout", f"{shorten(str(url))}: no answer in time"))
    cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return _AgainError(RowError("ConnectionFailed", f"{shorten(str(url))}: {cause[:200]}"))
