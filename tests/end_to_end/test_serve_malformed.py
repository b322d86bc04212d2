"""Real replicas and what nobody meant to send them: the OpenAPI document at its word, noise."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import aiohttp
import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi import checks as openapi_checks

from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.server import Server
from tests.serving.malformed import request_of

_PROMISED = (openapi_checks.status_code_conformance, openapi_checks.content_type_conformance,
             openapi_checks.response_headers_conformance, openapi_checks.response_schema_conformance,
             openapi_checks.unsupported_method)  # fmt: skip


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_the_openapi_document_is_true(server: Server, mode: schemathesis.GenerationMode) -> None:
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


@pytest.mark.parametrize("requests", [1500, pytest.param(5200, marks=pytest.mark.long)])
def test_malformed_requests(server: Server, requests: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    sent = [request_of(rng) for _ in range(requests)]
    warm_up = requests // 4
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

    asyncio.run(send(range(warm_up)))
    first = memory()
    asyncio.run(send(range(warm_up, requests)))
    last = memory()
    with capsys.disabled():
        print(
            f"\n{dict(statuses)}; memory of the replicas {first:.0f} MB after {warm_up}, {last:.0f} MB after {requests}"
        )
    assert min(statuses[200], statuses[422]) > requests // 10
    assert {name: [process.pid for process in server.replicas(name)] for name in before} == before
    assert last - first < 100
    assert server.post("/v1/score", EXAMPLE_QA).status_code == 200
