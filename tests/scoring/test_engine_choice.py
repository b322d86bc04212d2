"""Which engine is taken, with which options, and what happens when engines do nothing but die. No vLLM needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from vig_ray.cluster import Machines
from vig_ray.errors import StageError
from vig_ray.model.prompt import Prompt
from vig_ray.row_counter import RowCounter
from vig_ray.scoring import mortal, score
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines import EngineDiedError, load
from vig_ray.scoring.placement import pools_for
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.schema import groups_schema, prepared_schema


@pytest.mark.parametrize(
    ("asked", "installed", "device", "reference", "taken", "why"),
    [
        ("auto", True, "cuda", "blur", "vllm", "installed, and there is a GPU"),
        ("auto", True, "cpu", "blur", "torch", "no GPU"),
        ("auto", False, "cuda", "blur", "torch", "isn't installed"),
        ("auto", True, "cuda", "vcd", "vllm", "installed, and there is a GPU"),
        ("auto", True, "cuda", "no-image", "vllm", "installed, and there is a GPU"),
        ("auto", True, "cuda", "blind", "torch", "blind"),
        ("torch", True, "cuda", "blur", "torch", "as asked"),
        ("vllm", True, "cpu", "blur", "vllm", "as asked"),
    ],
)
def test_auto_takes_vllm_where_it_helps_and_says_why(
    monkeypatch: pytest.MonkeyPatch, asked: Any, installed: bool, device: str, reference: str, taken: str, why: str
) -> None:
    monkeypatch.setattr(load, "vllm_installed", lambda: installed)
    monkeypatch.setattr(load, "_vllm_for_gpus", lambda: installed)
    engine, reason = load.choose_engine(asked, device=device, references=[reference])
    assert engine == taken
    assert why in reason


def test_what_an_engine_cannot_do_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "vllm_installed", lambda: False)
    with pytest.raises(StageError, match=r"isn't installed; pip install 'vig-ray\[vllm\]'.*--engine torch"):
        load.check_engine("vllm", ["blur"], {}, joins_cluster=False)
    load.check_engine("vllm", ["blur"], {}, joins_cluster=True)  # the machines with GPUs may have it
    every = ["blur", "mean", "blur-mean", "noise", "no-image", "vcd"]
    load.check_engine("vllm", every, {}, joins_cluster=True)
    with pytest.raises(StageError, match=r"blind.*--engine torch"):
        load.check_engine("vllm", ["blur", "blind"], {}, joins_cluster=True)
    with pytest.raises(StageError, match="no effect with --engine torch"):
        load.check_engine("torch", ["blur"], {"max_num_seqs": 4}, joins_cluster=False)
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
    assert pools_for(spread, here, "cuda", "vllm").engines == (1, 2)
    assert pools_for(spread, here, "cuda", "vllm").gpus_each == 2
    assert pools_for(config(), here, "cuda", "vllm").engines == (1, 4)
    assert pools_for(config(), here, "cuda", "torch").gpus_each == 1
    assert pools_for(config(workers="1..3"), Machines(None, 0), "cuda", "vllm").engines == (1, 3)
    with pytest.raises(StageError, match="ask for 8 GPUs, and this machine has 4"):
        pools_for(config(vllm={"tensor_parallel_size": 4, "pipeline_parallel_size": 2}), here, "cuda", "vllm")
    with pytest.raises(StageError, match="tensor_parallel_size=0"):
        pools_for(config(vllm={"tensor_parallel_size": 0}), here, "cuda", "vllm")
    # On CPUs vLLM takes the cores itself; several engines share them.
    assert pools_for(config(), here, "cpu", "vllm").engines == (1, 1)
    assert pools_for(config(), here, "cpu", "vllm").threads is None
    assert pools_for(config(workers=4), here, "cpu", "vllm").threads == 2


PASSES = ("clean", "blur")


class Local:
    """A RowCounter in this process, called as a remote one is."""

    def __init__(self) -> None:
        self.inside = RowCounter.__ray_metadata__.modified_class("score")

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self.inside, name))})


class Fragile:
    """An engine that dies when it is given a prompt with one of these tokens."""

    description = "fragile"

    def __init__(self, *poisons: int) -> None:
        self.poisons = poisons

    def logprobs(self, prompts: Any) -> Any:
        for prompt in prompts:
            if set(self.poisons) & set(prompt.token_ids.tolist()):
                raise EngineDiedError("out of memory; lower --batch-tokens")
        return [np.full(len(prompt.answer_positions), -1.0, np.float32) for prompt in prompts]


def block(count: int, first: int = 0) -> pa.Table:
    """Prepared rows from number `first` on whose only answer token is 100 + their number."""
    rows = []
    for number in range(first, first + count):
        ids = np.array([1, 100 + number], dtype=np.int32)
        prompt = Prompt(ids, np.array([1]), np.array([0]), ids == 0, np.zeros((0, 2), np.int32), ())
        row = dict.fromkeys(prepared_schema().names)
        row |= {"sample_key": f"made/{number}", "num_truncated_tokens": 0, "token_ids": [100 + number], "turn": [0]}
        rows.append(row | {"prompts": (prompt, prompt)})
    return pack(rows, groups_schema())


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a block as Ray does: in a new process after each death. Returns the rows and how many lives it took."""
    import ray

    def leave(status: int) -> None:
        assert status == 1
        raise SystemExit

    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(mortal.os, "_exit", leave)

    def run(engine: Fragile, table: pa.Table, counter: Local) -> tuple[list[dict[str, Any]], int]:
        monkeypatch.setattr(score, "load_engine", lambda **_: engine)
        for life in range(1, 100):
            try:
                return score.Scorer(engine={}, passes=PASSES, references=PASSES[1:], progress=counter)(
                    table
                ).to_pylist(), life
            except SystemExit:
                continue
        raise AssertionError("it never ended")

    return run


