"""Runs with `--objective vdep` against VDEP written out plainly: the same losses, figures and weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.plain_vdep import plain_vdep_training
from tests.training.runs import alone, left_by, setup_of, together, weights_of
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.training.metrics import figures_of
from vig_ray.training.run import Run, Setup, Step

STEPS = 4
VDEP: dict[str, Any] = {
    "objective": "vdep", "vdep_alpha": 0.05, "vdep_norms_every": 2, "max_steps": STEPS, "selection": False,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "hybrid": {"micro_batch": 2},
    "doubled, live, padded": {
        "vdep_doubled": True, "vdep_target": "live", "packing": False, "micro_batch": 3, "gradient_sync": "step",
    },
    "joint, same position": {"vdep_batches": "joint", "vdep_shift": 0, "vdep_reduction": "mean", "micro_batch": 3},
    "a ratio of a half, first layer": {"vdep_ratio": 0.5, "vdep_layer": 1, "activation_checkpointing": "on"},
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 demo samples in samples/, some without an image."""
    out = tmp_path_factory.mktemp("imported")
    importing.run(ImportConfig(data=world.write(str(out / "data"), 40, 7), out=str(out)))
    return out


def plainly(setup: Setup, folder: Path) -> Any:
    """The same steps and modes, written out."""
    config, sampler, source = setup.config, setup.sampler, setup.source(images=False)
    steps = []
    for step in range(STEPS):
        keys = [sample.key for sample in source.__getitems__(sampler.positions(step).tolist())]
        steps.append(list(zip(keys, sampler.modes(step), strict=True)))
    told, model = plain_vdep_training(
        CHECKPOINT,
        folder / "samples",
        steps,
        alpha=config.vdep_alpha,
        lr=1e-3,
        reduction=config.vdep_reduction,
        shift=config.vdep_shift,
        live=config.vdep_target == "live",
        layer=config.vdep_layer or -1,
    )
    return told, model.state_dict()


def assert_same(log: list[dict[str, Any]], weights: dict[str, torch.Tensor], expected: Any) -> None:
    told, theirs = expected
    for line, plain in zip(log, told, strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        ours = line["vdep"]
        measured = line["step"] % 2 == 0
        assert ("text_grad_norm" in ours) == measured
        for name in ("text_loss", "image_loss", "embedding_variance"):
            assert ours[name] == pytest.approx(plain[name], rel=1e-5), name
        for name in ("text_grad_norm", "image_grad_norm") if measured else ():
            assert ours[name] == pytest.approx(plain[name], rel=1e-4), name
    assert weights.keys() == theirs.keys()
    worst = max((weights[name] - theirs[name]).abs().max().item() for name in theirs)
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.long
def test_one_and_two_workers_train_as_written_out_plainly(imported: Path, tmp_path: Path) -> None:
    """With microbatches that one of the workers lacks, and steps in which a worker has no sample of a mode."""
    setups = {way: setup_of(imported, **(VDEP | options)) for way, options in WAYS.items()}
    two = together(2, tmp_path, setups)
    for way, setup in setups.items():
        print(way)
        expected = plainly(setup, imported)
        run = alone(setup, tmp_path / f"{way} alone")
        assert_same(run.log, weights_of(run), expected)
        assert_same(two[way]["log"], two[way]["weights"], expected)


def test_a_run_goes_on_with_the_same_modes(imported: Path, tmp_path: Path) -> None:
    setup = setup_of(imported, save_every=2, **(VDEP | {"vdep_norms_every": 0}))
    run = alone(setup, tmp_path / "run")
    (last,) = (tmp_path / "run").glob("step-00000004-*")
    shutil.rmtree(last)
    again = alone(setup, tmp_path / "run")
    assert [line["vdep"] for line in again.log] == [line["vdep"] for line in run.log]
    assert all(torch.equal(tensor, weights_of(again)[name]) for name, tensor in weights_of(run).items())


def exported(run: Run, out: Path) -> dict[str, Any]:
    """What the files of a run's model are: names and contents of all but the weights, whose names are told."""
    folder = left_by(run, out) / "model"
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    return files | {"weights": sorted(weights_of(run))}


def test_nothing_of_it_is_left_in_the_model_and_all_is_logged(imported: Path, tmp_path: Path) -> None:
    vdep = alone(setup_of(imported, **(VDEP | {"vdep_mode_token": "</s>"})), tmp_path / "vdep")
    plain = alone(setup_of(imported, max_steps=STEPS, selection=False), tmp_path / "plain")
    assert exported(vdep, tmp_path / "one") == exported(plain, tmp_path / "other")
    line = json.loads((tmp_path / "one" / "training" / "log.jsonl").read_text().splitlines()[0])
    assert line["vdep"].keys() == {
        "text_loss", "image_loss", "embedding_variance", "text_samples", "image_samples", "image_positions",
        "text_grad_norm", "image_grad_norm",
    }  # fmt: skip
    assert line["loss"] == pytest.approx(line["vdep"]["text_loss"] + 0.05 * line["vdep"]["image_loss"], rel=1e-5)
    assert line["vdep"]["text_samples"] + line["vdep"]["image_samples"] == 8
    shown = figures_of(Step(**line), 0.0, torch.device("cpu"))
    assert shown["vdep/image_loss"] == line["vdep"]["image_loss"]
    assert plain.log[0]["vdep"] is None
