"""Real replicas and what nobody meant to send them: the OpenAPI document at its word, noise, clients that leave."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi import checks as openapi_checks

from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.server import Server, free_port, wait_until
from tests.serving.malformed import request_of

_REQUESTS = 5200
_PROMISED = (openapi_checks.status_code_conformance, openapi_checks.content_type_conformance,
             openapi_checks.response_headers_conformance, openapi_checks.response_schema_conformance,
             openapi_checks.unsupported_method)  # fmt: skip


class Measured(Server):
    """A server whose metrics are read."""

    def __init__(self, *options: object) -> None:
        self.metrics_port = free_port()
        super().__init__("--metrics-port", self.metrics_port, *options, RAY_metrics_report_interval_ms="1000")

    def metric(self, name: str, **tags: str) -> float:
        """The sum of a metric over processes, where these tags are as given."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        found = 0.0
        for line in text.splitlines():
            match = re.match(rf"ray_{name}(\{{.*\}})? (\S+)$", line)
            if match and all(f'{tag}="{value}"' in (match[1] or "") for tag, value in tags.items()):
                found += float(match[2])
        return found


@pytest.fixture(scope="module")
def server() -> Iterator[Measured]:
    found = Measured("--max-items", 4, "--max-answer-tokens", 64, "--queue", 4000)
    yield found
    assert "Traceback" not in found.stop()


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_the_openapi_document_is_true(server: Measured, mode: schemathesis.GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: Counter[tuple[str, int]] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        if mode == schemathesis.GenerationMode.NEGATIVE and operation.method != "post":
            continue  # a GET without parameters can't be wrong

        @hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def keeps_its_word(case: Any) -> None:
            response = case.call()
            seen[case.path, response.status_code] += 1
            assert response.status_code < 500 or response.status_code in (503, 504)
            case.validate_response(response, checks=_PROMISED)
            if not case.path.endswith("/batch"):  # where what is wrong with an item is told in its place
                case.validate_response(response, checks=[openapi_checks.negative_data_rejection])

        keeps_its_word()
    assert {path for path, _ in seen} >= {"/v1/score", "/v1/score/batch"}


def test_thousands_of_malformed_requests(server: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    sent = [request_of(rng) for _ in range(_REQUESTS)]
    statuses: Counter[int] = Counter()
    before = {name: [process.pid for process in server.replicas(name)] for name in ("Ingress", "Scorer")}
    assert all(before.values())

    def memory() -> float:
        return float(sum(each.memory_info().rss for name in before for each in server.replicas(name))) / 1e6

    async def send(numbers: range) -> None:
        gate = asyncio.Semaphore(16)
        async with aiohttp.ClientSession() as client:

            async def one(number: int) -> None:
                route, body, headers = sent[number]
                async with gate, client.post(server.url + route, data=body, headers=headers) as answer:
                    statuses[answer.status] += 1
                    told = await answer.json()
                    assert answer.status in (200, 413, 415, 422), (number, told)
                    assert answer.status == 200 or told["error"]["message"]

            await asyncio.gather(*(one(number) for number in numbers))

    asyncio.run(send(range(1200)))
    first = memory()
    asyncio.run(send(range(1200, _REQUESTS)))
    last = memory()
    with capsys.disabled():
        print(f"\n{dict(statuses)}; memory of the replicas {first:.0f} MB after 1200, {last:.0f} MB after {_REQUESTS}")
    assert min(statuses[200], statuses[422]) > 500
    assert {name: [process.pid for process in server.replicas(name)] for name in before} == before
    assert last - first < 100
    assert server.post("/v1/score", EXAMPLE_QA).status_code == 200


def test_metrics_count_what_was_answered(server: Measured) -> None:
    def requests() -> tuple[float, ...]:
        return tuple(
            server.metric("vig_requests_total", route="/v1/score", status=str(status)) for status in (200, 422)
        )

    server.post("/v1/score", EXAMPLE_QA)
    wait_until(lambda: min(requests()) > 0)  # they come every few seconds
    settled = _settled(requests)
    for _ in range(3):
        server.post("/v1/score", EXAMPLE_QA)
    server.post("/v1/score", {"question": "?"})
    wait_until(lambda: requests() == (settled[0] + 3, settled[1] + 1))
    assert server.metric("vig_request_seconds_count", route="/v1/score") >= sum(requests())
    assert server.metric("vig_samples_total") > 0
    assert server.metric("vig_tokens_total") > server.metric("vig_samples_total")
    assert server.metric("vig_batch_fill_count") > 0
    assert server.metric("vig_waiting_samples") == 0


def test_work_of_clients_that_left_is_dropped(server: Measured) -> None:
    long = EXAMPLE_QA | {"question": "What color is the square? " * 8}
    scored = _settled(lambda: server.metric("vig_samples_total"))

    async def ask_and_leave(requests: int) -> None:
        body = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=body, connector=aiohttp.TCPConnector(limit=0)) as client:

            async def one() -> None:
                async with client.post(f"{server.url}/v1/score/batch", json={"items": [long] * 4}) as answer:
                    await answer.read()

            await asyncio.gather(*(one() for _ in range(requests)), return_exceptions=True)

    asyncio.run(ask_and_leave(500))
    assert server.post("/v1/score", EXAMPLE_QA).status_code == 200
    assert _settled(lambda: server.metric("vig_samples_total")) - scored < 1500  # of 2,000


def _settled(read: Any) -> Any:
    """What `read` gives once it has stayed the same for longer than metrics take."""
    value, since = read(), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.2)
        if (now := read()) != value:
            value, since = now, time.monotonic()
    return value
