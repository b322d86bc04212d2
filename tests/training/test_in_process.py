"""A run in this process is the run that Ray's workers make: the same order, checkpoints and files, and no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from tests.training.runs import alone, left_by, setup_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.training import in_process, job, text_job
from vig_ray.training.config import TrainConfig
from vig_ray.training.text_config import TrainTextConfig


def config(chosen: Path, out: Path, **options: Any) -> TrainConfig:
    given = {"model": CHECKPOINT, "samples": str(chosen / "samples"), "selection": str(chosen / "selection")}
    return TrainConfig(
        **{**given, "out": str(out), "max_steps": 6, "global_batch": 8, "lr": 1e-3, "device": "cpu"} | options
    )


def test_the_files_of_a_run_by_the_core(chosen: Path, tmp_path: Path) -> None:
    trained = job.run(config(chosen, tmp_path / "here"), in_process=True)
    assert isinstance(trained, job.Trained)
    assert not ray.is_initialized()
    expected = alone(setup_of(chosen, max_steps=6), tmp_path / "core")
    theirs = load_file(left_by(expected, tmp_path / "theirs") / "model" / "model.safetensors")
    ours = load_file(Path(trained.model) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    lines = [json.loads(line) for line in (tmp_path / "here" / "training" / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected.log], abs=1e-6)
    assert job.run(config(chosen, tmp_path / "here"), in_process=True) == trained  # nothing to do


def test_a_run_that_was_stopped_goes_on(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"save_every": 2}
    whole = job.run(config(chosen, tmp_path / "whole", **options), in_process=True)
    step = in_process._ByBar.step

    def stop(bar: Any, done: int, figures: Any) -> None:
        if done == 4:
            raise KeyboardInterrupt
        step(bar, done, figures)

    with monkeypatch.context() as patch:
        patch.setattr(in_process._ByBar, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            job.run(config(chosen, tmp_path / "parts", **options), in_process=True)
    parts = job.run(config(chosen, tmp_path / "parts", **options), in_process=True)
    assert "going on at step 2" in capsys.readouterr().err
    assert isinstance(whole, job.Trained)
    assert isinstance(parts, job.Trained)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
    one, other = (load_file(Path(each.model) / "model.safetensors") for each in (whole, parts))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_step_that_is_no_number_names_its_samples(chosen: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"Their keys are in .*bad-step-") as caught:
        job.run(config(chosen, tmp_path / "out", lr=1e30), in_process=True)
    where = str(caught.value).rpartition(" in ")[2]
    assert len(json.loads(Path(where).read_text())["sample_keys"]) == 8


def test_a_language_model_too(chosen: Path, tmp_path: Path) -> None:
    from vig_ray.demo import parts

    parts.write_language_model(str(tmp_path / "language"))
    given = TrainTextConfig(
        model=str(tmp_path / "language"), samples=str(chosen / "samples"), out=str(tmp_path / "out"), max_steps=2,
        global_batch=8, length=256, device="cpu",
    )  # fmt: skip
    trained = text_job.run(given, in_process=True)
    assert isinstance(trained, job.Trained)
    assert trained.steps == 2
    assert Path(trained.model, "config.json").exists()


def test_what_only_ray_can_do_is_refused(chosen: Path, tmp_path: Path) -> None:
    for options in ({"workers": "2"}, {"workers": "1..4"}, {"address": "somewhere:6379"}):
        with pytest.raises(StageError, match="in_process: neither"):
            job.run(config(chosen, tmp_path / "out", **options), in_process=True)
    assert not (tmp_path / "out").exists()
