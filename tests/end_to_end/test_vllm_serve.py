"""vLLM as the engine behind HTTP: the numbers of the torch engine."""

from __future__ import annotations

import os

import pytest

from serve_app.schema import EXAMPLE_MESSAGES, EXAMPLE_QA
from tests.conftest import VLLM_OPTIONS
from tests.end_to_end.server import Server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1", reason="too slow for an interpreter"),
]


@pytest.mark.long
def test_vllm_serves_the_numbers_of_the_torch_engine() -> None:
    options = [word for name, value in VLLM_OPTIONS.items() for word in ("--vllm", f"{name}={value}")]
    found = {}
    for engine, more in (("torch", []), ("vllm", ["--max-length", 1023, *options])):
        server = Server("--device", "cpu", "--engine", engine, "--timeout", 300, *more)
        items = [EXAMPLE_QA, EXAMPLE_MESSAGES, EXAMPLE_QA | {"answer": "The square is blue, or green."}]
        results = server.post("/v1/score/batch", {"items": items * 5}).json()["results"]
        found[engine] = [item["result"] for item in results]
        assert "Traceback" not in server.stop()
    assert found["vllm"][0]["model"]["engine"].startswith("vLLM")
    for ours, theirs in zip(found["vllm"], found["torch"], strict=True):
        assert ours["vig"] == pytest.approx(theirs["vig"], abs=2e-4)
        for token, expected in zip(ours["tokens"], theirs["tokens"], strict=True):
            assert token["id"] == expected["id"]
            assert token["clean_logprob"] == pytest.approx(expected["clean_logprob"], abs=2e-4)
            assert token["reference_logprob"] == pytest.approx(expected["reference_logprob"], abs=2e-4)
