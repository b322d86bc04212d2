"""Streams: in order, concurrently, cut anywhere and gone on with, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.client.stand_in import StandIn, refused, sample
from tests.end_to_end.server import wait_until
from vig_ray.client import Client, ClientError, CutOffError, Failed, Score, ServerError, stream

STREAM = "/v1/score/stream"


def vigs(outcomes: Any) -> list[float | str]:
    return [outcome.vig if isinstance(outcome, Score) else outcome.message for outcome in outcomes]


def test_answers_come_while_samples_still_go(server: StandIn) -> None:
    """Each sample is given only after the one before it is answered."""
    answered = threading.Semaphore(1)

    def given() -> Iterator[dict[str, Any]]:
        for number in range(20):
            assert answered.acquire(timeout=30)
            yield sample(number, id=f"no. {number}")

    with Client(server.url) as client:
        found = []
        for outcome in client.stream(given()):
            found.append(outcome)
            answered.release()
    assert vigs(found) == list(range(20))
    assert server.seen[STREAM] == 1


def test_what_fails_keeps_its_place(server: StandIn) -> None:
    given: list[Any] = [sample(number) for number in range(30)]
    given[0] = given[29] = Failed("Earlier", "before")
    given[3] = sample(0, answer="bad 3")
    given[4:24] = [sample(0, image="gone")] * 20  # more than a window
    expected: list[Any] = list(range(30))
    expected[0] = expected[29] = "before"
    expected[3], expected[4:24] = "bad 3", ["image: No such file or directory (gone)"] * 20
    with Client(server.url) as client:
        assert vigs(client.stream(given, window=4)) == expected
        assert vigs(client.stream([Failed("Earlier", "before")] * 9, window=4)) == ["before"] * 9
        assert vigs(client.stream([])) == []


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_failures_among_samples_lead_to_no_other_s_answer(server: StandIn, window: int) -> None:
    fails = random.Random(window)
    given = [Failed("Earlier", f"{n}") if fails.random() < 0.5 else sample(n, id=f"{n}") for n in range(200)]
    expected = [each.message if isinstance(each, Failed) else float(n) for n, each in enumerate(given)]
    with Client(server.url) as client:
        assert vigs(client.stream(given, window=window)) == expected
    assert server.answered == [f"{n}" for n, each in enumerate(given) if not isinstance(each, Failed)]


@pytest.mark.parametrize("break_line", [True, False])
def test_a_cut_stream_is_gone_on_with(server: StandIn, waits: list[float | None], break_line: bool) -> None:
    server.cut, server.break_line = {1: 0, 2: 7, 3: 1, 4: 0, 5: 19}, break_line
    server.without_end = {6}
    # A connection that is cut takes answers with it that were on their way: all of them may have been in vain.
    with Client(server.url, retries=6) as client:
        found = vigs(client.stream((sample(number, id=str(number)) for number in range(40)), window=16))
    assert found == list(range(40))
    assert server.seen[STREAM] == 6
    assert sorted(set(server.answered), key=int) == [str(number) for number in range(40)]


def test_without_resuming_a_cut_is_an_error(server: StandIn) -> None:
    with Client(server.url) as client:
        for cut in ({1: 5}, {2: 40}):
            server.cut = cut
            found: list[Any] = []
            with pytest.raises(CutOffError, match="cut off after") as error:
                found.extend(client.stream((sample(number) for number in range(40)), resume=False))
            assert vigs(found) == list(range(error.value.answered))
            assert error.value.answered <= next(iter(cut.values()))
        server.cut, server.without_end = {}, {3}
        with pytest.raises(CutOffError, match="before the last line"):
            list(client.stream([sample(1)], resume=False))


def test_a_stream_that_is_cut_again_and_again_ends(server: StandIn, waits: list[float | None]) -> None:
    server.cut = dict.fromkeys(range(1, 100), 0)
    with Client(server.url, retries=3) as client, pytest.raises(CutOffError, match="after 0 samples"):
        list(client.stream([sample(1)]))
    assert server.seen[STREAM] == 4


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: StandIn, waits: list[float | None], status: int, resume: bool) -> None:
    server.refuse = lambda path, number, items: (
        refused(status, **{"Retry-After": "9"}) if path == STREAM and number < 3 else None
    )
    with Client(server.url) as client:
        assert vigs(client.stream([sample(1), sample(2)], resume=resume)) == [1, 2]
    assert [wait is not None and wait >= 9 for wait in waits] == [True, True]


def test_a_server_that_is_busy_within_a_stream_is_no_fault_of_a_sample(
    server: StandIn, waits: list[float | None]
) -> None:
    def busy_once(line: dict[str, Any]) -> dict[str, Any]:
        if line["index"] == 3 and server.seen[STREAM] == 1:
            return {"index": 3, "id": None, "error": {"kind": "Busy", "message": "not now"}}
        return line

    server.rewrite = busy_once
    with Client(server.url) as client:
        assert vigs(client.stream(sample(number) for number in range(9))) == list(range(9))


def test_a_server_that_ends_a_stream_says_why(server: StandIn, waits: list[float | None]) -> None:
    server.end_at = {number: {"kind": "Timeout", "message": "nothing came"} for number in (1, 2, 3)}
    with Client(server.url) as client:
        assert vigs(client.stream(sample(number) for number in range(12))) == list(range(12))
        assert server.seen[STREAM] == 4
        server.end_at = {5: {"kind": "Rate", "message": "too many"}, 6: {"kind": "TooLarge", "message": "too long"}}
        with pytest.raises(CutOffError, match="after 3 samples: too many"):
            list(client.stream((sample(number) for number in range(12)), resume=False))
        with pytest.raises(ServerError, match="413 TooLarge: too long"):
            list(client.stream(sample(number) for number in range(12)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 5}, "numbered 5, not 0"),
        ({"id": "other"}, "'other' where 'mine' is due"),
        ({"result": {"vig": 1}}, "is it one?"),
    ],
)
def test_answers_that_belong_to_nothing_are_refused(server: StandIn, change: dict[str, Any], message: str) -> None:
    server.rewrite = lambda line: line | change
    with Client(server.url) as client, pytest.raises(ClientError) as error:
        list(client.stream([sample(1, id="mine"), sample(2)]))
    assert message in str(error.value)


def test_a_server_without_the_route_or_for_others_is_named(server: StandIn) -> None:
    for status in (401, 404):
        server.refuse = lambda path, number, items, s=status: refused(s, "Http") if path == STREAM else None  # type: ignore[misc]
        with Client(server.url) as client, pytest.raises(ServerError, match=f"{status} Http"):
            list(client.stream([sample(1)]))


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(server: StandIn, waits: list[float | None]) -> None:
    stuck = threading.Event()

    async def before(number: int) -> None:
        if number == 2 and not stuck.is_set():
            stuck.set()
            await asyncio.sleep(3600)

    server.before = before
    with Client(server.url, timeout=1) as client:
        assert vigs(client.stream(sample(number) for number in range(5))) == list(range(5))
    assert stuck.is_set()
    assert server.seen[STREAM] > 1


@pytest.mark.parametrize("resume", [True, False])
def test_a_last_line_that_does_not_come_is_not_waited_for_for_ever(server: StandIn, resume: bool) -> None:
    server.before_end = lambda: asyncio.sleep(3600)
    found: list[Any] = []
    with Client(server.url, timeout=1) as client:
        outcomes = client.stream((sample(number) for number in range(5)), resume=resume)
        if resume:  # nothing else is missing
            found.extend(outcomes)
        else:
            with pytest.raises(CutOffError, match="after 5 samples"):
                found.extend(outcomes)
    assert vigs(found) == list(range(5))


def test_a_sample_that_always_takes_too_long_has_that_for_its_outcome(
    server: StandIn, waits: list[float | None]
) -> None:
    late = {"error": {"kind": "Timeout", "message": "too long"}}
    server.rewrite = lambda line: (
        {"index": line["index"], "id": None} | late if line.get("result", {}).get("vig") == 2.0 else line
    )
    with Client(server.url) as client:
        assert vigs(client.stream(sample(number) for number in range(5))) == [0, 1, "too long", 3, 4]
    assert server.answered.count("2") == 5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, seconds, by which answers are late; it passes only where a test says so."""
    seconds = [0.0]
    monkeypatch.setattr(stream, "now", lambda: seconds[0])
    return seconds


