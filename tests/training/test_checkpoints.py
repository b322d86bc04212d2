"""Checkpoints: whole or not there, on any number of workers, in a folder or in a bucket."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import alone, setup_of, together, weights_of
from vig_ray.errors import StageError
from vig_ray.training import checkpoints
from vig_ray.training.checkpoints import Checkpoint, CheckpointManager, committed_checkpoints, to_keep
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Run, Setup
from vig_ray.training.worker import held_out_loss, train

ALONE = DistributedContext(0, 1, torch.device("cpu"))


def worst_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class StopAt(SilentLogger):
    """Ends the process's run after a step, as a kill would, between two steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, step: Any) -> None:
        if step.step + 1 == self._step:
            raise KeyboardInterrupt


def stopped(setup: Setup, directory: str, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(setup, ALONE, CheckpointManager(directory, keep=2, distributed=ALONE), StopAt(step))


def test_a_run_goes_on_as_if_it_had_never_stopped(chosen: Path, tmp_path: Path) -> None:
    setup = setup_of(chosen, max_steps=12, save_every=3)
    expected = alone(setup, tmp_path / "whole")
    for step in (5, 8):
        stopped(setup, str(tmp_path / "parts"), step)
    run = alone(setup, tmp_path / "parts")
    assert worst_difference(weights_of(run), weights_of(expected)) < 1e-6
    assert [line["loss"] for line in run.log] == pytest.approx([line["loss"] for line in expected.log], abs=1e-6)
    assert [line["step"] for line in run.log] == list(range(12))
    assert [line["lr"] for line in run.log] == [line["lr"] for line in expected.log]


def test_what_one_worker_wrote_three_read_and_the_other_way_round(chosen: Path, tmp_path: Path) -> None:
    setup = setup_of(chosen, max_steps=9, save_every=3, lr=2e-4)
    expected = alone(setup, tmp_path / "expected")
    stopped(setup, str(tmp_path / "run"), 4)
    found = together(3, tmp_path, {"run": setup})["run"]
    assert [line["workers"] for line in found["log"]] == [1] * 3 + [3] * 6
    assert worst_difference(found["weights"], weights_of(expected)) < 1e-4
    # Back to one, from the checkpoint of three at step 6.
    for name in os.listdir(tmp_path / "run"):
        if name.startswith("step-00000009"):
            shutil.rmtree(tmp_path / "run" / name)
    run = alone(setup, tmp_path / "run")
    assert [line["workers"] for line in run.log] == [1] * 3 + [3] * 3 + [1] * 3
    assert worst_difference(weights_of(run), weights_of(expected)) < 1e-4


def test_a_machine_that_is_to_go_gets_a_checkpoint_at_once(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vig_ray.training.step.LOOK_EVERY_S", 0.0)
    setup, asked = setup_of(chosen, max_steps=8, save_every=5, held_out=8), []

    def leaving() -> bool:
        asked.append(len(asked) + 1)
        return len(asked) >= 3  # and from then on

    train(setup, ALONE, CheckpointManager(str(tmp_path), keep=9, distributed=ALONE), SilentLogger(), leaving)
    scores = {each.step: each.score for each in committed_checkpoints(str(tmp_path))}
    assert sorted(scores) == [3, 5, 8]
    # There is no time to measure before the machine is gone, and no other step's loss will do.
    assert [step for step, score in scores.items() if score is None] == [3]
    assert asked == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), RuntimeError),
        (OSError("No space left on device"), StageError),
    ],
)
def test_a_lost_worker_is_no_lack_of_storage(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """The first may be tried again without that worker, the second would fail again."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "save_state", broken)
    with pytest.raises(raised) as found:
        alone(setup_of(chosen, max_steps=2), tmp_path)
    assert isinstance(found.value, StageError) == (raised is StageError)


def test_the_last_and_the_best_stay(chosen: Path, tmp_path: Path) -> None:
    kept = [Checkpoint("a", 1, 0.5), Checkpoint("b", 2, 0.1), Checkpoint("c", 3, None), Checkpoint("d", 4, 0.2)]
    assert to_keep(kept, 1) == {"b", "d"}
    assert to_keep(kept[2:3], 2) == {"c"}
    setup = setup_of(chosen, max_steps=10, save_every=2, held_out=16, eval_every=2, lr=3e-2)  # it soon gets worse
    run = alone(setup, tmp_path)
    losses = {line["step"] + 1: line["held_out_active_loss"] for line in run.log if line["held_out_active_loss"]}
    assert sorted(losses) == [2, 4, 6, 8, 10]
    best = min(losses, key=lambda step: losses[step])
    assert {each.step for each in committed_checkpoints(str(tmp_path))} == {8, 10, best}
    assert {each.score for each in committed_checkpoints(str(tmp_path))} == {losses[step] for step in (8, 10, best)}


def test_a_commit_marker_of_an_earlier_version_counts(tmp_path: Path) -> None:
    for step, marker in ((4, "whole.json"), (6, "commit.json"), (8, "progress.json")):
        folder = tmp_path / f"step-{step:08d}-abcdef"
        folder.mkdir()
        (folder / marker).write_text(json.dumps({"step": step, "score": None, "workers": 1}))
    assert [checkpoint.step for checkpoint in committed_checkpoints(str(tmp_path))] == [4, 6]


def test_a_checkpoint_is_told_by_its_own_held_out_loss(chosen: Path, tmp_path: Path) -> None:
    """Whatever lies between measurements and between checkpoints."""
    setup = setup_of(chosen, max_steps=7, save_every=2, eval_every=3, held_out=16, lr=3e-2)
    run = train(setup, ALONE, CheckpointManager(str(tmp_path), keep=9, distributed=ALONE), SilentLogger())
    assert [line["step"] + 1 for line in run.log if line["held_out_active_loss"] is not None] == [2, 3, 4, 6, 7]
    kept = committed_checkpoints(str(tmp_path))
    assert [each.step for each in kept] == [2, 4, 6, 7]
    for each in kept:
        checkpoints.read(str(tmp_path / each.name), run.training_model, run.optimizer)
        assert each.score == pytest.approx(held_out_loss(run).active_loss, abs=1e-5), each.step


def test_held_out_samples_are_not_trained_on(chosen: Path, tmp_path: Path) -> None:
    setup = setup_of(chosen, max_steps=None, held_out=20, global_batch=50, eval_every=1)
    run = alone(setup, tmp_path)
    assert run.log[-1]["end"] == len(setup.index) - 20
    line = run.log[-1]
    source = setup.source()
    run.training_model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for position in range(len(setup.index) - 20, len(setup.index)):
        sample: Any = source[position]
        ids = torch.tensor(sample.prompt.token_ids.tolist())[None]
        images = [image.inputs for image in sample.prompt.images]
        pixels = source.formatter.collate(images, "cpu", torch.float32) if images else {}
        with torch.no_grad():
            logp = run.training_model.model(input_ids=ids, **pixels).logits[0].log_softmax(-1)
        nll = torch.tensor([-float(logp[p - 1, ids[0, p]]) for p in sample.prompt.answer_positions.tolist()])
        active = torch.from_numpy(sample.weights_T != 0)
        sums += torch.stack([nll[active].sum(), active.sum(), nll.sum(), torch.tensor(len(nll))])
    assert line["held_out_active_loss"] == pytest.approx(float(sums[0] / sums[1]), abs=1e-4)
    assert line["held_out_answer_loss"] == pytest.approx(float(sums[2] / sums[3]), abs=1e-4)


def test_a_full_disk_leaves_the_checkpoint_before_whole(chosen: Path, tmp_path: Path) -> None:
    import resource

    setup = setup_of(chosen, max_steps=8, save_every=2)
    stopped(setup, str(tmp_path / "run"), 3)
    before = committed_checkpoints(str(tmp_path / "run"))
    assert [each.step for each in before] == [2]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # a file may not grow beyond that
    try:
        with pytest.raises(StageError, match="a checkpoint can't be written"):
            alone(setup, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert committed_checkpoints(str(tmp_path / "run")) == before
    run = alone(setup, tmp_path / "run")
    expected = alone(setup, tmp_path / "undisturbed")
    assert worst_difference(weights_of(run), weights_of(expected)) < 1e-6
    assert all((tmp_path / "run" / name / "commit.json").exists() for name in os.listdir(tmp_path / "run"))


def test_in_a_bucket_that_is_lost_and_comes_back(
    chosen: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_UPLOAD_TRIES", 1)
    client = s3()
    client.create_bucket(Bucket="runs")
    directory = "s3://runs/a/checkpoints"
    setup = setup_of(chosen, max_steps=8, save_every=2)
    stopped(setup, directory, 5)
    assert [each.step for each in committed_checkpoints(directory)][-1] in (2, 4)

    class LoseTheBucket(SilentLogger):
        def step(self, step: Any) -> None:
            if step.step + 1 == 5:
                monkeypatch.setattr(CheckpointManager, "_upload", _to_nowhere)

    whole = CheckpointManager._upload

    def _to_nowhere(self: CheckpointManager, folder: str, name: str) -> None:
        self._directory, kept = "s3://no-such-bucket/a", self._directory
        try:
            whole(self, folder, name)
        finally:
            self._directory = kept

    with pytest.raises(StageError, match="can't be uploaded"):
        train(setup, ALONE, CheckpointManager(directory, keep=2, distributed=ALONE), LoseTheBucket())
    monkeypatch.setattr(CheckpointManager, "_upload", whole)
    before = committed_checkpoints(directory)
    assert before
    run: Run = train(setup, ALONE, CheckpointManager(directory, keep=2, distributed=ALONE), SilentLogger())
    expected = alone(setup, tmp_path / "undisturbed")
    assert worst_difference(weights_of(run), weights_of(expected)) < 1e-6
    keys = [each["Key"].split("/") for each in client.list_objects_v2(Bucket="runs")["Contents"]]
    names = {key[2] for key in keys if len(key) > 2 and key[2]}
    assert names == {each.name for each in committed_checkpoints(directory)}
    record = client.get_object(
        Bucket="runs", Key=f"a/checkpoints/{committed_checkpoints(directory)[-1].name}/commit.json"
    )
    assert json.loads(record["Body"].read())["step"] == 8
