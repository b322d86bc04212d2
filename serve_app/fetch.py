"""Images by URL, from the hosts an operator lists and from no address inside a network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from serve_app.errors import RequestError, WholeRequestError

PORTS = (None, 80, 443)
_REDIRECTS = 3
_SECONDS = 20


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: no loopback, link-local, private or reserved one."""
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not (mapped or ip).is_multicast


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


class _PublicResolver(AbstractResolver):
    """Resolves names at the moment of connecting, so that what was checked is what is connected to."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        addresses = [(version, str(address[0])) for version, _, _, _, address in infos]
        if not addresses or not all(is_public(address) for _, address in addresses):
            raise OSError("not a public address")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=version, proto=0, flags=socket.AI_NUMERICHOST)
            for version, address in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


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
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(host):  # an address is connected to without asking the resolver
        raise RequestError(422, "ImageUrl", "the image's host is not a public address")


async def fetch(url: str, hosts: Sequence[str], allowance: Allowance) -> bytes:
    """The bytes at `url`; each redirect is checked as the first address was. Raises RequestError."""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    connector = aiohttp.TCPConnector(resolver=_PublicResolver(), force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
        for _ in range(_REDIRECTS + 1):
            check_url(url, hosts)
            try:
                async with session.get(url, allow_redirects=False) as answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, answer.headers.get("Location", ""))
                        continue
                    return await _body(answer, allowance)
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
