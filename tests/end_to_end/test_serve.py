"""`vig serve` as its users meet it: the batch job's numbers, the OpenAPI document at its word, noise, a replica lost
under load, and an orderly end."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import hypothesis
import pyarrow.parquet as pq
import pytest
import schemathesis
import yaml
from schemathesis.specs.openapi import checks as openapi_checks

from serve_app.schema import EXAMPLE_QA, StreamEnd, StreamItem
from tests import gates as gating
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.server import Measured, Server, assert_as_scored, wait_until
from tests.gates import Begun, Gates
from tests.serving.malformed import request_of, undocumented
from vig_ray import cli
from vig_ray.demo import CHECKPOINT
from vig_ray.scoring.engines.torch import TorchEngine

Asked = tuple[dict[str, Any], dict[str, Any]]
_PROMISED = (openapi_checks.status_code_conformance, openapi_checks.content_type_conformance,
             openapi_checks.response_headers_conformance, openapi_checks.response_schema_conformance,
             openapi_checks.unsupported_method)  # fmt: skip


@schemathesis.serializer("application/x-ndjson")
def one_line(_: Any, value: Any) -> bytes:
    """The body of a stream with one line."""
    return json.dumps(value).encode() + b"\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gating.write_world(tmp_path_factory.mktemp("serve"), 40, 77)


def requests_of(world: Path, rows: list[dict[str, Any]]) -> list[Asked]:
    """What to ask for each sample with an image, and its row of scores."""
    row_of = {row["sample_key"]: row for row in rows}
    asked = []
    for path in (world / "samples").glob("*.parquet"):
        for sample in pq.read_table(path).to_pylist():
            images = [
                base64.b64encode(Path(image["uri"].removeprefix("file://")).read_bytes()).decode()
                for image in sample["images"]
            ]
            if images:
                turns = [{"role": turn["role"], "content": turn["text"]} for turn in sample["conversation"]]
                asked.append(({"messages": turns, "images": images}, row_of[sample["sample_key"]]))
    return asked


def test_the_batch_jobs_numbers_whatever_the_concurrency(
    server: Server, world: Path, demo_model: Any, demo_formatter: Any
) -> None:
    engine = TorchEngine(demo_model, demo_formatter.collate)
    samples = requests_of(world, gating.expected_scores(world, engine.logprobs))
    for clients in (1, 16):
        with ThreadPoolExecutor(clients) as pool:
            answers = list(
                pool.map(lambda pair: server.post("/v1/score", pair[0]), samples * (1 if clients == 1 else 3))
            )
        for answer, (_, row) in zip(answers, samples * 3, strict=False):
            assert answer.status_code == 200, answer.text
            assert_as_scored(answer, row)
    lines = b"".join(json.dumps(asked).encode() + b"\n" for asked, _ in samples)
    ndjson = {"Content-Type": "application/x-ndjson"}
    stream = httpx.post(f"{server.url}/v1/score/stream", content=lines, headers=ndjson, timeout=300)
    *items, end = map(json.loads, stream.text.splitlines())
    assert end == {"end": True, "samples": len(samples), "failed": 0}
    assert [item["result"]["vig"] for item in items] == pytest.approx([row["vig"] for _, row in samples], abs=1e-5)
    together = server.post("/v1/score/batch", {"items": [asked for asked, _ in samples]}).json()["results"]
    assert [item["result"]["vig"] for item in together] == pytest.approx([row["vig"] for _, row in samples], abs=1e-5)


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
            if case.path.endswith("/stream") and response.status_code == 200:
                *items, end = (json.loads(line) for line in response.content.splitlines())
                assert StreamEnd.model_validate(end).samples == len(list(map(StreamItem.model_validate, items)))
                return
            case.validate_response(response, checks=_PROMISED)
            if not case.path.endswith("/batch"):  # where what is wrong with an item is told in its place
                case.validate_response(response, checks=[openapi_checks.negative_data_rejection])

        keeps_its_word()
    assert {path for path, _ in seen} >= {"/v1/score", "/v1/score/batch", "/v1/score/stream"}


@pytest.mark.parametrize("requests", [400, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_malformed_requests(server: Server, requests: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    sent = [request_of(rng) for _ in range(requests)]
    warm_up = requests // 4
    statuses: Counter[int] = Counter()
    before = {name: [process.pid for process in server.replicas(name)] for name in ("Entrance", "Scorer")}
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
                    wrong = undocumented(route, answer.status, await answer.text())
                    assert not wrong, (number, body[:300], wrong)

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


class Gated:
    """A server with two engines that wait at gates, and what to ask it."""

    def __init__(self, world: Path, folder: Path) -> None:
        self.gates = Gates(folder)
        self.samples = requests_of(world, gating.expected_scores(world))
        self.server = Measured(
            "--workers", 2, *gating.ENGINE, "--queue", 500, "--timeout", 300, **self.gates.environment
        )

    def close_the_next(self, count: int) -> int:
        """Close the gates of the next batches; the first one's number."""
        first = len(self.gates.begun())
        self.gates.close(*range(first, first + count))
        return first

    def ask(self, requests: int) -> list[Future[tuple[dict[str, Any], httpx.Response]]]:
        """Ask for so many samples, all at the same time; what each row's answer will be."""
        pool = ThreadPoolExecutor(requests)
        chosen = [self.samples[number % len(self.samples)] for number in range(requests)]
        futures = [
            pool.submit(lambda asked, row: (row, self.server.post("/v1/score", asked)), *pair) for pair in chosen
        ]
        pool.shutdown(wait=False)
        return futures

    def wait_for(self, number: int, answers: list[Future[tuple[dict[str, Any], httpx.Response]]]) -> Begun:
        """Batch `number`, once an engine has begun it for these requests, of which none is answered before."""

        def begun() -> bool:
            early = [future.result()[1] for future in answers if future.done()]
            assert not early, f"answered before a closed gate: {early[0].status_code}: {early[0].text}"
            return len(self.gates.begun()) > number

        wait_until(begun)
        return self.gates.begun()[number]

    def engines_are_there(self) -> bool:
        """Whether both engines have a process."""
        return len(self.server.replicas("Scorer")) == 2


