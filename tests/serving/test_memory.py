"""Small bodies that unpack to gigabytes: they are refused by number and by size, and the process stays small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import PIL.Image
import pytest
from fastapi.testclient import TestClient

from tests.serving.conftest import LocalBackend
from tests.serving.http_server import ServedAlone

Serving = Callable[..., tuple[TestClient, LocalBackend]]

SIDE = 9459  # the largest square below Pillow's own limit of pixels; 268 MB as RGB


def one_bit_png(width: int, height: int) -> str:
    """A black image file in base64: 11 KB of file for 9459 x 9459 pixels."""
    file = io.BytesIO()
    PIL.Image.new("1", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def sample_with(*images: str) -> dict[str, Any]:
    """A sample with these images, base64."""
    user = {"role": "user", "content": "<image>" * len(images) + "What is this?"}
    return {"messages": [user, {"role": "assistant", "content": "Nothing."}], "images": list(images)}


@pytest.mark.parametrize("route", ["/v1/score", "/v1/score/batch"])
@pytest.mark.parametrize(
    ("images", "limit"),
    [
        ([(8, 8)] * 4, r"4 images, and a request may have 3 \(--max-images\)"),
        ([(90, 90)] * 3, r"24,300 pixels.* 20,000 \(--max-request-pixels\)"),
    ],
)
def test_the_limits_of_a_request_are_named(serving: Serving, route: str, images: Any, limit: str) -> None:
    client, _ = serving(max_images=3, max_request_pixels=20_000, max_decoded_pixels=30_000)
    files = [one_bit_png(*size) for size in images]
    batch = {"items": [sample_with(file) for file in files]}
    answer = client.post(route, json=batch if route.endswith("batch") else sample_with(*files))
    assert answer.status_code == 413
    assert re.search(limit, answer.json()["error"]["message"]), answer.text


def test_the_limit_of_what_is_decoded_at_a_time_is_named(serving: Serving) -> None:
    """A long narrow image counts as the square that it is padded to."""
    client, _ = serving(max_request_pixels=10**9, max_decoded_pixels=10_000)
    for images in ([(90, 90)] * 2, [(2, 101)]):
        sample = sample_with(*(one_bit_png(*size) for size in images))
        answer = client.post("/v1/score", json=sample)
        assert answer.status_code == 413
        assert "10,000 (--max-decoded-pixels)" in answer.json()["error"]["message"]
        batch = client.post("/v1/score/batch", json={"items": [sample, sample_with(one_bit_png(8, 8))]}).json()
        assert [item["error"] is None for item in batch["results"]] == [False, True]
        assert "--max-decoded-pixels" in batch["results"][0]["error"]["message"]


def test_the_limits_are_told(serving: Serving) -> None:
    client, _ = serving(max_images=3, max_request_pixels=20_000, max_decoded_pixels=10_000)
    limits = client.get("/v1/model").json()
    assert limits["max_images"] == 3
    assert limits["max_request_pixels"] == 20_000
    assert limits["max_decoded_pixels"] == 10_000


@pytest.fixture(scope="module")
def alone() -> Iterator[ServedAlone]:
    server = ServedAlone(reference="blind")  # not to wait for blurs
    yield server
    server.stop()


def test_the_memory_of_the_process_stays_bounded(alone: ServedAlone) -> None:
    """One such image is decoded at a time: with all that Pillow and the processor copy, about 1.1 GB."""
    image = one_bit_png(SIDE, SIDE)

    def post(route: str, body: Any) -> int:
        return httpx.post(alone.url + route, json=body, timeout=300).status_code

    assert post("/v1/score", sample_with(image)) == 200
    once = alone.peak_memory
    assert post("/v1/score", sample_with(*[image] * 12)) == 413
    assert post("/v1/score/batch", {"items": [sample_with(image)] * 12}) == 413
    assert post("/v1/score", sample_with(*[image] * 2000)) == 413
    assert post("/v1/score/batch", {"items": [sample_with(*[image] * 30)] * 60}) == 413
    with ThreadPoolExecutor(3) as pool:  # each within the limits
        assert set(pool.map(lambda _: post("/v1/score", sample_with(image)), range(3))) == {200}
    assert post("/v1/score", sample_with(one_bit_png(2, 60_000))) == 413  # 10.8 GB as a square
    assert alone.peak_memory - once < 300e6
