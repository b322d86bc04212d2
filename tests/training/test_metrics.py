"""What a person sees of a run: event files, rates, and one line for what isn't there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.runs import setup_of
from vig_ray.errors import StageError
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.metrics import JobMetricsLogger, figures_of, line_of, peak_flops, trackers
from vig_ray.training.run import Run, Step
from vig_ray.training.worker import prepare, train

ALONE = DistributedContext(0, 1, torch.device("cpu"))


class Told:
    """Stands where the job's actor does: `told.step.remote(...)`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.calls.append((name, values))


def watched(chosen: Path, out: Path, told: Told, **options: Any) -> Run:
    metrics = JobMetricsLogger(told, out=str(out), name="run", identity="1234")
    setup = setup_of(chosen, max_steps=6, held_out=10, eval_every=3, save_every=2, **options)
    return train(setup, ALONE, CheckpointManager(str(out / "checkpoints"), keep=2, distributed=ALONE), metrics)


def test_event_files_hold_what_the_log_holds(chosen: Path, tmp_path: Path) -> None:
    told = Told()
    run = watched(chosen, tmp_path, told)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({line["step"] + 1: line["loss"] for line in run.log}, rel=1e-5)
    assert [event.step for event in events.Scalars("held_out/active_loss")] == [2, 3, 4, 6]  # checkpoints, too
    names = {name for name, _ in told.calls}
    assert names == {"started", "checked", "step"}
    assert told.calls[0][1][:2] == (0, 6)
    assert [values[0] for name, values in told.calls if name == "step"] == [1, 2, 3, 4, 5, 6]


def test_whole_gradients_are_told_at_the_start(chosen: Path, tmp_path: Path) -> None:
    run = prepare(setup_of(chosen, watch=("none",)), ALONE)
    for kept in (0, 28_000_000_000):
        told = Told()
        JobMetricsLogger(told, out=str(tmp_path), name="run", identity="1234").start(replace(run, whole_gradients=kept))
        text = told.calls[0][1][2]
        assert ("whole gradients kept until a step's end: 28.0 GB a worker" in text) == bool(kept)


def test_what_a_run_says_in_a_line() -> None:
    step = Step(
        step=0, first=0, end=8, loss=0.5, lr=1e-5, grad_norm=2.0, samples=8, active_tokens=50, answer_tokens=100,
        tokens=1000, seconds=2.0, workers=2, unusable={},
    )  # fmt: skip
    figures = figures_of(step, 6e9, torch.device("cpu"))
    assert figures["speed/tokens_per_s"] == 500
    assert figures["speed/active_tokens_per_s"] == 25
    assert figures["speed/samples_per_s"] == 4
    assert figures["speed/tflops_per_worker"] == pytest.approx(6e9 * 1000 / 2 / 2 / 1e12)
    assert line_of(figures) == "loss 0.5000, lr 1.00e-05, 500 tokens/s (25 active)"
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("a toaster") is None


@pytest.mark.parametrize("which", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, which, None)
    with pytest.raises(StageError, match=f"--watch {which}: .*pip install {which}"):
        trackers([which], out=str(tmp_path), name="n", config={}, identity="i", first=0)
    assert trackers(["none"], out=str(tmp_path), name="n", config={}, identity="i", first=0) == []
