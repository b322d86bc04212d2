"""A judge on this machine: an OpenAI-compatible server that answers by rule, and fails as a test asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer:
    """`reply`: from a request's body to what the judge says, or to a fault. `faults`: what the next requests get
    instead."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.reply: Callable[[dict[str, Any]], Any] = lambda body: "1.0"
        self.faults: list[Callable[[Any], None]] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.done = threading.Event()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        judge: JudgeServer = self.server.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.asked.append(body)
            judge.headers.append(dict(self.headers))
            fault = judge.faults.pop(0) if judge.faults else None
        with suppress(OSError):  # who asked has gone
            if self.path != "/v1/chat/completions":
                fault = error(404, "no such path")
            if fault is not None:
                fault(self)
                return
            content = judge.reply(body)
            if callable(content):
                content(self)
                return
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            whole = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            answer(200, whole | {"choices": [choice], "usage": usage})(self)

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass


def answer(code: int, content: Any, **headers: str) -> Callable[[Any], None]:
    """An answer with this status, and JSON or bytes in it."""

    def give(request: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return give


def error(code: int, message: str = "", **headers: str) -> Callable[[Any], None]:
    return answer(code, {"error": {"message": message, "type": "x"}}, **headers)


def silent(request: Any) -> None:
    """No answer until the test is over."""
    request.server.judge.done.wait()
    request.close_connection = True


def cut(request: Any) -> None:
    """An answer that ends before its end."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [')
    request.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    judge: JudgeServer


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.judge = JudgeServer(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.judge
    finally:
        server.judge.done.set()
        server.shutdown()
        server.server_close()
