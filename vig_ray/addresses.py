"""Which addresses other people's URLs may lead to: the public internet's, not those inside a network.

A URL in a dataset or a request must not make a job ask a machine beside it, such as a cloud's metadata service.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

from aiohttp.abc import AbstractResolver, ResolveResult

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# NAT64 within a network (RFC 8215), IPv4-compatible ones (RFC 4291, 2.5.5.1), site-local ones (RFC 3879), Teredo.
_NO_HOSTS = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "::/96", "fec0::/10", "2001::/32")))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: no loopback, link-local, private or reserved one, and no
    IPv6 address by which a gateway reaches such a one of IPv4."""
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return ip.is_global and not ip.is_multicast
    if any(ip in network for network in _NO_HOSTS):
        return False
    inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def is_address(host: str) -> bool:
    """Whether a host is an IP address, which is connected to without asking a resolver."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class NotPublicError(OSError):
    """A name leads to an address that isn't allowed."""


class CheckedResolver(AbstractResolver):
    """Resolves names at the moment of connecting, so that what was checked is what is connected to.

    `allowed` says of a host and each of its addresses whether it may be connected to. Raises NotPublicError.
    """

    def __init__(self, allowed: Callable[[str, str], bool]) -> None:
        self._allowed = allowed

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host, all of which are allowed."""
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        addresses = [(version, str(address[0])) for version, _, _, _, address in infos]
        if not addresses or not all(self._allowed(host, address) for _, address in addresses):
            raise NotPublicError("not a public address")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=version, proto=0, flags=socket.AI_NUMERICHOST)
            for version, address in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""
