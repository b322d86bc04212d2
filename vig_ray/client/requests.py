"""Requests to one server: its address, the key, one session, and trying again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from vig_ray.client.errors import ClientError, ServerError
from vig_ray.client.retries import ENGINE_DIED, IN_TIME, LATER, Retries, retry_after

log = logging.getLogger(__name__)

CONNECTION_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)
"""What aiohttp raises where there is no connection, or no longer one."""


class Requests:
    """`timeout`: seconds for an answer, from the request's beginning. `retries`: tries after the first one."""

    def __init__(self, url: str, *, key: str | None, timeout: float, retries: int) -> None:
        self.url, self.timeout, self.retries = _checked(url), timeout, Retries(retries)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def post(self, path: str, data: bytes | AsyncIterable[bytes], content_type: str) -> Any:
        """A POST whose answer is to be read in an `async with` block; only connecting has a time limit."""
        return self._request(
            "POST", path, data, content_type, aiohttp.ClientTimeout(total=None, sock_connect=self.timeout)
        )

    async def json(
        self, method: str, path: str, body: bytes | None = None, *, retried: frozenset[int] = LATER | IN_TIME
    ) -> Any:
        """The JSON that a request is answered with, asked for again where the connection fails or the status is one of
        `retried`.

        Raises ServerError for any other status but 200, and for the last of too many; ClientError where the server
        can't be reached.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(method, path, body)
            except ServerError as error:
                again = error.status in retried and error.kind != ENGINE_DIED
                wait = self.retries.wait(tries, error) if again else None
                if wait is None:
                    raise
                failed: Exception = error
            except CONNECTION_ERRORS as error:
                wait = self.retries.wait(tries, error)
                if wait is None:
                    raise ClientError(f"{self.url}: {told(error)}, at the last of {tries} tries") from error
                failed = error
            log.debug("%s: %s; trying again in %.1f s", self.url, told(failed), wait)
            await asyncio.sleep(wait)

    async def error_of(self, response: aiohttp.ClientResponse) -> ServerError:
        """What a response that isn't 200 says."""
        kind, message = "Http", response.reason or "no more was said"
        try:
            error = json.loads(await response.read())["error"]
            kind, message = str(error["kind"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            location = response.headers.get("Location")
            message = f"leads to {location}; give that address" if location else message
        return ServerError(self.url, response.status, kind, message, retry_after(response.headers.get("Retry-After")))

    async def close(self) -> None:
        """Close all connections; no other is opened after that."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _once(self, method: str, path: str, body: bytes | None) -> Any:
        limit = aiohttp.ClientTimeout(total=self.timeout)
        async with self._request(method, path, body, "application/json", limit) as response:
            if response.status != 200:
                raise await self.error_of(response)
            content = await response.read()
        try:
            return json.loads(content)
        except ValueError as error:
            raise ClientError(f"{self.url}{path}: answers no JSON; is it vig serve?") from error

    def _request(self, method: str, path: str, data: Any, content_type: str, limit: aiohttp.ClientTimeout) -> Any:
        if self._closed:
            raise ClientError("the client is closed")
        if self._session is None:  # it belongs to the event loop, which isn't there yet when a client is made
            self._session = aiohttp.ClientSession(headers=self._headers, read_bufsize=1 << 20)
        headers = {} if data is None else {"Content-Type": content_type}
        # A redirect would take the key along, and a body that comes once can't follow it.
        return self._session.request(
            method, self.url + path, data=data, headers=headers, timeout=limit, allow_redirects=False
        )


def told(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checked(url: str) -> str:
    """The server's address without a slash at its end. Raises ClientError."""
    if "@" in url:  # said first, so that no message repeats a password
        raise ClientError("the server's address has a user; give the key by itself")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        good = False
    if not good:
        raise ClientError(f"{url}: takes the address of a vig serve, such as http://localhost:8000")
    if parts.query or parts.fragment:
        raise ClientError("the server's address has a query or a fragment; leave it out")
    return url.rstrip("/")
