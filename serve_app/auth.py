"""Which requests are let through: by key, by host, by origin, by the client's address."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.clients import Client, answering, client_at
from serve_app.errors import RequestError, error_response
from serve_app.hosts import is_listed, names_of_this_machine
from serve_app.key_ring import KeyRing
from vig_ray.addresses import is_address

log = logging.getLogger("vig_ray.serve")

_PROBES = ("/healthz", "/readyz")
_OPEN_PATHS = (*_PROBES, "/", "/openapi.json")
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Auth:
    """ASGI middleware: checks keys, hosts and origins, and answers 500 where the application raises.

    What it lets through finds its client in `serve_app.clients.current()`. `keys`: None for a server without keys.
    `hosts`: the names under which this server may be asked. Where none are listed they are this machine's names, or any
    name if there are keys: a page whose name was made to lead here has no key.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing | None, anyone: bool, hosts: Sequence[str] = ()) -> None:
        self.app, self._keys, self._anyone = app, keys, anyone
        self._any_host = keys is not None and not hosts
        self._hosts = list(hosts) if hosts or self._any_host else names_of_this_machine()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or let the request through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            client = await self._client(scope, headers)
        except RequestError as denied:
            await error_response(denied)(scope, receive, send)
            return
        response_started = False

        async def send_noting_start(message: Any) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            scope.setdefault("state", {})["key_name"] = client.key_name or None  # for the access log
            with answering(client):
                await self.app(scope, receive, send_noting_start)
        except Exception as error:
            # The exception's text may hold parts of the request, or a path: only its type and place are logged.
            log.error("internal error in %s: %s", scope["path"][:100], place_of(error))
            if not response_started:
                internal = RequestError(500, "Internal", "an error in this server; its log says more")
                await error_response(internal)(scope, receive, send)

    async def _client(self, scope: Scope, headers: Mapping[str, str]) -> Client:
        """Who sent this request. Raises RequestError where it is refused."""
        if sum(name.lower() == b"host" for name, _ in scope["headers"]) > 1:  # a proxy may go by the other one
            raise RequestError(421, "Host", "the request has more than one Host header")
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and scope["path"] not in _PROBES and not is_listed(host, self._hosts):
            raise RequestError(421, "Host", "the Host header is none of this server's names (--hosts)")
        if scope["method"] != "GET" and origin and origin.partition("://")[2] != host:
            raise RequestError(403, "Origin", "pages of other sites may not post here")
        address = (scope.get("client") or ("",))[0]
        if self._keys is None:
            refusal = None if self._anyone else _error_of_other_clients(address, headers)
            if refusal is not None:
                raise refusal
            return client_at(address)
        if scope["path"] in _OPEN_PATHS or scope["path"].startswith("/page/"):
            return client_at(address)
        await self._keys.refresh()
        # Of two headers one program may read the first, and another one the last.
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        found = self._keys.find(key.strip(b" \t") if scheme.lower() == b"bearer" else b"")
        return Client(found.name, found)


def _error_of_other_clients(address: str, headers: Mapping[str, str]) -> RequestError | None:
    """Why a request is refused on a server without keys; None where it comes from this machine."""
    proxy = next((name for name in _OF_PROXIES if name in headers), None)
    if proxy is not None:
        message = f"the header {proxy} shows that a proxy sent this; behind a proxy the server needs --keys or --open"
        return RequestError(403, "NoKey", message)
    if is_address(address) and ipaddress.ip_address(address).is_loopback:
        return None
    return RequestError(403, "NoKey", "this server has no keys, so it answers requests from its own machine only")


def place_of(error: BaseException) -> str:
    """The type of an exception and where it was raised: its text may hold parts of a request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
    return f"{type(error).__name__} at {where}"
