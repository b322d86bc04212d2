"""The names under which this server may be asked: what a page made to lead here (DNS rebinding) doesn't have."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from vig_ray.addresses import is_address


def names_of_this_machine() -> list[str]:
    """Its host name, short and full. Takes as long as the resolver takes."""
    return [socket.gethostname(), socket.getfqdn()]


def name_in(header: str) -> str:
    """The name or address in a Host header, in lower case, without the port and an address's brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower().removesuffix(".")


def is_listed(header: str, names: Sequence[str]) -> bool:
    """Whether a Host header holds an address, localhost or one of `names`, whatever the port.

    Addresses are safe: a browser that sends one has connected to it, without asking a resolver.
    """
    name = name_in(header)
    return is_address(name) or name == "localhost" or name in (listed.lower() for listed in names)
