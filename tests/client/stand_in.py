"""A server that speaks vig serve's protocol, scores nothing, and fails as it is told: Starlette behind uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

FACTS = {"name": "stand-in", "fingerprint": "f" * 16, "template": "t" * 16, "dtype": "float32", "engine": "none"}
INFO = FACTS | {
    "reference": "blur", "reference_parameters": {"sigma": "w/4"}, "tau": None, "max_length": 2048, "max_body_mb": 1,
    "max_image_pixels": 10_000, "max_images": 6, "max_request_pixels": 10_000, "max_decoded_pixels": 10_000,
    "max_answer_tokens": 100, "max_items": 5, "image_hosts": [], "version": "0", "added_later": {"a": 1},
}  # fmt: skip


def sample(number: int, **more: Any) -> dict[str, Any]:
    """Its answer is what tells it from others."""
    return {"question": "?", "answer": str(number), "image": b"image"} | more


def result_of(request: dict[str, Any]) -> dict[str, Any]:
    """The score, or the error, of a request: of an answer "bad" there is none."""
    if request["answer"].startswith("bad"):
        return {"error": {"kind": "Bad", "message": request["answer"]}}
    token = {"text": request["answer"], "id": int(request["answer"]), "turn": 0, "start": 0, "end": 1}
    numbers = {"clean_logprob": -1.0, "reference_logprob": -1.5, "gain": 0.5, "active": None}
    return {
        "result": {
            "vig": float(request["answer"]), "clean_loss": 1.0, "reference_loss": 1.5, "clean_perplexity": None,
            "reference_perplexity": None, "num_answer_tokens": 1, "tokens": [token | numbers],
            "tau": request.get("tau"), "kept": None, "active_tokens": None,
            "model": FACTS, "reference_images": None, "added_later": [],
            "reference": {"name": "blur", "parameters": {}, "kernels": [3]},
        }
    }  # fmt: skip


Refuse = Callable[[str, int, list[dict[str, Any]]], Response | None]


def refused(status: int, kind: str = "Busy", **headers: str) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": "not now"}}, status, headers)


class StandIn:
    """`refuse`: from a path, the number of its request (from 1) and the samples to the response instead, None for none.

    `cut`: after how many answers the connection of stream n (from 1) is reset. `end_at`: the error that ends stream n
    after its third answer. `before`: awaited before answer n of all streams; `before_end`: before a stream's last line.
    `seen`: how often each path was asked;
    `answered`: the answers of samples in the order of their scores.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.answered: list[str] = []
        self.batches: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: Refuse = lambda path, number, items: None
        self.cut: dict[int, int] = {}
        self.break_line = False
        self.without_end: set[int] = set()
        self.end_at: dict[int, dict[str, str]] = {}
        self.rewrite: Callable[[dict[str, Any]], dict[str, Any]] = lambda line: line
        self.before: Callable[[int], Any] = lambda number: asyncio.sleep(0)
        self.before_end: Callable[[], Any] = lambda: asyncio.sleep(0)
        self.under_way = self.most_under_way = self.read_lines = 0
        app = Starlette(
            routes=[
                Route("/v1/model", self._model),
                Route("/v1/score", self._score, methods=["POST"]),
                Route("/v1/score/batch", self._batch, methods=["POST"]),
                Route("/v1/score/stream", self._stream, methods=["POST"]),
            ]
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(_Resetting(app), port=self.port, log_level="critical", http="h11")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def _asked(self, request: Request, items: list[dict[str, Any]]) -> Response | None:
        path = request.url.path
        self.seen[path] += 1
        self.headers.append(dict(request.headers))
        return self.refuse(path, self.seen[path], items)

    async def _model(self, request: Request) -> Response:
        return self._asked(request, []) or JSONResponse(INFO)

    async def _score(self, request: Request) -> Response:
        item = await request.json()
        answer = self._asked(request, [item])
        outcome = result_of(item)
        return answer or JSONResponse(outcome.get("result", outcome), 422 if "error" in outcome else 200)

    async def _batch(self, request: Request) -> Response:
        items = (await request.json())["items"]
        if (answer := self._asked(request, items)) is not None:
            return answer
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        self.batches.append([item["answer"] for item in items])
        return JSONResponse({"results": [result_of(item) for item in items]})

    async def _stream(self, request: Request) -> Response:
        answer = self._asked(request, [])
        return answer or _Lines(self._answers(request, self.seen["/v1/score/stream"]))

    async def _answers(self, request: Request, stream: int) -> AsyncIterator[bytes]:
        rest, number, failed = b"", 0, 0
        async for piece in request.stream():
            *lines, rest = (rest + piece).split(b"\n")
            self.read_lines += len(lines)
            for line in lines:
                item = json.loads(line)
                if number == self.cut.get(stream):
                    yield b'{"index": ' if self.break_line else b""
                    raise _ResetError
                if number == 3 and stream in self.end_at:
                    last = {"end": False, "samples": number, "failed": failed, "error": self.end_at[stream]}
                    yield json.dumps(last).encode() + b"\n"
                    return
                await self.before(len(self.answered))
                self.answered.append(item["answer"])
                outcome = {"index": number, "id": item.get("id")} | result_of(item)
                failed += "error" in outcome
                yield json.dumps(self.rewrite(outcome)).encode() + b"\n"
                number += 1
        if number == self.cut.get(stream):
            raise _ResetError
        await self.before_end()
        if stream not in self.without_end:
            yield json.dumps({"end": True, "samples": number, "failed": failed}).encode() + b"\n"


class _Lines(Response):
    """A body as it is made. Starlette's own watches for the client's end meanwhile, which takes parts of the request's
    body away."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="application/x-ndjson")
        self._lines = lines
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _ResetError(Exception):
    """Ends the connection where it is."""


class _Resetting:
    """ASGI middleware: an application that raises `_ResetError` leaves the answer unfinished, which uvicorn cuts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            if not _is_reset(error):
                raise


def _is_reset(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_reset(each) for each in error.exceptions)
    return isinstance(error, _ResetError)
