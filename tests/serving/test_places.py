"""Places are shared out: a client with a thousand requests under way leaves room for the others."""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from serve_app import api
from serve_app.api import Api
from serve_app.errors import RequestError
from serve_app.limits import Places
from serve_app.options import AppConfig
from serve_app.routes import make_app
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend
from tests.serving.http_server import Served
from vig_ray.demo import CHECKPOINT


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Clients that each keep so many requests under way, and come again a second after a refusal."""

    def __init__(self, total: int, under_way: dict[str, int], *, samples: dict[str, int] | None = None) -> None:
        self.clock, self.rng = Clock(), random.Random(0)
        self.places = Places(total, clock=self.clock)
        self.samples = samples or {}
        self.done: Counter[str] = Counter()
        self.refused_in_a_row: Counter[str] = Counter()
        self._events: list[tuple[float, int, Any]] = []
        self._count = 0
        for client, requests in under_way.items():
            for _ in range(requests):
                self._at(self.rng.random(), self._request(client))

    def _at(self, when: float, what: Iterator[float]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what))

    def _request(self, client: str) -> Iterator[float]:
        """One after the other; gives the seconds until it goes on."""
        refusals = 0
        while True:
            try:
                with self.places.hold(client) as place:
                    samples = self.samples.get(client, 1)
                    if samples > 1:
                        place.grow(samples)
                    yield 1 + self.rng.random()
                    self.done[client] += samples
                    refusals = 0
            except RequestError:
                refusals += 1
                self.refused_in_a_row[client] = max(self.refused_in_a_row[client], refusals)
                yield 1.0

    def run(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self.clock.now + seconds
        while self._events[0][0] <= end:
            self.clock.now, _, request = heapq.heappop(self._events)
            self._at(self.clock.now + next(request), request)
        self.clock.now = end


def test_a_client_with_one_request_at_a_time_is_not_starved_by_one_with_a_thousand() -> None:
    crowd = Crowd(32, {"thousand": 1000, "one": 1})
    crowd.run(40)
    alone = Crowd(32, {"one": 1})
    alone.run(40)
    assert crowd.refused_in_a_row["one"] <= 2
    assert crowd.done["one"] > 0.4 * alone.done["one"]  # a second's wait for each of a second and a half
    assert crowd.done["thousand"] > 0.9 * 40 * 32 / 1.5  # hardly a place lies idle


def test_crowds_get_equal_shares_whatever_their_size() -> None:
    crowd = Crowd(24, {"a": 400, "b": 40, "c": 100})
    crowd.run(20)
    before = crowd.done.copy()
    crowd.run(100)
    done = {client: crowd.done[client] - before[client] for client in crowd.done}
    assert max(done.values()) < 1.1 * min(done.values()), done
    assert sum(done.values()) > 0.9 * 100 * 24 / 1.5


def test_more_clients_than_places_take_turns() -> None:
    crowd = Crowd(4, {f"client {number}": 20 for number in range(12)})
    crowd.run(300)
    assert len(crowd.done) == 12
    assert max(crowd.done.values()) < 1.5 * min(crowd.done.values()), crowd.done


def test_a_client_whose_batches_fill_every_place_leaves_room() -> None:
    crowd = Crowd(64, {"batches": 8, "one": 1, "few": 8}, samples={"batches": 64})
    crowd.run(300)
    assert crowd.refused_in_a_row["one"] <= 4
    assert crowd.done["one"] > 50
    assert crowd.done["few"] > 4 * crowd.done["one"]
    assert crowd.done["batches"] > 300 * 64 / 4


def test_who_gives_up_frees_what_was_set_aside() -> None:
    clock = Clock()
    places = Places(2, clock=clock)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.hold("a"))
        for client in ("b", "c"):
            with pytest.raises(RequestError), places.hold(client):
                pass
    for when, free in ((4.9, False), (5.0, True)):
        clock.now = when
        if free:
            with places.hold("d"):
                pass
        else:
            with pytest.raises(RequestError), places.hold("d"):
                pass
    assert places.taken == 0


def test_a_place_that_is_set_aside_for_a_crowd_goes_to_who_has_none() -> None:
    places = Places(4, clock=Clock())
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(places.hold("crowd"))
        for _ in range(50):
            with pytest.raises(RequestError), places.hold("crowd"):
                pass
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.hold("new"))
        with pytest.raises(RequestError), places.hold("new"):
            pass
        for _ in range(2):
            held.enter_context(places.hold("crowd"))
    assert places.taken == 0


def test_counts_add_up_whatever_is_asked() -> None:
    for seed in range(20):
        rng, clock = random.Random(seed), Clock()
        places, total = Places(8, clock=clock), 8
        held: list[tuple[Any, int]] = []
        for _ in range(500):
            clock.now += rng.random() * rng.choice([0, 0.1, 3])
            if held and rng.random() < 0.5:
                hold, _ = held.pop(rng.randrange(len(held)))
                hold.__exit__(None, None, None)
            else:
                hold, samples = places.hold(rng.choice("abcd")), rng.choice([1, 1, 1, 5])
                try:
                    place = hold.__enter__()
                except RequestError:
                    continue
                try:
                    place.grow(samples)
                except RequestError as refusal:
                    hold.__exit__(type(refusal), refusal, refusal.__traceback__)
                else:
                    held.append((hold, samples))
            assert places.taken == sum(samples for _, samples in held)
            assert places.taken < 3 * total
        for hold, _ in held:
            hold.__exit__(None, None, None)
        assert places.taken == 0
        clock.now += 10
        with ExitStack() as all_of_them:
            for _ in range(total):
                all_of_them.enter_context(places.hold("e"))


def test_samples_are_prepared_in_turn_of_their_clients(
    engine: Any, demo_formatter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for one of each other client at most, and not for the whole of a batch that came before it."""
    order: list[str] = []
    prepare, begun = api.prepare_sample, threading.Event()

    def slowly(sample: Any, *rest: Any, **more: Any) -> Any:
        order.append(sample.conversation[1].text)
        begun.set()
        time.sleep(0.05)
        return prepare(sample, *rest, **more)

    monkeypatch.setattr(api, "prepare_sample", slowly)
    served = Served(engine, demo_formatter, keys="a\nb")
    try:
        many = [EXAMPLE_QA | {"answer": f"many {number}"} for number in range(30)]
        with ThreadPoolExecutor(1) as pool:
            crowd = pool.submit(
                httpx.post, f"{served.url}/v1/score/batch", json={"items": many},
                headers={"Authorization": "Bearer a"}, timeout=60,
            )  # fmt: skip
            assert begun.wait(30)
            alone = httpx.post(
                f"{served.url}/v1/score", json=EXAMPLE_QA | {"answer": "alone"}, headers={"Authorization": "Bearer b"}
            )
            assert alone.status_code == 200
            assert crowd.result().status_code == 200
    finally:
        served.stop()
    assert order.index("alone") < 15
    assert [answer for answer in order if answer != "alone"] == [each["answer"] for each in many]


