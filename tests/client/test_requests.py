"""Single samples and batches of them: what is sent, what is asked for again, whose fault an error is."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response

from tests.client.stand_in import StandIn, refused, result_of, sample
from vig_ray.client import AsyncClient, Client, ClientError, Failed, Score, ServerError
from vig_ray.client.retries import Retries, retry_after
from vig_ray.client.samples import Outgoing, prepare


@pytest.fixture
def client(server: StandIn) -> Iterator[Client]:
    with Client(server.url, key="a-key", retries=3, batch_items=4, under_way=2) as made:
        yield made


def vigs(outcomes: Any) -> list[float | str]:
    return [outcome.vig if isinstance(outcome, Score) else outcome.message for outcome in outcomes]


def test_images_of_every_kind_are_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    file = path.read_bytes()
    text = base64.b64encode(file).decode()
    for image in (path, str(path), file, bytearray(file)):
        ready = prepare({"question": "q", "answer": "a", "image": image})
        assert isinstance(ready, Outgoing)
        assert json.loads(ready.body)["image"] == text
    for image in (f"data:image/png;base64,{text}", "https://example.org/a.png", "HTTP://example.org/a.png"):
        ready = prepare({"question": "q", "answer": "a", "image": image, "id": "7"})
        assert isinstance(ready, Outgoing)
        assert json.loads(ready.body) == {"question": "q", "answer": "a", "image": image}
        assert json.loads(ready.line) == {"question": "q", "answer": "a", "image": image, "id": "7"}
        assert ready.line.count(b"\n") == 1
    ready = prepare({"question": "q", "answer": "a", "image": Image.fromarray(pixels)})
    assert isinstance(ready, Outgoing)
    sent = Image.open(io.BytesIO(base64.b64decode(json.loads(ready.body)["image"])))
    np.testing.assert_array_equal(np.asarray(sent), pixels)


def test_images_in_parts_and_lists_are_counted() -> None:
    parts = [
        {"type": "text", "text": "a\nb\u2028"}, {"type": "image"}, {"type": "image", "image": b"1"},
        {"type": "image_url", "image_url": {"url": b"2", "detail": "low"}}, {"type": "image_url", "image_url": b"3"},
    ]  # fmt: skip
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    ready = prepare({"messages": messages, "images": [b"0"]}, tau=0.5)
    assert isinstance(ready, Outgoing)
    assert ready.images == 4
    sent = json.loads(ready.body)
    assert (sent["tau"], sent["images"]) == (0.5, [base64.b64encode(b"0").decode()])
    assert [part.get("image") for part in sent["messages"][0]["content"]][2] == base64.b64encode(b"1").decode()
    assert sent["messages"][0]["content"][3]["image_url"] == {"url": base64.b64encode(b"2").decode(), "detail": "low"}
    assert parts[2] == {"type": "image", "image": b"1"}  # the program's own is left as it was


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (sample(1, image="gone.png"), "BadImage", "image: No such file or directory"),
        (sample(1, image=7), "BadImage", "not a int"),
        (sample(1, answer="\ud800"), "Invalid", "surrogates"),
        (sample(1, tau=float("nan")), "Invalid", "JSON"),
        (sample(1, id="\ud800"), "Invalid", "surrogates"),
        (sample(1, id=7), "Invalid", "id: a string, not a int"),
        (sample(1, image=b"x" * 2000), "TooLarge", "--max-body-mb"),
        ("text", "Invalid", "a sample is a dict, not a str"),
        (Failed("Given", "as it was"), "Given", "as it was"),
    ],
)
def test_what_cant_be_sent_has_failed(given: Any, kind: str, message: str) -> None:
    outcome = prepare(given, max_bytes=1000)
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert message in outcome.message


def test_one_sample_and_what_the_server_is(server: StandIn, client: Client) -> None:
    assert client.model().max_items == 5
    score = client.score(sample(3), tau=0.25)
    assert (score.vig, score.tau, score.tokens[0].id, score.reference.kernels) == (3.0, 0.25, 3, [3])
    assert server.headers[-1]["authorization"] == "Bearer a-key"
    with pytest.raises(ServerError, match="422 Bad: bad one") as error:
        client.score(sample(3, answer="bad one"))
    assert (error.value.status, error.value.kind) == (422, "Bad")
    with pytest.raises(ClientError, match="BadImage: image: No such file"):
        client.score(sample(3, image="gone"))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: StandIn, client: Client, waits: list[float | None], status: int) -> None:
    server.refuse = lambda path, number, items: refused(status, **{"Retry-After": "7"}) if number < 3 else None
    assert client.score(sample(5)).vig == 5
    assert server.seen["/v1/score"] == 3
    assert all(wait is not None and wait >= 7 for wait in waits)
    server.refuse = lambda path, number, items: refused(status)
    with pytest.raises(ServerError, match=f"{status} Busy: not now"):
        client.score(sample(5))
    assert server.seen["/v1/score"] == 3 + 4


def test_a_server_that_is_gone_is_asked_again_and_named(waits: list[float | None]) -> None:
    with (
        Client("http://127.0.0.1:9", retries=2) as client,
        pytest.raises(ClientError, match=r"127\.0\.0\.1:9.*3 tries"),
    ):
        client.model()
    assert len(waits) == 3
    for url in ("localhost:8000", "ftp://a", "http://user:secret@a", "http://"):
        with pytest.raises(ClientError) as error:
            Client(url)
        assert "secret" not in str(error.value)


def test_waits_double_up_to_a_limit_and_the_server_s_is_the_least() -> None:
    random.seed(0)
    retries = Retries(12)
    alone = [retries.wait(tries, OSError()) or 0.0 for tries in range(1, 13)]
    assert all(
        0.5 * least <= wait <= least for wait, least in zip(alone, (0.5, 1, 2, 4, 8, 16, *[30.0] * 6), strict=True)
    )
    assert retries.wait(13, OSError()) is None
    asked = ServerError("u", 503, "Busy", "", 20.0)
    assert 20.25 <= (retries.wait(1, asked) or 0) <= 20.5
    assert retries.wait(1, ServerError("u", 429, "Quota", "", 3600.0)) is None
    assert retry_after("120") == 120
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert 50 < (retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60


def test_many_samples_come_back_in_order_within_the_limits(server: StandIn, client: Client) -> None:
    answers = [str(number) if number % 7 else f"bad {number}" for number in range(1, 40)]
    given: list[Any] = [sample(0, answer=answer) for answer in answers]
    given[10] = Failed("Earlier", "before")
    given[20] = sample(0, image="gone")
    outcomes = list(client.score_many(given))
    expected = [float(answer) if answer.isdigit() else answer for answer in answers]
    expected[10], expected[20] = "before", "image: No such file or directory (gone)"
    assert vigs(outcomes) == expected
    assert max(map(len, server.batches)) <= 4
    assert server.most_under_way <= 2
    many_images = [
        {"messages": [], "answer": str(number), "images": [b"x"] * 4} for number in range(3)
    ]  # two of them have more images than a request may
    server.batches.clear()
    assert vigs(client.score_many(many_images)) == [0, 1, 2]
    assert sorted(server.batches) == [["0"], ["1"], ["2"]]


def test_a_batch_that_is_refused_as_a_whole_is_asked_for_in_halves(server: StandIn, client: Client) -> None:
    def refuse(path: str, number: int, items: list[dict[str, Any]]) -> Response | None:
        if len(items) > 2:
            return refused(504, "Timeout")
        return refused(413, "TooLarge") if any(item["answer"] == "3" for item in items) else None

    server.refuse = refuse
    assert vigs(client.score_batch([sample(number) for number in range(6)])) == [0, 1, 2, "not now", 4, 5]


def test_a_sample_alone_that_always_takes_too_long_has_that_for_its_outcome(
    server: StandIn, client: Client, waits: list[float | None]
) -> None:
    server.refuse = lambda path, number, items: (
        refused(504, "Timeout") if any(item["answer"] == "3" for item in items) else None
    )
    assert vigs(client.score_batch([sample(number) for number in range(6)])) == [0, 1, 2, "not now", 4, 5]
    server.refuse = lambda path, number, items: refused(504, "Http")  # a proxy's, of whatever is behind it
    with pytest.raises(ServerError, match="504 Http"):
        client.score_batch([sample(1)])


def test_what_engines_are_lost_over_is_not_asked_again(server: StandIn, client: Client) -> None:
    server.refuse = lambda path, number, items: refused(503, "EngineDied", **{"Retry-After": "1"})
    with pytest.raises(ServerError, match="503 EngineDied"):
        client.score(sample(1))
    assert server.seen["/v1/score"] == 1


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://[::1", "http://localhost:80a0", "http://localhost:99999", "http://", "ftp://a/b",
            "http://user:word@localhost", "http://a/?b", "user:word@localhost:8000"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_no_password_told(url: str) -> None:
    with pytest.raises(ClientError, match="address") as refusal:
        Client(url)
    assert "word" not in str(refusal.value)


def test_who_asks_is_no_fault_of_a_sample(server: StandIn, client: Client) -> None:
    server.refuse = lambda path, number, items: refused(401, "Key") if path.endswith("batch") else None
    with pytest.raises(ServerError, match="401 Key"):
        list(client.score_many(sample(number) for number in range(9)))
    server.refuse = lambda path, number, items: Response(status_code=302, headers={"Location": "https://elsewhere"})
    with pytest.raises(ServerError, match="leads to https://elsewhere"):
        client.score(sample(1))
    server.refuse = lambda path, number, items: Response(b"<html>")
    for ask in (client.model, lambda: client.score(sample(1)), lambda: client.score_batch([sample(1)])):
        with pytest.raises(ClientError, match="is it vig serve"):
            ask()


def test_what_the_program_s_own_samples_raise_comes_after_those_before(client: Client) -> None:
    def given() -> Iterator[dict[str, Any]]:
        yield from (sample(number) for number in range(6))
        raise RuntimeError("mine")

    for ask in (client.score_many, client.stream):
        found: list[Any] = []
        with pytest.raises(RuntimeError, match="mine"):
            found.extend(ask(given()))
        assert vigs(found) == [0, 1, 2, 3, 4, 5]


def test_no_more_is_read_ahead_than_is_under_way(server: StandIn, client: Client) -> None:
    read = []

    def given() -> Iterator[dict[str, Any]]:
        for number in range(100):
            read.append(number)
            yield sample(number)

    outcomes = client.score_many(given())
    assert isinstance(next(outcomes), Score)
    time.sleep(0.2)  # for more than it should read
    assert len(read) <= 4 * (2 + 2) + 1
    outcomes.close()  # type: ignore[attr-defined]
    assert client.score(sample(1)).vig == 1


def test_in_an_event_loop(server: StandIn) -> None:
    async def given() -> Any:
        for number in range(9):
            yield sample(number)

    async def ask() -> tuple[list[Any], list[Any], float]:
        async with AsyncClient(server.url) as client:
            many = [outcome async for outcome in client.score_many(given())]
            streamed = [outcome async for outcome in client.stream(given())]
            return many, streamed, (await client.score(sample(4))).vig

    many, streamed, alone = asyncio.run(ask())
    assert vigs(many) == vigs(streamed) == list(range(9))
    assert alone == 4
    assert result_of(sample(1))["result"]["vig"] == 1


def test_a_closed_client_says_so(server: StandIn) -> None:
    client = Client(server.url)
    client.close()
    client.close()
    with pytest.raises(ClientError, match="closed"):
        client.model()


def test_a_client_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    """Nor with a PIL image."""
    program = (
        "import sys; from PIL import Image; from vig_ray.client import Client\n"
        "from vig_ray.client.samples import prepare\n"
        "print(type(prepare({'question': 'q', 'answer': 'a', 'image': Image.new('RGB', (2, 2))})).__name__)\n"
        "print(sorted({'ray', 'torch', 'transformers', 'pandas'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.split("\n")[:2] == ["Outgoing", "[]"]
