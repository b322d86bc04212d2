"""Images by URL, from the hosts an operator lists and from no address inside a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from serve_app.errors import RequestError, WholeRequestError
from vig_ray.addresses import CheckedResolver, is_address, is_public

PORTS = (None, 80, 443)
_REDIRECTS = 3
_SECONDS = 20


class Allowance:
    """The bytes that may still be fetched for one request, all its images together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._left = max_bytes, max_bytes

    def take(self, size: int) -> None:
        """Count `size` bytes. Raises WholeRequestError where they are more than were left."""
        self._left -= size
        if self._left < 0:
            message = f"the images named by URL have more than {self._max_bytes:,} bytes together (--max-body-mb)"
            raise WholeRequestError(413, "TooLarge", message)


def check_url(url: str, hosts: Sequence[str]) -> None:
    """Raise RequestError unless `url` is http(s) on a listed host, its usual port, without credentials."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise RequestError(422, "ImageUrl", "the image's URL can't be read") from error
    if parts.scheme not in ("http", "https"):
        raise RequestError(422, "ImageUrl", "an image is base64, a data URI or an http(s) URL")
    if not hosts:
        raise RequestError(422, "ImageUrl", "images by URL are not taken here; send the image itself, in base64")
    if host not in hosts or parts.username is not None or port not in PORTS:
        raise RequestError(422, "ImageUrl", f"images by URL are taken from these hosts only: {', '.join(hosts)}")
    if is_address(host) and not is_public(host):
        raise RequestError(422, "ImageUrl", "the image's host is not a public address")


async def fetch(url: str, hosts: Sequence[str], allowance: Allowance) -> bytes:
    """The bytes at `url`; each redirect is checked as the first address was. Raises RequestError."""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    connector = aiohttp.TCPConnector(resolver=CheckedResolver(lambda _, address: is_public(address)), force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
        for _ in range(_REDIRECTS + 1):
            check_url(url, hosts)
            try:
                async with session.get(url, allow_redirects=False) as answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, answer.headers.get("Location", ""))
                        continue
                    return await _body(answer, allowance)
            except ValueError as error:  # of urljoin; aiohttp's own of a URL is one, too
                raise RequestError(422, "ImageUrl", "the image's URL leads to what is no URL") from error
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise RequestError(
                    422, "ImageUrl", "the image's host can't be reached or is not a public one"
                ) from error
    raise RequestError(422, "ImageUrl", f"the image's URL redirects more than {_REDIRECTS} times")


async def _body(answer: Any, allowance: Allowance) -> bytes:
    if answer.status != 200:
        raise RequestError(422, "ImageUrl", f"the image's host answers {answer.status}")
    body = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 16):
        allowance.take(len(chunk))
        body += chunk
    return bytes(body)
