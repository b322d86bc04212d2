"""Who may ask, and how an error is told: no path, no key, no traceback."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import RequestError, error_response
from serve_app.hosts import is_address, is_listed, names_of_this_machine

log = logging.getLogger("vig_ray.serve")

_PROBES = ("/healthz", "/readyz")
_OPEN_PATHS = (*_PROBES, "/", "/openapi.json")
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def key_hashes(text: str) -> list[str]:
    """SHA-256 of each key in a file of one a line; empty lines and those that begin with # don't count."""
    keys = (line.strip() for line in text.splitlines())
    return [hashlib.sha256(key.encode()).hexdigest() for key in keys if key and not key.startswith("#")]


class Auth:
    """ASGI middleware: keys, hosts, origins, and one last answer for what should not have happened.

    `hosts`: the names under which this server may be asked, none for this machine's own. A key stands for them where
    none are listed: a page that was made to lead here has no key.
    """

    def __init__(self, app: ASGIApp, *, hashes: Sequence[str], anyone: bool, hosts: Sequence[str] = ()) -> None:
        self.app, self._hashes, self._anyone = app, list(hashes), anyone
        self._any_host = bool(hashes) and not hosts
        self._hosts = list(hosts) if hosts or self._any_host else names_of_this_machine()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or let the request through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            # The exception's text may hold what was sent, or a path: the log gets its kind and where it was raised.
            log.error("internal error in %s: %s", scope["path"][:100], _place_of(error))
            if not begun:
                problem = RequestError(500, "Internal", "an error of this server; its log says more")
                await error_response(problem)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> RequestError | None:
        """Why this request isn't let through; None where it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and scope["path"] not in _PROBES and not is_listed(host, self._hosts):
            return RequestError(421, "Host", "not asked under a name of this server; --hosts lists further ones")
        if scope["method"] != "GET" and origin and origin.partition("://")[2] != host:
            return RequestError(403, "Origin", "pages of other sites may not post here")
        if not self._hashes:
            return None if self._anyone else _refusal_of_others(scope, headers)
        if scope["path"] in _OPEN_PATHS or scope["path"].startswith("/page/"):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).hexdigest()
        # All are compared, each in constant time, so that the time tells nothing.
        found = sum(hmac.compare_digest(given, each) for each in self._hashes)
        if scheme.lower() == "bearer" and found:
            return None
        return RequestError(401, "Key", "needs the header 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})


def _refusal_of_others(scope: Scope, headers: Mapping[str, str]) -> RequestError | None:
    """Why a request without a key isn't this machine's own; None where it is."""
    address = (scope.get("client") or ("",))[0]
    proxy = next((name for name in _OF_PROXIES if name in headers), None)
    if proxy is not None:
        message = f"the header {proxy} says that a proxy sent this; behind one this server needs --keys or --open"
        return RequestError(403, "NoKey", message)
    if is_address(address) and ipaddress.ip_address(address).is_loopback:
        return None
    return RequestError(403, "NoKey", "this server has no keys and answers its own machine only")


def _place_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
    return f"{type(error).__name__} at {where}"
