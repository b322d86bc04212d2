"""The GPU's benchmark runs to its end on small models where neither Ray nor vLLM can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import Report

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "vllm", "pydantic")))
sys.argv = ["gpu", "--small", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def run(tmp_path: Path, without: str, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    # One thread: small models on more are in each other's way.
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = WITHOUT.replace('("ray", "vllm", "pydantic")', without)
    command = [sys.executable, "-c", script, "--out", str(tmp_path / "figures.json"), *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    return done, json.loads((tmp_path / "figures.json").read_text())


@pytest.mark.long
def test_it_runs_without_ray(tmp_path: Path) -> None:
    done, record = run(
        tmp_path, '("ray", "vllm")', "--references", "blur", "no-image", "--samples", "3", "--looped", "1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = record["figures"]
    assert isinstance(rows, list)
    for model in ("LLaVA-1.5 small", "Qwen2.5-VL small"):
        seen = {row["what"]: row for row in rows if row["model"] == model}
        for name in ("blur", "no-image"):
            assert seen[f"loop, {name}"]["samples/s"] > 0
            assert seen[f"engine, {name}"]["difference, nats"] < 1e-5
        assert {f"training, LoRA, {way}" for way in ("packed", "padded", "Trainer")} < seen.keys()
    assert all("CPU" in row["gpu"] for row in rows)
    assert record["left_out"] == [] or all("nothing shared: not available" in each for each in record["left_out"])  # type: ignore[attr-defined]
    assert all(row["what"] in done.stdout.split("\n| gpu |")[1] for row in rows)


@pytest.mark.long
def test_scoring_needs_no_pydantic(tmp_path: Path) -> None:
    words = ["--references", "mean", "--parts", "scoring", "--samples", "2", "--looped", "1"]
    done, record = run(tmp_path, '("ray", "vllm", "pydantic")', *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record["figures"]


def test_what_has_no_time_left_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("cpu", 10)
    report.part("short", 1, lambda: report.add("model", "short", **{"samples/s": 2.0}))
    report.part("long", 60, lambda: pytest.fail("it has no time"))
    assert "it takes about 60" in capsys.readouterr().out
    assert "left out: long" in report.markdown()
    assert not report.failed


def test_want_of_memory_is_told_and_anything_else_a_failure() -> None:
    report = Report("cpu", 10)
    report.part("large", 1, _raise(torch.OutOfMemoryError("no room")))
    assert not report.failed
    report.part("broken", 1, _raise(ValueError("broken")))
    assert report.failed
    assert report.skipped == ["large: OutOfMemoryError: no room", "broken: ValueError: broken"]


def _raise(error: Exception):
    def run() -> None:
        raise error

    return run
