"""Clients that send a byte now and then: they hold a place for as long as the time limit, and are gone after it."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.server import wait_until
from tests.serving.http_server import Served
from vig_ray.scoring.engines.torch import TorchEngine

ROUTES = ["/v1/score", "/v1/score/batch"]
LENGTHS = ["Content-Length: 100000", "Transfer-Encoding: chunked"]


class SlowClient:
    """A request whose body comes a byte at a time, at each call of `drip`."""

    def __init__(self, port: int, route: str, length: str, *headers: str) -> None:
        self._chunked = "chunked" in length
        self._socket = socket.create_connection(("127.0.0.1", port))
        lines = [f"POST {route} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", length]
        self._socket.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
        self.answer, self.closed = b"", False

    def drip(self) -> bool:
        """Send a byte, read what has come; whether the server has closed the connection."""
        if not self.closed:
            try:
                self._socket.sendall(b"1\r\n \r\n" if self._chunked else b" ")
                while select.select([self._socket], [], [], 0)[0] and not self.closed:
                    received = self._socket.recv(65536)
                    self.answer, self.closed = self.answer + received, not received
            except OSError:  # a reset
                self.closed = True
        return self.closed


@pytest.fixture
def served(demo_model: Any, demo_formatter: Any) -> Iterator[Served]:
    server = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, queue=2, timeout=2)
    yield server
    server.stop()


@pytest.mark.parametrize(("size", "stays"), [(20_000, True), (3_000_000, False)])
def test_who_is_refused_asks_again_over_the_same_connection(served: Served, size: int, stays: bool) -> None:
    """Unless its body is so long that reading it would cost more than a new one."""
    served.api.places.taken = 2
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.connect()
    first = connection.sock
    for _ in range(3):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not be taken
            connection.request("POST", "/v1/score", b" " * size)
        answer = connection.getresponse()
        assert (answer.status, answer.will_close) == (503, not stays)
        answer.read()
        if not stays:
            break
        assert connection.sock is first
    connection.close()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("length", LENGTHS)
def test_slow_clients_are_gone_after_the_time_limit_and_their_places_free(
    served: Served, route: str, length: str
) -> None:
    clients = [SlowClient(served.port, route, length) for _ in range(2)]
    wait_until(lambda: served.api.places.taken == 2, 30)
    refused = httpx.post(f"{served.url}/v1/score", content=b"{}")
    assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "Busy")
    wait_until(lambda: [client.drip() for client in clients] == [True, True], 30)
    assert [client.answer.split(b" ")[1] for client in clients] == [b"408", b"408"]
    wait_until(lambda: served.api.places.taken == 0, 30)
    assert httpx.post(f"{served.url}{route}", content=b"{}").status_code == 422


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("headers", "length", "status"),
    [
        (["Origin: https://elsewhere.example"], "Content-Length: 100000", b"403"),
        ([], "Content-Length: 100000000", b"413"),
        (["X-Nothing: 1"], "Transfer-Encoding: chunked", b"503"),
    ],
)
def test_slow_clients_that_were_refused_are_gone_too(
    served: Served, route: str, headers: list[str], length: str, status: bytes
) -> None:
    served.api.places.taken = 2 if status == b"503" else 0
    client = SlowClient(served.port, route, length, *headers)
    wait_until(client.drip, 30)
    assert client.answer.split(b" ")[1] == status
    assert b"connection: close" in client.answer


def test_a_client_that_sends_all_of_a_refused_body_reads_the_refusal(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/score", content=b" " * 40_000_000, timeout=60)
    assert answer.status_code == 413


def closed_after(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    connection.settimeout(30)
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def test_headers_that_do_not_come_are_not_waited_for(served: Served) -> None:
    for begun in (b"", b"POST /v1/score HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", served.port)) as slow:
            slow.sendall(begun)
            assert b"did not come in time" in closed_after(slow)
    with socket.create_connection(("127.0.0.1", served.port)) as reused:  # of a second request on a connection, too
        reused.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        received = closed_after(reused)
        assert b"alive" in received
        assert b"did not come in time" in received


def test_headers_without_end_are_not_kept(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as endless:
        endless.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(OSError):
            for number in range(2000):
                endless.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        with contextlib.suppress(ConnectionResetError):  # by what was sent after the refusal
            assert b"too long" in closed_after(endless)
    assert httpx.get(f"{served.url}/healthz").status_code == 200