def test_a_row_that_kills_every_engine_becomes_an_error(lives: Any) -> None:
    """Two engines for the block, one for each of the two rows, and one that scores the others."""
    rows, taken = lives(Fragile(103, 107), block(10), Local())
    assert taken == 5
    assert [row["sample_key"] for row in rows] == [f"made/{number}" for number in range(10)]
    for number, row in enumerate(rows):
        if number in (3, 7):
            assert row["error"] == "EngineDied: out of memory; lower --batch-tokens"
            assert row["vig"] is None
        else:
            assert row["error"] is None
            assert row["vig"] == 0


def test_an_engine_that_lives_again_loses_nothing(lives: Any) -> None:
    engine, counter = Fragile(103), Local()
    calls = []
    logprobs = engine.logprobs

    def once(prompts: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            engine.poisons = ()
        return logprobs(prompts)

    engine.logprobs = once  # type: ignore[method-assign]
    rows, taken = lives(engine, block(10), counter)
    assert taken == 2
    assert all(row["error"] is None and row["vig"] == 0 for row in rows)
    assert counter.inside.timing()["engine_deaths"] == 1


def test_engines_that_do_nothing_but_die_end_the_job(lives: Any) -> None:
    with pytest.raises(StageError, match=r"died over 8 rows in a row, each .*: out of memory; lower --batch-tokens"):
        lives(Fragile(1), block(100), Local())


def test_engines_that_die_over_one_block_after_the_other_end_the_job(lives: Any) -> None:
    counter = Local()
    for number in range(4):
        assert counter.inside.died("out of memory", f"block {number}", None) == (number + 1, 0)
    with pytest.raises(StageError, match=r"died 5 times in a row; the last time: out of memory; lower --batch-tokens"):
        lives(Fragile(1), block(10), counter)


@pytest.mark.parametrize("killers", [(0, 1, 2), (0, 1, 2, 3, 4, 5), (0, 2, 4, 6), (5, 6, 7)])
def test_rows_that_each_kill_the_only_engine_cost_the_others_nothing(lives: Any, killers: tuple[int, ...]) -> None:
    """One engine, and several killing rows in succession, from the first row of the job on or later."""
    rows, _ = lives(Fragile(*(100 + number for number in killers)), block(8), Local())
    assert [number for number, row in enumerate(rows) if row["error"] is not None] == list(killers)
    assert all(row["vig"] == 0 for number, row in enumerate(rows) if number not in killers)


def test_small_blocks_of_killing_rows_in_succession_end_as_errors(lives: Any) -> None:
    """A block of one row says as much about it as the row run alone."""
    engine, counter = Fragile(100, 101, 102), Local()
    for number in range(4):
        (row,), _ = lives(engine, block(1, number), counter)
        assert (row["error"] is None) == (number == 3)
