"""A web server on this machine that misbehaves in every way that a test asks for."""

from __future__ import annotations

import email.utils
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"


class WebServer:
    """Serves `files` by path. Before that, a path's `answers` are given, one a request, the last of them for ever."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Callable[[Any], None]]] = {}
        self.asked: dict[str, list[float]] = defaultdict(list)  # when, by a clock that only goes forward
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.done = threading.Event()


def status(code: int, **headers: str) -> Callable[[Any], None]:
    def answer(request: Any) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def in_seconds(seconds: float) -> str:
    """A Retry-After header that names a date."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def body(content: bytes, *, length: int | None = None) -> Callable[[Any], None]:
    """`content`, and as much of it announced as `length`."""

    def answer(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)
        request.close_connection = True

    return answer


def endless(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(PNG)
    while not request.server.store.done.is_set():
        request.wfile.write(bytes(1 << 16))


def silent(request: Any) -> None:
    """No answer until the test is over."""
    request.server.store.done.wait()
    request.close_connection = True


def reset(request: Any) -> None:
    """The connection is broken off."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        store = self.server.store
        with store.lock:
            store.asked[self.path].append(time.monotonic())
            store.headers.append(dict(self.headers))
            answers = store.answers.get(self.path, [])
            answer = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else None
        try:
            if answer is None and self.path in store.files:
                answer = body(store.files[self.path])
            (answer or status(404))(self)
        except OSError:  # who asked has gone
            self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    store: WebServer


@contextmanager
def web_server() -> Iterator[WebServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.store = WebServer(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.store
    finally:
        server.store.done.set()
        server.shutdown()
        server.server_close()
