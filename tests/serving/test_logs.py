"""Log lines: one a request, an object each, that nobody who asks can forge; and their way to the server's terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app import logs
from serve_app.logs import JsonLines, RelayHandler, TextLines, log_here, one_line, relayed
from serve_app.request import CurrentRequest, begin
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend

Serving = Callable[..., tuple[TestClient, LocalBackend]]
Lines = Callable[[], list[dict[str, Any]]]
HOSTILE = 'x\n{"event":"request","status":200}\r\n\x1b[2J\u2028\x00"'


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The project's, as it is before a server's process has set it up."""
    monkeypatch.setattr(logging.getLogger("opentelemetry.exporter"), "handlers", [])
    found = logging.getLogger("vig_ray")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(found, name, [] if name == "handlers" else getattr(found, name))
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]
    return found


@pytest.fixture
def json_lines(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What a server's process has logged as JSON."""
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.delenv("VIG_RAY_LOG_RELAY", raising=False)
    log_here("json")
    return lambda: [json.loads(line) for line in err.getvalue().split("\n")[:-1]]


def test_every_request_is_a_line(serving: Serving, json_lines: Lines) -> None:
    client, _ = serving(log_format="json", keys="the-key")
    key = {"Authorization": "Bearer the-key"}
    begun = datetime.now(UTC)
    asked: list[tuple[Any, ...]] = [
        ("POST", "/v1/score", {"json": EXAMPLE_QA, "headers": key}, 200, 1, None, "info"),
        ("POST", "/v1/score/batch", {"json": {"items": [EXAMPLE_QA] * 3}, "headers": key}, 200, 3, None, "info"),
        ("POST", "/v1/score", {"json": {"question": "?"}, "headers": key}, 422, 1, "Invalid", "info"),
        ("POST", "/v1/score", {"json": EXAMPLE_QA}, 401, 0, "Key", "info"),
        ("GET", "/v1/nothing", {"headers": key, "params": {"key": "the-key"}}, 404, 0, "Http", "info"),
    ]
    for method, route, sent, *_ in asked:
        client.request(method, route, **sent)
    lines = json_lines()
    assert len(lines) == len(asked)
    for line, (method, route, _, status, samples, error, level) in zip(lines, asked, strict=True):
        found = {name: line[name] for name in ("event", "method", "route", "status", "samples", "error", "level")}
        assert found == {
            "event": "request", "method": method, "route": route, "status": status, "samples": samples,
            "error": error, "level": level,
        }  # fmt: skip
        assert begun.timestamp() - 1 < datetime.fromisoformat(line["time"]).timestamp() < datetime.now(UTC).timestamp()
        assert datetime.fromisoformat(line["time"]).tzinfo == UTC
        assert line["seconds"] >= 0
        assert line["request_id"]
    told = json.dumps(lines)
    for secret in ("the-key", EXAMPLE_QA["question"], EXAMPLE_QA["answer"], EXAMPLE_QA["image"][:20]):
        assert secret not in told


def test_failures_of_the_server_are_errors_and_name_their_request(
    serving: Serving, json_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, backend = serving(log_format="json")

    async def fail(_: Any) -> Any:
        raise RuntimeError(f"about {EXAMPLE_QA['answer']}")

    monkeypatch.setattr(backend, "score", fail)
    assert client.post("/v1/score", json=EXAMPLE_QA, headers={"X-Request-ID": "mine"}).status_code == 500
    message, request = json_lines()
    assert (message["event"], message["level"], message["request_id"]) == ("message", "error", "mine")
    assert "RuntimeError at test_logs.py" in message["message"]
    assert (request["level"], request["status"], request["error"]) == ("error", 500, "Internal")
    backend.loaded = False
    client.post("/v1/score", json=EXAMPLE_QA)
    assert (json_lines()[-1]["level"], json_lines()[-1]["status"]) == ("warning", 503)
    assert EXAMPLE_QA["answer"] not in json.dumps(json_lines())
    assert backend.refusals == [("Internal", 500), ("Busy", 503)]


def test_probes_that_succeed_are_no_lines(serving: Serving, json_lines: Lines) -> None:
    client, backend = serving(log_format="json")
    assert {client.get(path).status_code for path in ("/healthz", "/readyz")} == {200}
    assert json_lines() == []
    backend.loaded = False
    client.get("/readyz")
    assert [(line["route"], line["error"]) for line in json_lines()] == [("/readyz", "Loading")]


def test_no_request_can_make_a_line(serving: Serving, json_lines: Lines) -> None:
    client, _ = serving(log_format="json")
    client.get("/v1/%0A%7B%22event%22%3A%22request%22%7D%0D%1B%E2%80%A8")
    client.get("/" + "long" * 5000, headers={"X-Request-ID": "a b"})
    client.request("GET", "/v1/model", headers={"User-Agent": b"\xe9\x85", "Host": b"\x85\xa0"})
    lines = json_lines()
    assert [line["status"] for line in lines] == [404, 404, 421]
    assert lines[0]["route"] == '/v1/\n{"event":"request"}\r\x1b\u2028'
    assert len(lines[1]["route"]) <= 2000


@pytest.mark.parametrize("sent", ["a", "A.b-c_9", "x" * 64])
def test_a_clients_request_id_is_taken(serving: Serving, json_lines: Lines, sent: str) -> None:
    client, _ = serving(log_format="json")
    assert client.get("/v1/model", headers={"X-Request-ID": sent}).headers.get_list("x-request-id") == [sent]
    assert json_lines()[-1]["request_id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", "a,b", "é", "a/b", "a\x85"])
def test_another_is_made(serving: Serving, json_lines: Lines, sent: str | None) -> None:
    client, _ = serving(log_format="json")
    headers = {} if sent is None else {"X-Request-ID": sent.encode("latin-1")}
    answers = [client.get("/v1/model", headers=headers) for _ in range(2)]
    made = [answer.headers.get_list("x-request-id") for answer in answers]
    assert made == [[line["request_id"]] for line in json_lines()]
    assert made[0] != made[1]
    assert all(len(ids[0]) == 32 for ids in made)


def test_every_answer_has_a_request_id(serving: Serving) -> None:
    client, backend = serving(client="10.0.0.7")
    for path, status in (("/healthz", 403), ("/", 403), ("/v1/model", 403), ("/nothing", 403)):
        answer = client.get(path, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine"), path
    client, backend = serving()
    backend.loaded = False
    for path in ("/", "/page/gains.css", "/openapi.json", "/v1/model", "/readyz", "/nothing"):
        assert client.get(path, headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine", path
    assert client.get("/v1/model", headers={"Host": "evil.example"}).headers["x-request-id"]


def test_text_is_quiet_and_stays_a_line(
    serving: Serving, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.delenv("VIG_RAY_LOG_RELAY", raising=False)
    log_here("text")
    client, _ = serving()
    client.post("/v1/score", json=EXAMPLE_QA)
    client.get("/nothing")
    assert err.getvalue() == ""
    logging.getLogger("vig_ray.serve").error("internal error in %s", HOSTILE)
    assert len(err.getvalue().splitlines()) == 1
    assert err.getvalue()[:-1].isprintable()


def test_a_collector_that_is_down_is_told_once_a_minute(json_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    sending = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for clock[0] in (100.0, 101.0, 159.0, 160.0, 161.0):
        sending.warning("at %s", clock[0])
        logging.getLogger("vig_ray.serve").warning("ours")
    found = [line["message"] for line in json_lines()]
    assert [text for text in found if text != "ours"] == ["at 100.0", "at 160.0"]
    assert found.count("ours") == 5


def test_escapes() -> None:
    assert one_line(HOSTILE) == 'x\\n{"event":"request","status":200}\\r\\n\\x1b[2J\\u2028\\x00"'
    assert one_line("Größe 図 ok") == "Größe 図 ok"


def test_lines_are_short_enough_to_be_whole() -> None:
    for value in ("\U0001f600" * 5000, ["\u2028" * 100] * 1000, "x" * 100_000):
        record = logging.LogRecord("n", logging.INFO, "", 0, "m", (), None)
        record.__dict__ |= {"event": "request", "fields": {"route": value, "key": "k"}}
        line = JsonLines().format(record)
        assert len(line) < 4096
        assert json.loads(line)["key"] == "k"


def test_requests_that_a_lost_engine_held_are_named(json_lines: Lines) -> None:
    begin(CurrentRequest("not-this"))
    fields = {"message": "m", "request_ids": ["a", "b"]}
    logging.getLogger("vig_ray.serve").critical("m", extra={"event": "engine_failed", "fields": fields})
    (line,) = json_lines()
    assert (line["event"], line["request_ids"], "request_id" in line) == ("engine_failed", ["a", "b"], False)
    record = logging.LogRecord("n", logging.INFO, "", 0, "m", (), None)
    record.__dict__["fields"] = fields
    assert TextLines().format(record) == "m (request a, b)"


_WRITER = """
import logging, sys
from serve_app.logs import log_here
log_here("json")
for number in range(200):
    logging.getLogger("vig_ray.serve").info("%s %s %s", sys.argv[1], number, "x" * (number * 7))
"""


def test_the_lines_of_several_processes_come_out_whole(logger: logging.Logger) -> None:
    out = io.StringIO()
    own = logging.StreamHandler(out)
    logger.handlers[:] = [own]
    with relayed("json", out):
        logger.error("of the server itself")
        writers = [subprocess.Popen([sys.executable, "-c", _WRITER, name], env=os.environ) for name in "abc"]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    texts = [line["message"].split(" ") for line in lines if "message" in line]
    assert texts[0] == ["of", "the", "server", "itself"]
    for name in "abc":
        numbers = [int(text[1]) for text in texts[1:] if text[0] == name]
        assert numbers == sorted(set(numbers))
    assert len(lines) == 601  # none was lost: all of them fit into the pipe
    assert "VIG_RAY_LOG_RELAY" not in os.environ
    assert own.formatter is None


@pytest.fixture
def full_pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A pipe that nobody reads, and its end to read from."""
    os.mkfifo(tmp_path / "log")
    pipe = os.open(tmp_path / "log", os.O_RDWR | os.O_NONBLOCK)
    yield tmp_path / "log", pipe
    os.close(pipe)


def test_a_relay_that_stands_still_holds_nobody_up(full_pipe: tuple[Path, int]) -> None:
    path, pipe = full_pipe
    handler = RelayHandler(str(path))
    handler.setFormatter(JsonLines())
    for _ in range(1000):
        handler.handle(logging.LogRecord("n", logging.INFO, "", 0, "x" * 1000, (), None))
    lost = handler.lost
    assert 0 < lost < 1000
    os.read(pipe, 1 << 20)
    handler.handle(logging.LogRecord("n", logging.INFO, "", 0, "again", (), None))
    told, after = map(json.loads, os.read(pipe, 1 << 20).decode().splitlines())
    assert (told["event"], told["lost_lines"], told["level"]) == ("lost_lines", lost, "warning")
    assert after["message"] == "again"


def test_text_in_another_script_stays_a_whole_line(full_pipe: tuple[Path, int]) -> None:
    path, pipe = full_pipe
    handler = RelayHandler(str(path))
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handle(logging.LogRecord("n", logging.INFO, "", 0, "図" * 5000, (), None))
    written = os.read(pipe, 1 << 20)
    assert len(written) <= logs._MOST_BYTES
    assert set(written.decode()) == {"図", "\n"}
    assert written.endswith(b"\n")
    RelayHandler("/nowhere/at/all").handle(logging.LogRecord("n", logging.INFO, "", 0, "m", (), None))
