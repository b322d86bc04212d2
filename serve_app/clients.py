"""Who asks: a key, or where there are none an address. Places and the engine's turns are shared out among them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from serve_app.keys import Key
from vig_ray.addresses import is_address

_IPV6_PREFIX = 64  # what one customer of a network is given, with 2^64 addresses in it


class Client(NamedTuple):
    """`name`: the key's, or the address; what is shared out is shared out by it."""

    name: str
    key: Key | None = None

    @property
    def key_name(self) -> str:
        """For logs and metrics; "" without a key."""
        return self.key.name if self.key is not None else ""


def client_at(address: str) -> Client:
    """The client at an address; all of an IPv6 network of 64 bits are one."""
    if is_address(address):
        ip = ipaddress.ip_address(address)
        if ip.version == 6 and not ip.is_loopback and ip.ipv4_mapped is None:
            return Client(str(ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX), strict=False)))
    return Client(address)


_NOBODY = Client("")
# A variable of the context goes along with a request, into the tasks it starts, without each function passing it on.
_current: ContextVar[Client] = ContextVar("client", default=_NOBODY)


def current() -> Client:
    """Who sent the request that is being answered; outside of one a client without a name."""
    return _current.get()


@contextmanager
def answering(client: Client) -> Iterator[None]:
    """What runs inside answers a request of this client."""
    token = _current.set(client)
    try:
        yield
    finally:
        _current.reset(token)
