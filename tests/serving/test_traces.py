"""Traces, read as a collector would: by OpenTelemetry's own protobuf."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError

from serve_app.options import AppConfig
from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.server import free_port
from tests.serving.conftest import LocalBackend

Serving = Callable[..., tuple[TestClient, LocalBackend]]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP collector. It answers once `answering` is set, which it is unless a test clears it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.answering = threading.Event()
        self.answering.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.answering.wait(60)
                outer.bodies.append(body)
                outer.paths.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[Any, str]]:
        """Each span, and the service that sent it."""
        found = []
        for body in self.bodies:
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (service,) = (
                    attribute.value.string_value
                    for attribute in of_resource.resource.attributes
                    if attribute.key == "service.name"
                )
                found += [(span, service) for of_scope in of_resource.scope_spans for span in of_scope.spans]
        return found

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    begun = Collector()
    yield begun
    begun.close()


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes, by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_is_a_tree_of_spans_on_the_clients_trace(serving: Serving, collector: Collector) -> None:
    client, _ = serving(traces=collector.url)
    with client:
        sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
        assert client.post("/v1/score", json=EXAMPLE_QA, headers=sent).status_code == 200
    assert set(collector.paths) == {"/v1/traces"}
    assert {service for _, service in collector.spans()} == {"vig-ray"}
    spans = {span.name: span for span, _ in collector.spans()}
    assert set(spans) == {"POST /v1/score", "read body", "prepare", "score", "answer"}
    request = spans.pop("POST /v1/score")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == 2  # a server's
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    order = sorted(spans, key=lambda name: spans[name].start_time_unix_nano)
    assert order == ["read body", "prepare", "score", "answer"]
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200,
        "vig.request_id": "mine", "vig.samples": 1,
    }  # fmt: skip
    assert all(not span.attributes and not span.events for span in spans.values())


def test_each_sample_of_a_batch_has_its_spans(serving: Serving, collector: Collector) -> None:
    client, _ = serving(traces=f"{collector.url}/v1/traces")
    with client:
        assert client.post("/v1/score/batch", json={"items": [EXAMPLE_QA] * 3}).status_code == 200
    names = sorted(span.name for span, _ in collector.spans())
    assert names == sorted(["POST /v1/score/batch", "read body", *["prepare", "score", "answer"] * 3])
    assert len({span.trace_id for span, _ in collector.spans()}) == 1


def test_nothing_of_a_sample_is_in_them(
    serving: Serving, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, backend = serving(traces=collector.url, keys="the-key")
    key = {"Authorization": "Bearer the-key"}
    secret = {"question": "SECRET question", "answer": "SECRET answer", "image": EXAMPLE_QA["image"]}
    score = backend.score

    async def fail(_: Any) -> Any:
        raise RuntimeError("SECRET in an exception")

    with client:
        assert client.post("/v1/score", json=secret, headers=key).status_code == 200
        assert client.post("/v1/score", json=secret | {"image": "SECRET"}, headers=key).status_code == 422
        assert client.post("/v1/score", json=secret).status_code == 401
        assert client.get("/SECRET?SECRET", headers=key).status_code == 404
        monkeypatch.setattr(backend, "score", fail)
        assert client.post("/v1/score", json=secret, headers=key).status_code == 500
        monkeypatch.setattr(backend, "score", score)
    assert len(collector.spans()) > 10
    for hidden in (b"SECRET", b"the-key", EXAMPLE_QA["image"][:20].encode()):
        assert not any(hidden in body for body in collector.bodies)
    ended = {}
    for span, _ in collector.spans():
        if not span.parent_span_id:
            found = attributes(span)
            ended[found["http.response.status_code"]] = (found.get("error.type"), span.status.code)
        assert not span.events
    # 2 is the status ERROR; a client's mistakes are none
    assert ended == {200: (None, 0), 422: ("BadImage", 0), 401: ("Key", 0), 404: ("Http", 0), 500: ("Internal", 2)}


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
def test_a_wrong_traceparent_begins_a_new_trace(serving: Serving, collector: Collector, header: str) -> None:
    client, _ = serving(traces=collector.url)
    with client:
        assert client.get("/v1/model", headers={"traceparent": header}).status_code == 200
    ((span, _),) = collector.spans()
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE


def test_what_the_client_does_not_sample_is_not_sent_and_probes_are_not_either(
    serving: Serving, collector: Collector
) -> None:
    client, _ = serving(traces=collector.url)
    with client:
        client.get("/v1/model", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.get("/readyz")
    assert collector.spans() == []


def test_a_collector_that_is_down_or_stuck_fails_no_request(serving: Serving, collector: Collector) -> None:
    collector.answering.clear()
    for url in (f"http://127.0.0.1:{free_port()}", collector.url):
        client, _ = serving(traces=url)
        with client:
            assert [client.post("/v1/score", json=EXAMPLE_QA).status_code for _ in range(3)] == [200] * 3


def test_without_the_option_there_are_none(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tracer(*_: Any) -> Any:
        raise AssertionError("a tracer was made")

    monkeypatch.setattr("serve_app.routes.Traces", no_tracer)
    monkeypatch.setattr("serve_app.traces._part", no_tracer)
    client, _ = serving()
    assert client.post("/v1/score", json=EXAMPLE_QA).status_code == 200


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, told in (("http://h:4318", "http://h:4318/v1/traces"), ("https://h/otlp/x", "https://h/otlp/x")):
        assert AppConfig(model="m", traces=url).traces == told
    for wrong in ("localhost:4318", "grpc://h:4317", "http://", ""):
        with pytest.raises(ValidationError, match="traces"):
            AppConfig(model="m", traces=wrong)
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name.startswith("opentelemetry.exporter") else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ValidationError, match=r"pip install 'vig-ray\[traces\]'"):
        AppConfig(model="m", traces="http://h:4318")
    assert AppConfig(model="m").traces is None