@pytest.fixture(scope="module")
def gated_server(preforked: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    started = Gated(world, tmp_path_factory.mktemp("gated") / "gates")
    yield started
    if started.server.process.poll() is None:
        started.server.stop()


@pytest.fixture
def gated(gated_server: Gated) -> Iterator[Gated]:
    """With all gates open after the test, however it ends."""
    yield gated_server
    gated_server.gates.open()


def test_work_of_clients_that_left_is_dropped(gated: Gated) -> None:
    """Both engines are busy, and a hundred requests wait, when those who asked leave."""
    wait_until(gated.engines_are_there)
    first = gated.close_the_next(2)
    at_the_gates = gated.ask(2)
    gated.wait_for(first, at_the_gates)
    at_the_gates += gated.ask(6)  # one of them comes to the other engine
    gated.wait_for(first + 1, at_the_gates)

    def under_way() -> float:
        return gated.server.metric("vig_under_way")

    wait_until(lambda: under_way() == 8)

    async def ask_and_leave() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            body = {"items": [gated.samples[0][0]] * 4}
            asking = [
                asyncio.create_task(client.post(f"{gated.server.url}/v1/score/batch", json=body)) for _ in range(25)
            ]
            await asyncio.to_thread(wait_until, lambda: under_way() == 8 + 100)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(ask_and_leave())
    wait_until(lambda: under_way() == 8)
    gated.gates.open()
    for row, answer in (future.result() for future in at_the_gates):
        assert_as_scored(answer, row)
    assert sum(begun.prompts for begun in gated.gates.begun()[first:]) == 2 * 8


def test_metrics_count_what_was_answered(gated: Gated) -> None:
    server = gated.server
    assert server.post("/v1/score", gated.samples[0][0]).status_code == 200
    assert server.post("/v1/score", {"question": "?"}).status_code == 422
    for (route, status), count in server.answered.items():
        wait_until(lambda r=route, s=str(status), c=count: server.metric("vig_requests_total", route=r, status=s) == c)
    answered = sum(count for (route, _), count in server.answered.items() if route == "/v1/score")
    wait_until(lambda: server.metric("vig_request_seconds_count", route="/v1/score") == answered)
    assert server.metric("vig_samples_total") > 0
    assert server.metric("vig_tokens_total") > server.metric("vig_samples_total")
    assert server.metric("vig_batch_fill_count") > 0
    assert server.metric("vig_waiting_samples") == 0


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_a_lost_engine_costs_no_answer_and_gives_no_wrong_one(gated: Gated, how: str) -> None:
    wait_until(gated.engines_are_there)
    if how == "killed":
        number = gated.close_the_next(1)
        answers = gated.ask(24)
        lost = gated.gates.kill_at(number)
    else:
        gated.gates.fail(number := len(gated.gates.begun()))
        answers = gated.ask(24)
        lost = gated.gates.wait_for(number)
        wait_until(lambda: gating.gone(lost.pid))
    for row, answer in (future.result() for future in answers):
        if answer.status_code == 200:
            assert_as_scored(answer, row)
        else:
            assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    wait_until(gated.engines_are_there)
    wait_until(lambda: gated.server.post("/v1/score", gated.samples[0][0]).status_code == 200)
    assert lost.pid not in {process.pid for process in gated.server.replicas("Scorer")}


def test_what_was_accepted_is_answered_before_the_end(gated: Gated) -> None:
    """The last one with this server, which it ends."""
    server = gated.server
    number = gated.close_the_next(2)
    items = [asked for asked, _ in gated.samples]
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.post, "/v1/score/batch", {"items": items})
        gated.gates.wait_for(number)
        server.process.send_signal(signal.SIGTERM)
        late: set[int] = set()

        def refused() -> bool:
            """Whether one more request is turned away; one that is still accepted gets no answer here."""
            try:
                late.add(httpx.post(f"{server.url}/v1/score", json=items[0], timeout=2).status_code)
            except httpx.TransportError:
                return False
            return 503 in late

        wait_until(refused)
        gated.gates.open()
        answer = accepted.result()
    assert late == {503}  # not 404, which a client may take for an answer
    assert answer.status_code == 200
    for item, (_, row) in zip(answer.json()["results"], gated.samples, strict=True):
        assert item["result"]["vig"] == pytest.approx(row["vig"], abs=1e-5)
    assert server.process.wait(120) == 0
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def test_what_cannot_be_served_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(why: str, *words: object) -> None:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["serve", *map(str, words)])
        assert why in capsys.readouterr().err.splitlines()[-1]

    refused("--keys FILE, or --open", "--model", CHECKPOINT, "--host", "0.0.0.0")
    (tmp_path / "keys").write_text("# none yet\n")
    refused("holds no key", "--model", CHECKPOINT, "--keys", tmp_path / "keys")
    refused("can't be read", "--model", CHECKPOINT, "--keys", tmp_path / "nowhere")
    refused("no such folder", "--model", tmp_path / "nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused("choose another", "--model", CHECKPOINT, "--port", taken.getsockname()[1])


def test_serve_yaml_names_the_application_and_options_that_exist() -> None:
    from serve_app.app import build
    from serve_app.options import AppConfig
    from vig_ray.errors import StageError

    (found,) = yaml.safe_load((ROOT / "serve.yaml").read_text())["applications"]
    assert found["import_path"] == f"{build.__module__}:{build.__name__}"
    assert AppConfig(**found["args"]).workers == "1..4"
    assert build({"model": CHECKPOINT, "tau": "0.5", "workers": "1..2"}) is not None  # as `serve run` gives them
    with pytest.raises(StageError, match="tau: "):
        build({"model": CHECKPOINT, "tau": "high"})
    with pytest.raises(StageError, match="model: "):
        build({})
