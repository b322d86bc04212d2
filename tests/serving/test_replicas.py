"""An engine whose device fails: its process ends, another takes its place, and nobody gets a wrong number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app import app
from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.server import free_port, wait_until
from vig_ray.demo import CHECKPOINT


class Failing(app.Scorer):
    """An engine on a device that fails as CUDA does, once for every file in a folder."""

    folder = ""

    def __init__(self, facts: dict[str, str], engine: dict[str, Any], workers: int) -> None:
        super().__init__(facts, engine, workers)
        right = self._engine.logprobs

        def logprobs(prompts: Sequence[Any]) -> Any:
            for mark in Path(self.folder).iterdir():
                mark.unlink()
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return right(prompts)

        self._engine.logprobs = logprobs  # type: ignore[method-assign]


@pytest.fixture
def served(local_ray: None, tmp_path: Path) -> Iterator[str]:
    from ray import serve

    url = f"http://127.0.0.1:{(port := free_port())}"
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    class Here(Failing):
        folder = str(tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "Scorer", Here)
        serve.run(app.build({"model": CHECKPOINT, "workers": "2"}), name="vig")
    yield url
    serve.shutdown()


def test_a_device_that_fails_costs_no_wrong_answer(served: str, tmp_path: Path, serving: Any) -> None:
    wait_until(lambda: httpx.get(f"{served}/readyz").status_code == 200)
    client, _ = serving()
    expected = client.post("/v1/score", json=EXAMPLE_QA).json()
    for _round in range(2):
        (tmp_path / "once").touch()
        answers = [httpx.post(f"{served}/v1/score", json=EXAMPLE_QA, timeout=60) for _ in range(4)]
        assert not (tmp_path / "once").exists()
        for answer in answers:
            assert answer.status_code in (200, 503)
            if answer.status_code == 200:
                assert answer.json()["vig"] == pytest.approx(expected["vig"], abs=1e-5)
        wait_until(lambda: httpx.post(f"{served}/v1/score", json=EXAMPLE_QA, timeout=60).status_code == 200)
