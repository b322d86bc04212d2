"""Bodies and images that nobody meant to send: every one is answered in words, and nothing grows."""

from __future__ import annotations

import base64
import io
import random
from collections import Counter
from collections.abc import Callable

import PIL.Image
import psutil
import pytest
from fastapi.testclient import TestClient

from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend
from tests.serving.malformed import request_of, undocumented

Serving = Callable[..., tuple[TestClient, LocalBackend]]


def test_malformed_requests(serving: Serving) -> None:
    """The first of those that tests/end_to_end/test_serve.py sends to real replicas."""
    client, _ = serving(max_items=4, max_answer_tokens=64)
    rng = random.Random(0)
    statuses: Counter[int] = Counter()
    with client:
        for number in range(1000):
            route, body, headers = request_of(rng)
            answer = client.post(route, content=body, headers=headers)
            statuses[answer.status_code] += 1
            wrong = undocumented(route, answer.status_code, answer.text)
            assert not wrong, (number, route, body[:300], wrong)
            if answer.status_code != 200:
                assert "/" not in answer.json()["error"]["kind"]
    assert min(statuses[200], statuses[422]) > 100


@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/batch"])
def test_an_image_that_would_unpack_to_gigabytes_is_refused_before_it_does(serving: Serving, path: str) -> None:
    file = io.BytesIO()
    PIL.Image.new("1", (30_000, 30_000)).save(file, "PNG")
    client, _ = serving()
    before = psutil.Process().memory_info().rss
    sample = EXAMPLE_QA | {"image": base64.b64encode(file.getvalue()).decode()}
    answer = client.post(path, json={"items": [sample]} if path.endswith("batch") else sample)
    problem = answer.json()["results"][0]["error"] if path.endswith("batch") else answer.json()["error"]
    assert "900000000 pixels" in problem["message"] or "30000x30000 pixels" in problem["message"]
    assert psutil.Process().memory_info().rss - before < 200e6
