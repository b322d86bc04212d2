"""What the replicas of the application ask Ray for."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app import app
from serve_app.options import AppConfig
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.scoring.engines import load


@pytest.mark.parametrize(
    ("engine", "device", "vllm", "gpus"),
    [
        ("vllm", "cuda", {"tensor_parallel_size": 2}, 2),
        ("vllm", "cuda", {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6),
        ("vllm", "cuda", {}, 1),
        ("vllm", "cpu", {"tensor_parallel_size": 2}, 0),
        ("torch", "cuda", {}, 1),
        ("torch", "cpu", {}, 0),
    ],
)
def test_a_scorer_asks_for_the_gpus_that_its_engine_spreads_over(
    monkeypatch: pytest.MonkeyPatch, engine: Any, device: Any, vllm: dict[str, int], gpus: int
) -> None:
    monkeypatch.setattr(app, "check_engine", lambda *_, **__: None)  # whether vLLM is installed here doesn't matter
    scorers, *_ = app.deployments(AppConfig(model=CHECKPOINT, engine=engine, device=device, vllm=vllm))
    (scorer,) = scorers.values()
    assert scorer._bound_deployment.ray_actor_options["num_gpus"] == gpus


def test_more_gpus_than_this_machine_has_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve would wait for them for ever."""
    monkeypatch.setattr(app, "check_engine", lambda *_, **__: None)
    spread = AppConfig(model=CHECKPOINT, engine="vllm", device="cuda", vllm={"tensor_parallel_size": 4})
    with pytest.raises(StageError, match="ask for 4 GPUs, and this machine has 2"):
        app.deployments(spread, gpus_here=2)
    with pytest.raises(StageError, match="--workers 3: 3 engines take 3 GPUs, and this machine has 2"):
        app.deployments(AppConfig(model=CHECKPOINT, device="cuda", workers="3", engine="torch"), gpus_here=2)
    app.deployments(AppConfig(model=CHECKPOINT, device="cuda", workers="1..3", engine="torch"), gpus_here=2)
    with pytest.raises(StageError, match="no GPU that Ray can see"):
        app.deployments(spread, gpus_here=0)
    with pytest.raises(StageError, match="tensor_parallel_size=0"):
        load.gpus_an_engine("vllm", {"tensor_parallel_size": 0}, here=None)