def test_nothing_is_waited_for_while_nothing_is_sent(server: StandIn, clock: list[float]) -> None:
    """Samples that come slower than the time limit of an answer are no reason to cut the connection."""
    go = threading.Event()

    def given() -> Iterator[dict[str, Any]]:
        yield sample(1)
        assert go.wait(30)
        yield sample(2)

    with Client(server.url) as client:
        outcomes = client.stream(given())
        assert vigs([next(outcomes)]) == [1]
        clock[0] += 1000
        go.set()
        assert vigs(outcomes) == [2]
    assert server.seen[STREAM] == 1


def test_a_program_may_take_its_time_over_an_answer(server: StandIn, clock: list[float]) -> None:
    with Client(server.url) as client:
        found = []
        for outcome in client.stream((sample(number) for number in range(6)), window=2):
            found.append(outcome)
            clock[0] += 1000
    assert vigs(found) == list(range(6))
    assert server.seen[STREAM] == 1


def test_an_interrupt_ends_the_stream(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does while an outcome is waited for."""
    stuck = threading.Event()

    async def before(number: int) -> None:
        if number == 1:
            stuck.set()
            await asyncio.sleep(3600)

    server.before = before
    with Client(server.url) as client:
        outcomes = client.stream([sample(number) for number in range(9)])
        assert vigs([next(outcomes)]) == [0]
        assert stuck.wait(30)
        wait = Future.result

        def interrupted(self: Future[Any], timeout: float | None = None) -> Any:
            monkeypatch.setattr(Future, "result", wait)
            raise KeyboardInterrupt

        monkeypatch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
        assert client.score(sample(1)).vig == 1


def test_an_iterator_that_was_left_is_ended_on_any_thread(server: StandIn) -> None:
    """The garbage collector may do so on the client's own, which can't wait for itself."""
    with Client(server.url) as client:
        outcomes = client.stream(sample(number) for number in range(9))
        assert vigs([next(outcomes)]) == [0]
        client._loop.call_soon_threadsafe(outcomes.close)  # type: ignore[attr-defined]
        assert client.score(sample(1)).vig == 1


def test_who_waits_is_told_when_the_client_is_closed(server: StandIn) -> None:
    stuck = threading.Event()

    async def before(number: int) -> None:
        stuck.set()
        await asyncio.sleep(3600)

    server.before = before
    client = Client(server.url)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(lambda: list(client.stream([sample(1)]))) for _ in range(3)]
        assert stuck.wait(30)
        client.close()
        for each in waiting:
            with pytest.raises(ClientError, match="closed"):
                each.result(30)


def test_nobody_reads_ahead_of_who_does_not_read(server: StandIn) -> None:
    """A program that stops taking answers stops the reading of its samples."""
    given: list[int] = []

    def samples() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            given.append(number)
            yield sample(number)

    with Client(server.url) as client:
        outcomes = client.stream(samples(), window=8)
        assert vigs([next(outcomes)]) == [0]
        wait_until(lambda: len(given) >= 8, 30)
        settled = -1
        while settled != len(given):
            settled = len(given)
            threading.Event().wait(0.2)
        assert len(given) <= 1 + 8 + 2
        outcomes.close()  # type: ignore[attr-defined]
        assert client.score(sample(1)).vig == 1
