"""What the job refuses before any worker starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.storage import write_bytes
from vig_ray.training import job
from vig_ray.training.config import TrainConfig
from vig_ray.training.plan import check


def config(chosen: Path, out: Path, **options: Any) -> TrainConfig:
    given = {"model": CHECKPOINT, "samples": str(chosen / "samples"), "selection": str(chosen / "selection")}
    return TrainConfig(**{**given, "out": str(out), "max_steps": 2} | options)


def test_what_does_not_fit_is_one_line(chosen: Path, tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told):
            job.run(config(chosen, tmp_path / "out", **options))
        assert not (tmp_path / "out").exists()

    refused("no such folder", model="/no/such")
    assert check(config(chosen, tmp_path, samples=str(chosen))).samples == str(chosen / "samples")
    refused("no samples here", samples=str(tmp_path))
    refused("no selection here", selection=str(tmp_path))
    refused("there are only", held_out=10**6)
    other = tmp_path / "other"
    importing.run(ImportConfig(data=world.write(str(other / "data"), 20, 5), out=str(other)))
    refused("not the samples", samples=str(other / "samples"))
    shutil.copytree(chosen / "selection", tmp_path / "swept" / "selection")
    record = json.loads((chosen / "selection.stage.json").read_text())
    (tmp_path / "swept" / "selection.stage.json").write_text(json.dumps(record | {"complete": False}))
    refused("nothing is selected here", selection=str(tmp_path / "swept"))


def test_what_is_in_the_way_stays(chosen: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(StageError, match="model/precious was not written by `vig train`"):
            job.run(config(chosen, tmp_path, **options))
    assert (tmp_path / "model" / "precious").exists()


def test_another_run_is_not_gone_on_with(chosen: Path, tmp_path: Path) -> None:
    plan = check(config(chosen, tmp_path))
    begun = job.claimed(plan)
    begun.begin(plan.config, identity=begun.identity | {"dtype": "float32"})
    write_bytes(f"{plan.out}/checkpoints/step-00000001-{begun.run}-5f2a91/whole.json", b"{}")
    # What only changes how the work is done doesn't matter, nor for the name that Weights & Biases knows the run by;
    # what changes what comes out does.
    hows: list[dict[str, Any]] = [
        {},
        {"workers": "2", "micro_batch": 3, "save_every": 7, "gradient_sync": "step"},
        {"overwrite": True},
        {"dtype": "float32"},
    ]
    for how in hows:
        again = job.claimed(check(config(chosen, tmp_path, **how)))
        assert (again.state, again.run) == ("go on", begun.run)
    changes = {"lr": 1e-3, "global_batch": 64, "selection": None, "lora": True, "seed": 5, "dtype": "bfloat16"}
    for option, value in changes.items():
        with pytest.raises(StageError, match=f"another run of `vig train` .*{option}"):
            job.claimed(check(config(chosen, tmp_path, **{option: value})))
        assert job.claimed(check(config(chosen, tmp_path, overwrite=True, **{option: value}))).state == "replace"


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="--max-steps and --epochs"):
        TrainConfig(model="m", samples="s", out="o", epochs=2, max_steps=5)
    assert TrainConfig(model="m", samples="s", out="o").rates == {"language": 2e-5, "projector": 2e-5, "tower": 2e-6}
    assert TrainConfig(model="m", samples="s", out="o", lora=True).rates["language"] == 2e-4
    assert TrainConfig(model="m", samples="s", out="o", watch="tensorboard,wandb").watch == ("tensorboard", "wandb")
