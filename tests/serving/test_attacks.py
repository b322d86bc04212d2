"""Attacks on a real HTTP server, each tried: requests hidden in others, paths that climb, bodies that unpack."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.server import wait_until
from tests.serving.conftest import base64_of, png
from tests.serving.http_server import Served
from vig_ray.scoring.engines.torch import TorchEngine

HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
_START = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def served(demo_model: Any, demo_formatter: Any) -> Iterator[Served]:
    server = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, timeout=3, max_body_mb=4)
    yield server
    server.stop()


def exchanged(served: Served, request: bytes) -> bytes:
    """All that comes back until the server closes the connection, or five seconds have passed."""
    received, end = b"", time.monotonic() + 5
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(request)
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            try:
                part = connection.recv(65536)
            except (TimeoutError, ConnectionResetError):
                break
            if not part:
                break
            received += part
    return received


CHUNKED = b"0\r\n\r\n" + HIDDEN


@pytest.mark.parametrize(
    "request_bytes",
    [
        # A proxy that goes by the length passes all of it on as one body; one that goes by chunks sees two requests.
        _START + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(CHUNKED) + CHUNKED,
        _START + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKED,
        _START + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        _START + b"Content-Length: +%d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        _START + b"Content-Length : %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        _START + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        _START + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
        _START + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
        _START + b"Transfer-Encoding\r\n : chunked\r\n\r\n" + CHUNKED,
        _START + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
        _START + b"X: y\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        _START + b"Transfer-Encoding: chunked\r\n\r\n" + b"FFFFFFFFFFFFFFFFF\r\n" + CHUNKED,
        _START + b"Transfer-Encoding: chunked\r\n\r\n" + b"-1\r\n" + CHUNKED,
        b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"POST /v1/score\r\n HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=range(17),
)
def test_no_request_is_hidden_in_another(served: Served, request_bytes: bytes) -> None:
    """What two programs on the way could read in two ways is refused, and the connection ends with it."""
    received = exchanged(served, request_bytes)
    assert b"alive" not in received, received
    assert received.startswith(b"HTTP/1.1 4") or not received, received
    assert received.count(b"HTTP/1.1 ") <= 1, received
    assert httpx.get(f"{served.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/../options.py", "/page/../../pyproject.toml", "/page/%2e%2e/options.py", "/page/..%2foptions.py",
        "/page/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd", "/page//etc/passwd", "/page/..\\options.py",
        "/page/%5c..%5coptions.py", "/page/page.js%00.html", "//etc/passwd", "/page/....//options.py",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(served: Served, path: str) -> None:
    received = exchanged(served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404") or head.startswith(b"HTTP/1.1 400"), received
    assert b"import" not in body
    assert b"root:" not in body


def flooded(served: Served, first: bytes, more: bytes, most: int) -> int:
    """Bytes that the server takes of `first` and `more` again and again, before it ends the connection."""
    sent = 0
    with socket.create_connection(("127.0.0.1", served.port)) as connection, contextlib.suppress(OSError):
        connection.settimeout(10)
        connection.sendall(first)
        while sent < most:
            connection.sendall(more)
            sent += len(more)
    return sent


def test_requests_sent_ahead_of_answers_are_few(served: Served) -> None:
    """Each would be kept until its turn comes, at 80 times its size."""
    several = HIDDEN * 9 + HIDDEN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert exchanged(served, several).count(b"HTTP/1.1 200") == 10
    before = psutil.Process().memory_info().rss
    assert flooded(served, b"", HIDDEN * 1000, 100_000_000) < 20_000_000
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.mark.parametrize("more", [b"a: b\r\n" * 1000, b"a: " + b"b" * 6000], ids=["many", "one"])
@pytest.mark.parametrize("head", [_START, _START + b"Origin: https://elsewhere\r\n"], ids=["taken", "refused"])
def test_trailers_are_not_kept(served: Served, head: bytes, more: bytes) -> None:
    begun = head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    assert flooded(served, begun, more, 100_000_000) < 20_000_000


def test_trailers_are_no_headers(served: Served) -> None:
    body = json.dumps(EXAMPLE_QA).encode()
    sent = _START + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(body), body)
    assert exchanged(served, sent + b"Host: evil.example\r\nVia: a\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_an_empty_line_gives_no_connection_more_time(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(20)
        connection.sendall(HIDDEN)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("requests", [1, 12])
def test_answers_that_are_not_read_are_not_kept(engine: Any, demo_formatter: Any, requests: int) -> None:
    """Nor is their connection. Of twelve requests the later ones wait for room to write their answers to."""
    served = Served(engine, demo_formatter, send_buffer=4096, timeout=2)
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", served.port))
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * requests)
            wait_until(lambda: served.connections() == 1, 30)
            wait_until(lambda: served.connections() == 0, 30)
            assert not served.tasks()
    finally:
        served.stop()


def test_a_body_is_taken_as_it_comes_and_not_unpacked(served: Served) -> None:
    bomb = gzip.compress(b" " * 200_000_000, 9)
    assert len(bomb) < 1 << 20
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        answer = httpx.post(f"{served.url}/v1/score", content=bomb, headers=headers)
        assert answer.status_code in (415, 422)


@pytest.mark.parametrize("route", ["/v1/score", "/v1/score/batch", "/v1/score/stream"])
@pytest.mark.parametrize("opening", [b"[", b'{"messages":', b'{"a":['])
def test_nesting_without_end_is_refused(served: Served, route: str, opening: bytes) -> None:
    kind = "application/x-ndjson" if route.endswith("stream") else "application/json"
    body = opening * (3_000_000 // len(opening))
    answer = httpx.post(f"{served.url}{route}", content=body, headers={"Content-Type": kind}, timeout=60)
    assert answer.status_code in (200, 422)
    error = json.loads(answer.text.splitlines()[0])["error"]
    assert error["kind"] == "Invalid"
    assert len(error["message"]) < 2000  # and isn't sent back
    assert httpx.post(f"{served.url}/v1/score", json=EXAMPLE_QA, timeout=60).status_code == 200


def test_a_stream_is_no_way_around_the_limits_of_a_request(served: Served) -> None:
    """A line that would be refused by itself is refused in a stream, and those around it aren't."""
    good = {"question": "What?", "answer": "This.", "image": base64_of(png())}
    many = {"messages": [{"role": "user", "content": "<image>" * 300}, {"role": "assistant", "content": "So many."}],
            "images": [base64_of(png(side=8))] * 300}  # fmt: skip
    long = good | {"answer": "word " * 5000}
    url = good | {"image": "http://169.254.169.254/latest/meta-data/"}
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in (good, many, long, url, good))
    headers = {"Content-Type": "application/x-ndjson"}
    answer = httpx.post(f"{served.url}/v1/score/stream", content=lines, headers=headers, timeout=60)
    *items, end = map(json.loads, answer.text.splitlines())
    assert [item.get("error", {}).get("kind") for item in items] == [None, "TooLarge", "TooLong", "ImageUrl", None]
    assert end == {"end": True, "samples": 5, "failed": 3}
