"""Which engine is taken, with which options, and what happens when engines do nothing but die. No vLLM needed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from vig_ray.cluster import Machines
from vig_ray.errors import StageError
from vig_ray.scoring import job, score
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines import EngineDiedError, load
from vig_ray.scoring.schema import PREPARED


@pytest.mark.parametrize(
    ("asked", "installed", "device", "reference", "taken", "why"),
    [
        ("auto", True, "cuda", "blur", "vllm", "installed, and there is a GPU"),
        ("auto", True, "cpu", "blur", "torch", "no GPU"),
        ("auto", False, "cuda", "blur", "torch", "isn't installed"),
        ("auto", True, "cuda", "blind", "torch", "blind"),
        ("torch", True, "cuda", "blur", "torch", "as asked"),
        ("vllm", True, "cpu", "blur", "vllm", "as asked"),
    ],
)
def test_auto_takes_vllm_where_it_helps_and_says_why(
    monkeypatch: pytest.MonkeyPatch, asked: Any, installed: bool, device: str, reference: str, taken: str, why: str
) -> None:
    monkeypatch.setattr(load, "vllm_installed", lambda: installed)
    engine, reason = load.choose_engine(asked, device=device, reference=reference)
    assert engine == taken
    assert why in reason


def test_what_an_engine_cannot_do_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "vllm_installed", lambda: False)
    with pytest.raises(StageError, match=r"isn't installed; pip install 'vig-ray\[vllm\]'.*--engine torch"):
        load.check_engine("vllm", "blur", {}, joins_cluster=False)
    load.check_engine("vllm", "blur", {}, joins_cluster=True)  # the machines with GPUs may have it
    with pytest.raises(StageError, match=r"blind.*--engine torch"):
        load.check_engine("vllm", "blind", {}, joins_cluster=True)
    with pytest.raises(StageError, match="no effect with --engine torch"):
        load.check_engine("torch", "blur", {"max_num_seqs": 4}, joins_cluster=False)
    with pytest.raises(StageError, match="isn't installed"):
        load.load_engine("vllm", model=load.__file__, template="auto", max_length=None, dtype="float32", device="cpu")


def config(**options: Any) -> ScoreConfig:
    return ScoreConfig(data="d", model="m", out="o", **options)


def test_vllms_options_however_they_are_written() -> None:
    expected = {"tensor_parallel_size": 2, "quantization": "fp8", "enforce_eager": True, "gpu_memory_utilization": 0.8}
    pairs = ["tensor-parallel-size=2", "quantization=fp8", "enforce_eager=true", "gpu_memory_utilization=0.8"]
    assert config(vllm=pairs).vllm == expected
    assert config(vllm=" ".join(pairs)).vllm == expected
    assert config(vllm=expected).vllm == expected
    nested = config(vllm=['hf_overrides={"text_config": {"head_dtype": "model"}}']).vllm
    assert nested == {"hf_overrides": {"text_config": {"head_dtype": "model"}}}
    assert config(vllm='{"limit_mm_per_prompt": {"image": 4}}').vllm == {"limit_mm_per_prompt": {"image": 4}}
    for wrong in ("enforce_eager", "=2", ["a=1", "b"]):
        with pytest.raises(ValidationError, match="NAME=VALUE"):
            config(vllm=wrong)


def test_as_many_gpus_an_engine_as_vllm_spreads_a_model_over() -> None:
    here = Machines(cores=8, gpus=4)
    spread = config(vllm={"tensor_parallel_size": 2})
    assert job._pools(spread, here, "cuda", "vllm").engines == (1, 2)
    assert job._pools(spread, here, "cuda", "vllm").gpus_each == 2
    assert job._pools(config(), here, "cuda", "vllm").engines == (1, 4)
    assert job._pools(config(), here, "cuda", "torch").gpus_each == 1
    assert job._pools(config(workers="1..3"), Machines(None, 0), "cuda", "vllm").engines == (1, 3)
    with pytest.raises(StageError, match="ask for 8 GPUs, and this machine has 4"):
        job._pools(config(vllm={"tensor_parallel_size": 4, "pipeline_parallel_size": 2}), here, "cuda", "vllm")
    with pytest.raises(StageError, match="tensor_parallel_size=0"):
        job._pools(config(vllm={"tensor_parallel_size": 0}), here, "cuda", "vllm")
    # On CPUs vLLM takes the cores itself; several engines share them.
    assert job._pools(config(), here, "cpu", "vllm").engines == (1, 1)
    assert job._pools(config(), here, "cpu", "vllm").threads is None
    assert job._pools(config(workers=4), here, "cpu", "vllm").threads == 2


class Dying:
    description = "dies"

    def logprobs(self, prompts: Any) -> Any:
        raise EngineDiedError("out of memory; lower --batch-tokens")


class Remote:
    """What a RowCounter's methods look like from a worker."""

    def __init__(self, value: Any = None) -> None:
        self.value, self.calls = value, []

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.value() if callable(self.value) else self.value


def test_engines_that_do_nothing_but_die_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    deaths = iter(range(1, 10))
    counter = type("Counter", (), {"ready": Remote(), "add": Remote(), "died": Remote(lambda: next(deaths))})()
    exits: list[int] = []

    def leave(status: int) -> None:
        exits.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(score, "load_engine", lambda **_: Dying())
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(score.os, "_exit", leave)
    block = pa.Table.from_pylist([], schema=PREPARED)
    for _ in range(score.MOST_DEATHS - 1):
        with pytest.raises(SystemExit):
            score.Scorer(engine={}, progress=counter)(block)
    with pytest.raises(StageError, match=r"died 3 times in a row; the last time: out of memory; lower --batch-tokens"):
        score.Scorer(engine={}, progress=counter)(block)
    assert exits == [1] * (score.MOST_DEATHS - 1)
    assert not counter.add.calls
