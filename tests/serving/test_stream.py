"""POST /v1/score/stream over a real HTTP server: order, back-pressure, lines that are wrong, clients that leave."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.access import read_access
from serve_app.options import AppConfig
from serve_app.schema import StreamEnd, StreamItem
from tests.serving.conftest import base64_of, png
from tests.serving.http_server import Served
from vig_ray.demo import CHECKPOINT

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def served(engine: Any, demo_formatter: Any) -> Iterator[Served]:
    started = Served(engine, demo_formatter, queue=16, timeout=20, max_body_mb=0.25)
    yield started
    started.api.backend.gate.set()  # type: ignore[attr-defined]
    started.stop()


def sample(seed: int, **more: Any) -> dict[str, Any]:
    return {"question": "What is this?", "answer": f"Noise number {seed}.", "image": base64_of(png(seed)), **more}


def lines_of(samples: list[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in samples)


def streamed(url: str, body: Any) -> list[dict[str, Any]]:
    """The answer's lines, each checked against the document's model."""
    answer = httpx.post(f"{url}/v1/score/stream", content=body, headers=NDJSON, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    *items, end = [json.loads(line) for line in answer.text.splitlines()]
    for number, item in enumerate(items):
        assert StreamItem.model_validate(item).index == number
    StreamEnd.model_validate(end)
    assert (end["samples"], end["failed"]) == (len(items), sum("error" in item for item in items))
    return [*items, end]


def test_each_line_is_answered_in_its_place_as_by_itself(served: Served) -> None:
    samples = [sample(seed, id=f"sample {seed}") for seed in range(40)]
    samples[3]["image"] = "no image"
    samples[5] = {"id": "five", "question": "?"}
    del samples[7]["id"]
    body = lines_of(samples[:20]) + b"\n  \nno JSON\n" + lines_of(samples[20:])[:-1]  # the last line without its end
    *items, end = streamed(served.url, body)
    assert end == {"end": True, "samples": 41, "failed": 3}
    assert "JSON" in items.pop(20)["error"]["message"]
    for each, item in zip(samples, items, strict=True):
        assert item["id"] == each.pop("id", None)
        alone = httpx.post(f"{served.url}/v1/score", json=each).json()
        if "error" in alone:
            assert item["error"] == alone["error"]
        else:
            assert item["result"]["vig"] == pytest.approx(alone["vig"], abs=1e-5)
            assert [token["id"] for token in item["result"]["tokens"]] == [token["id"] for token in alone["tokens"]]


def test_nothing_and_other_types(served: Served) -> None:
    assert streamed(served.url, b"") == [{"end": True, "samples": 0, "failed": 0}]
    assert httpx.post(f"{served.url}/v1/score/stream", json={}).status_code == 415


def test_a_line_that_is_too_long_ends_it_and_says_so(served: Served) -> None:
    *items, end = streamed(served.url, lines_of([sample(1)]) + b"x" * 300_000 + b"\n" + lines_of([sample(2)]))
    assert len(items) == 1
    assert end["end"] is False
    assert end["error"]["kind"] == "TooLarge"
    assert "line 2" in end["error"]["message"]


def connected(served: Served, **headers: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/v1/score/stream")
    connection.putheader("Content-Type", "application/x-ndjson")
    connection.putheader("Transfer-Encoding", "chunked")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection


def send(connection: http.client.HTTPConnection, data: bytes) -> None:
    connection.send(b"%x\r\n%s\r\n" % (len(data), data))


def until(what: Any) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_answers_come_while_the_request_goes_on(served: Served) -> None:
    connection = connected(served)
    answers = None
    for seed in range(3):
        send(connection, lines_of([sample(seed)]))
        answers = answers or connection.getresponse()
        line = answers.readline()
        assert json.loads(line).get("index") == seed, line
    assert answers is not None
    send(connection, b"")  # the last chunk
    assert json.loads(answers.readline())["end"] is True
    assert answers.readline() == b""


def test_a_client_that_sends_without_end_is_held_back(served: Served) -> None:
    """Its samples wait where they come from: no more are under way than its share, and no more are read."""
    backend: Any = served.api.backend
    backend.gate.clear()
    connection = connected(served)
    assert connection.sock is not None
    connection.sock.settimeout(1)
    sent, line = 0, lines_of([sample(1)])
    with contextlib.suppress(TimeoutError):
        while sent < 5_000:
            send(connection, line)
            sent += 1
    until(lambda: served.api.places.taken == 8)
    assert backend.scoring == 8
    assert sent < 5_000  # what the sockets on the way hold, and no more
    alone = httpx.Client()
    backend.gate.set()
    assert alone.post(f"{served.url}/v1/score", json=sample(3), timeout=30).status_code == 200  # others are let in
    connection.close()
    until(lambda: served.api.places.taken == 0)


def test_streams_leave_room_for_others(served: Served) -> None:
    """Two fill every place, and as many are begun as there are places; still others are let in, and never are more
    samples under way than places."""
    backend: Any = served.api.backend
    backend.gate.clear()
    streams = [connected(served) for _ in range(16)]
    for stream in streams:
        send(stream, lines_of([sample(seed) for seed in range(40)]))
    until(lambda: served.api.places.taken == 16)
    assert httpx.post(f"{served.url}/v1/score", json=sample(1)).status_code == 503
    most, statuses = 0, []
    backend.gate.set()
    for _ in range(100):
        most = max(most, served.api.places.taken)
        statuses.append(httpx.post(f"{served.url}/v1/score", json=sample(1), timeout=30).status_code)
        if statuses[-1] == 200:
            break
        time.sleep(0.05)
    assert statuses[-1] == 200
    assert most <= 16
    for stream in streams:
        send(stream, b"")
        assert len(stream.getresponse().read().splitlines()) == 41
    until(lambda: served.api.places.taken == 0)


def test_a_stream_without_samples_holds_no_place(served: Served) -> None:
    connection = connected(served)
    send(connection, lines_of([sample(1)]))
    answers = connection.getresponse()
    assert "result" in json.loads(answers.readline())
    until(lambda: served.api.places.taken == 0)
    send(connection, lines_of([sample(2)]))
    assert "result" in json.loads(answers.readline())
    connection.close()


def test_a_sample_that_comes_a_byte_at_a_time_ends_it(engine: Any, demo_formatter: Any) -> None:
    served = Served(engine, demo_formatter, timeout=2)
    try:
        connection = connected(served)
        answers = None
        for number in range(100):
            send(connection, lines_of([sample(1)]) if number == 5 else b" ")
            time.sleep(0.1)
            answers = answers or connection.getresponse()
            if served.api.places.taken == 0 and number > 30:
                break
        assert answers is not None
        assert "result" in json.loads(answers.readline())
        assert json.loads(answers.readline())["error"]["kind"] == "Timeout"
    finally:
        served.stop()


def test_several_streams_have_a_key_s_concurrency_together(engine: Any, demo_formatter: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{name: a, sha256: {hashlib.sha256(b'secret').hexdigest()}, concurrency: 3}}]")
    served = Served(engine, demo_formatter, access=read_access(AppConfig(model=CHECKPOINT, keys=str(keys))))
    try:
        backend: Any = served.api.backend
        backend.gate.clear()
        streams = [connected(served, Authorization="Bearer secret") for _ in range(3)]
        for stream in streams:
            send(stream, lines_of([sample(seed) for seed in range(9)]))
            send(stream, b"")
        until(lambda: backend.scoring == 3)
        time.sleep(1)  # for more than there should be
        assert backend.scoring == 3
        backend.gate.set()
        for stream in streams:
            assert len(stream.getresponse().read().splitlines()) == 10
    finally:
        served.stop()


def test_a_key_that_is_taken_out_ends_its_streams(engine: Any, demo_formatter: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\nother\n")
    served = Served(engine, demo_formatter, keys="secret\nother", keys_file=str(keys))
    try:
        connection = connected(served, Authorization="Bearer secret")
        send(connection, lines_of([sample(1)]))
        answers = connection.getresponse()
        assert "result" in json.loads(answers.readline())
        keys.write_text("other\n")
        end = json.loads(answers.readline())
        assert (end["end"], end["error"]["kind"]) == (False, "Key")
    finally:
        served.stop()


@pytest.mark.parametrize("draining", [True, False])
def test_a_batch_that_came_whole_is_not_worked_off_for_nobody(served: Served, draining: bool) -> None:
    """Neither where its client has gone, nor where the server is about to end."""
    backend: Any = served.api.backend
    backend.gate.clear()
    connection = connected(served)
    send(connection, lines_of([sample(seed) for seed in range(30)]))  # one piece, of which 8 are under way
    if draining:
        send(connection, b"")
    until(lambda: backend.scoring == 8)
    if draining:
        served.api.draining = True
    else:
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until(lambda: backend.scoring == 0)
    backend.gate.set()
    until(lambda: served.api.places.taken == 0)
    if draining:
        *items, end = (json.loads(line) for line in connection.getresponse().read().splitlines())
        assert 8 <= len(items) <= 10
        assert end["error"] == {"kind": "Busy", "message": "this server is stopping"}


@pytest.mark.parametrize("whole", [True, False])
def test_who_leaves_is_not_worked_for(served: Served, whole: bool) -> None:
    backend: Any = served.api.backend
    backend.gate.clear()
    connection = connected(served)
    send(connection, lines_of([sample(seed) for seed in range(4)]))
    if whole:
        send(connection, b"")
    until(lambda: backend.scoring == 4)
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    until(lambda: backend.scoring == 0)
    assert served.api.places.taken == 0


def test_a_single_request_whose_client_leaves_is_not_worked_for(served: Served) -> None:
    backend: Any = served.api.backend
    backend.gate.clear()
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{served.url}/v1/score", json=sample(1), timeout=0.5)
    until(lambda: backend.scoring == 0)
    until(lambda: served.api.places.taken == 0)
    assert backend.recorded[-1] == ("/v1/score", 499)


def test_a_server_that_ends_answers_what_it_took_on_and_says_why(served: Served) -> None:
    """Though the client would go on for ever."""
    backend: Any = served.api.backend
    backend.gate.clear()
    connection = connected(served)
    send(connection, lines_of([sample(seed) for seed in range(3)]))
    until(lambda: backend.scoring == 3)
    served.api.draining = True
    refused = httpx.post(f"{served.url}/v1/score", json=sample(4), timeout=30)
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, "this server is stopping")
    backend.gate.set()
    answers = connection.getresponse()
    *items, end = (json.loads(answers.readline()) for _ in range(4))
    assert ["result" in item for item in items] == [True] * 3
    assert end["end"] is False
    assert end["error"] == {"kind": "Busy", "message": "this server is stopping"}
    connection.close()
    until(lambda: served.api.places.taken == 0)
