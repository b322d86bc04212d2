"""Limits a key: each of them with a clock that the test sets, and over HTTP."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app.clients import Client
from serve_app.errors import RequestError, busy
from serve_app.keys import Key, hash_of
from serve_app.limits import Places
from serve_app.quota import Quotas, admitted
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend

Serving = Callable[..., tuple[TestClient, LocalBackend]]

NOON = datetime.datetime(2027, 1, 31, 12, tzinfo=datetime.UTC)


class Timed:
    """Quotas of a key, and a clock."""

    def __init__(self, *, processes: int = 1, began: datetime.datetime = NOON, **limits: Any) -> None:
        self.seconds, self.began = 1000.0, began
        self.quotas = Quotas(processes=processes, clock=lambda: self.seconds, now=self.now)
        self.client = Client("a", Key(name="a", sha256="0" * 64, **limits))

    def now(self) -> datetime.datetime:
        return self.began + datetime.timedelta(seconds=self.seconds - 1000)

    def ask(self, samples: int = 1, tokens: int = 0) -> float | None:
        """One request; the seconds that it is told to wait, None where it passes."""
        try:
            with self.quotas.hold(self.client) as share:
                share.grow(samples)
                self.quotas.spend(self.client, tokens)
        except RequestError as error:
            refusal = error
        else:
            return None
        assert refusal.status == 429, refusal
        seconds = float(refusal.message.split("try again in ")[1].split()[0])
        assert int(refusal.headers["Retry-After"]) == max(1, math.ceil(seconds))
        return seconds

    def waits(self, seconds: float, *, samples: int = 1) -> None:
        """What is asked now is told to wait so long; a bit less is too little, and exactly that long enough."""
        told = self.ask(samples)
        assert told == pytest.approx(seconds, abs=1e-3)
        start = self.seconds
        self.seconds = start + seconds - 0.002
        again = self.ask(samples)
        assert again is not None
        assert again <= 0.003
        self.seconds = start + told
        assert self.ask(samples) is None


def test_requests_per_second() -> None:
    timed = Timed(requests_per_second=4.0)
    assert [timed.ask() for _ in range(4)] == [None] * 4  # a second's worth at once
    timed.waits(0.25)
    timed.waits(0.25)
    timed.seconds += 1000
    assert [timed.ask() for _ in range(4)] == [None] * 4  # and never more
    timed.waits(0.25)
    timed = Timed(requests_per_second=0.1)
    assert timed.ask() is None  # one at least
    timed.waits(10)


def test_the_bucket_is_a_token_bucket() -> None:
    """Against one in fractions that is filled step by step, at times that floats hold exactly."""
    for rate in (0.25, 1.0, 3.0, 64.0):
        rng, timed = random.Random(0), Timed(requests_per_second=rate)
        size = max(Fraction(rate), Fraction(1))
        level, passed = size, 0
        for _ in range(2000):
            step = Fraction(rng.randrange(64), 64)
            timed.seconds += float(step)
            level = min(size, level + step * Fraction(rate))
            waits = timed.ask()
            assert (waits is None) == (level >= 1)
            if waits is None:
                level, passed = level - 1, passed + 1
            else:
                assert waits == pytest.approx(float((1 - level) / Fraction(rate)), abs=2e-3)
        assert passed > 100


def test_tokens_are_charged_after_and_what_is_owed_is_paid_first() -> None:
    timed = Timed(tokens_per_second=100.0)
    assert timed.ask(tokens=1000) is None  # not known before; 100 were there, so 900 are owed
    timed.waits(9)
    assert timed.ask(tokens=50) is None
    timed.waits(0.5)


def test_samples_per_day_are_those_of_a_day_of_utc() -> None:
    new_york = datetime.timezone(datetime.timedelta(hours=-5))
    timed = Timed(samples_per_day=10, began=datetime.datetime(2027, 1, 31, 18, 59, 30, tzinfo=new_york))
    timed.quotas._now = lambda: timed.now().astimezone(datetime.UTC)
    assert timed.ask(6) is None
    assert timed.ask(4) is None
    timed.waits(30)
    assert timed.ask(9) is None
    timed.waits(24 * 3600 - 0.0)


def test_a_batch_that_a_day_has_no_room_for_counts_nothing() -> None:
    timed = Timed(samples_per_day=10)
    assert timed.ask(6) is None
    assert timed.ask(5) == 12 * 3600
    assert timed.ask(4) is None
    timed.seconds += 12 * 3600
    message = "11 samples, and samples_per_day lets key 'a' have 10 a day"
    with timed.quotas.hold(timed.client) as share, pytest.raises(RequestError, match=message) as refusal:
        share.grow(11)
    assert refusal.value.status == 422  # no wait would help


def test_concurrency() -> None:
    timed = Timed(concurrency=3)
    with ExitStack() as held:
        held.enter_context(timed.quotas.hold(timed.client)).grow(2)
        assert timed.ask(2) == 1
        assert timed.ask() is None
        held.enter_context(timed.quotas.hold(timed.client))
        assert timed.ask() == 1
    assert timed.ask(3) is None
    message = "4 samples, and concurrency lets key 'a' have 3 under way"
    with timed.quotas.hold(timed.client) as share, pytest.raises(RequestError, match=message):
        share.grow(4)
    assert timed.ask(3) is None


def test_a_stream_counts_each_sample_and_holds_those_under_way() -> None:
    timed, places = Timed(samples_per_day=5, tokens_per_second=10.0, concurrency=3), Places(4, clock=lambda: 0.0)
    with admitted(timed.client, timed.quotas, places) as stream:
        for more in (True, True, False):
            assert stream.take() is more
            stream.count()
        assert places.taken == stream.samples == 3
        with admitted(Client("another"), timed.quotas, places):
            stream.give()
            stream.give()
            assert places.taken == 2
            assert stream.take()
            with admitted(Client("a third one"), timed.quotas, places):
                assert not stream.take()  # the key may, and all places are taken
        stream.give()
        stream.give()
        assert places.taken == stream.samples == 0
        timed.quotas.spend(timed.client, 30)
        with pytest.raises(RequestError, match="tokens_per_second: key 'a' has 10; try again in 2 seconds"):
            stream.count()
        timed.seconds += 2
        stream.count()
        with pytest.raises(RequestError, match="samples_per_day: key 'a' has 5, of which 5 are used"):
            stream.count()
    assert places.taken == 0
    assert timed.ask() == 12 * 3600 - 2
    timed.seconds += 12 * 3600
    assert timed.ask(3) is None  # none is under way any more


def test_the_longest_wait_is_told_with_the_limit_that_it_is_for() -> None:
    timed = Timed(requests_per_second=0.5, tokens_per_second=10.0, samples_per_day=3)
    assert timed.ask(tokens=100) is None
    message = "tokens_per_second: key 'a' has 10; try again in 9 seconds"
    with pytest.raises(RequestError, match=message) as refusal, timed.quotas.hold(timed.client):
        pass
    assert refusal.value.kind == "TokensPerSecond"
    assert refusal.value.headers == {"Retry-After": "9"}
    timed.seconds += 9
    assert timed.ask(2) is None
    assert timed.ask() == 12 * 3600 - 9


def test_each_process_has_its_share() -> None:
    timed = Timed(processes=4, requests_per_second=8.0, samples_per_day=15, concurrency=1)
    assert [timed.ask() for _ in range(2)] == [None] * 2
    with pytest.raises(RequestError, match="in this process, one of up to 4"), timed.quotas.hold(timed.client):
        pass
    timed.seconds += 10
    with timed.quotas.hold(timed.client):  # one at least
        assert timed.ask() is not None


def test_what_is_answered_503_is_not_counted() -> None:
    timed = Timed(requests_per_second=1.0, samples_per_day=2)

    def ask_of_no_engine() -> None:
        with timed.quotas.hold(timed.client) as share:
            share.grow(2)
            raise busy("no engine is there")

    for _ in range(5):
        with pytest.raises(RequestError):
            ask_of_no_engine()
    full = Places(1, clock=lambda: timed.seconds)
    with full.hold("another"):
        for _ in range(5):
            with pytest.raises(RequestError) as refusal, admitted(timed.client, timed.quotas, full):
                pass
            assert refusal.value.status == 503
    assert timed.ask(2) is None
    assert timed.ask() is not None


def test_who_is_beyond_its_limits_asks_for_no_place() -> None:
    timed, places = Timed(concurrency=1), Places(2, clock=lambda: 0.0)
    with admitted(timed.client, timed.quotas, places):
        for _ in range(5):
            with pytest.raises(RequestError) as refusal, admitted(timed.client, timed.quotas, places):
                pass
            assert refusal.value.status == 429
        with places.hold("another"):
            pass
    with places.hold("another"), places.hold("another"):
        pass


def test_limits_over_http(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"""
default: {{samples_per_day: 3}}
keys:
- {{name: few, sha256: '{hash_of(b"f")}'}}
- {{name: tokens, sha256: '{hash_of(b"t")}', samples_per_day: null, tokens_per_second: 0.5}}
- {{name: free, sha256: '{hash_of(b"x")}', samples_per_day: null}}
""")
    client, backend = serving(keys_file=str(path))

    def post(key: str, samples: int = 0) -> Any:
        body = {"items": [EXAMPLE_QA] * samples} if samples else EXAMPLE_QA
        route = "/v1/score/batch" if samples else "/v1/score"
        return client.post(route, json=body, headers={"Authorization": f"Bearer {key}"})

    assert post("f", 2).status_code == 200
    for refused in (post("f", 2), post("f", 3)):
        assert refused.status_code == 429
        assert refused.json()["error"]["kind"] == "SamplesPerDay"
        assert "samples_per_day: key 'few' has 3, of which" in refused.json()["error"]["message"]
        assert 0 < int(refused.headers["Retry-After"]) <= 86400
    assert post("f", 4).status_code == 422
    assert post("f").status_code == 200
    assert post("f").status_code == 429
    scored = post("t").json()
    refused = post("t")
    assert (refused.status_code, refused.json()["error"]["kind"]) == (429, "TokensPerSecond")
    prompts = 2 * scored["num_answer_tokens"]  # both passes have them, and more
    assert int(refused.headers["Retry-After"]) > prompts / 0.5
    assert post("x").status_code == 200
    assert client.get("/v1/model", headers={"Authorization": "Bearer f"}).status_code == 200
    assert ("/v1/score", 429) in backend.recorded
