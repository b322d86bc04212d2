"""The HTTP of the stand-in for the hub: requests, answers, files by range, and the server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit


@dataclass
class Blob:
    """A file's content: where it lies, its size in bytes, its SHA-256 and git's own name of it."""

    path: Path
    size: int
    sha256: str
    git_name: str


@dataclass
class Request:
    """What a client asks. `revision`: decoded."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The token that the client sends, if it does."""
        sent = self.headers.get("Authorization", "")
        return sent.removeprefix("Bearer ") if sent.startswith("Bearer ") else None

    def flag(self, name: str) -> bool:
        """A parameter of the query that is on or off."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass
class Answer:
    """A status with its headers and content; a `Blob` is sent as the request's range asks."""

    status: int
    content: bytes | Blob = b""
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """An error that the hub names in its headers."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message})
        if code is not None:
            self.answer.headers["X-Error-Code"] = code


def as_json(value: Any, **headers: str) -> Answer:
    """An answer in JSON."""
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Server(Protocol):
    """What answers. `sent`: bytes of files so far."""

    url: str
    sent: int

    def answer(self, request: Request) -> Answer: ...


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one past the last of a Range header; None where it asks for all."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None:
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size


@contextmanager
def serve(server: Server) -> Iterator[None]:
    """Answer at a port of this machine for as long as the context lasts; its `url` is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            request = Request(self.command, parts.path, parse_qs(parts.query), self.headers, body)  # type: ignore[arg-type]
            try:
                self._send(request, server.answer(request))
            except OSError:  # who asked has gone
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any

        def _send(self, request: Request, answer: Answer) -> None:
            content, status = answer.content, answer.status
            start, stop = 0, content.size if isinstance(content, Blob) else len(content)
            if isinstance(content, Blob):
                answer.headers["Accept-Ranges"] = "bytes"
                span = _span(request.headers.get("Range"), content.size)
                if span is not None:
                    start, stop = span
                    status = 206 if start < stop else 416
                    answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
                    if status == 416:
                        start, stop, content = 0, 0, b""
                        answer.headers["Content-Range"] = f"bytes */{span[1]}"
            self.send_response(status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if request.method == "HEAD":
                return
            if isinstance(content, Blob):
                with content.path.open("rb") as file:
                    file.seek(start)
                    while start < stop and (data := file.read(min(1 << 20, stop - start))):
                        self.wfile.write(data)
                        start += len(data)
                        server.sent += len(data)
            else:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