def test_two_clients_over_http_one_with_hundreds_under_way(engine: Any, demo_formatter: Any) -> None:
    """In the event loop of one process, as uvicorn runs it: addresses tell clients apart where there are no keys."""
    backend = LocalBackend(engine)
    api = Api(AppConfig(model=CHECKPOINT, open=True, queue=4, reference="blind"), demo_formatter, backend)
    api.places = Places(4, clock=lambda: 0.0)  # on a slow machine seconds pass between two requests
    app = make_app(api)

    async def main() -> Counter[int]:
        statuses: Counter[int] = Counter()
        finished = asyncio.Event()

        async def crowd(client: httpx.AsyncClient) -> None:
            while not finished.is_set():
                statuses[(await client.post("/v1/score", json=EXAMPLE_QA)).status_code] += 1
                await asyncio.sleep(0.01)

        def client(address: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost", timeout=60
            )

        async with client("10.0.0.1") as many, client("10.0.0.2") as one:
            tasks = [asyncio.create_task(crowd(many)) for _ in range(200)]
            while not statuses[503]:
                await asyncio.sleep(0.01)
            for _ in range(5):
                for _ in range(2):
                    until = statuses[200] + 8  # four may have been done before, and not counted yet
                    answer = await one.post("/v1/score", json=EXAMPLE_QA)
                    if answer.status_code == 200:
                        break
                    while statuses[200] < until:  # one at least of those that were in the way
                        await asyncio.sleep(0.01)
                assert answer.status_code == 200
            finished.set()
            await asyncio.gather(*tasks)
        return statuses

    statuses = asyncio.run(main())
    assert set(statuses) == {200, 503}
    assert api.places.taken == 0
