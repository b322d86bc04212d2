"""Models at shares of a run's steps: those of a run that stops there, each whole or not there, and the run itself none
the different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.training.plain import plain_training
from tests.training.runs import alone, setup_of, together, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import load_model
from vig_ray.stage import Claim, claim
from vig_ray.training import export, finish, in_process, job, text_job
from vig_ray.training.config import TrainConfig
from vig_ray.training.export import ExportConfig, merged
from vig_ray.training.shares import step_of
from vig_ray.training.text_config import TrainTextConfig
from vig_ray.training.training_model import Lora

STEPS, BATCH, RATE = 8, 8, 1e-3
LORA = {"lora": True, "lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-2}


def config(chosen: Path, out: Path | str, **options: Any) -> TrainConfig:
    given = {"model": CHECKPOINT, "samples": str(chosen / "samples"), "selection": str(chosen / "selection")}
    given |= {"out": str(out), "max_steps": STEPS, "global_batch": BATCH, "lr": RATE, "device": "cpu", "watch": "none"}
    return TrainConfig(**given | options)


def written(folder: Path) -> dict[str, torch.Tensor]:
    """A model's weights as whoever takes them gets them: by this project's loader, on a CPU."""
    return load_model(str(folder), dtype="float32", device="cpu").state_dict()


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_is_the_model_of_plain_steps_up_to_there(chosen: Path, tmp_path: Path) -> None:
    """Of torch's AdamW with the whole run's schedule; the rest of the run is what it is without the option, by the
    bit."""
    trained = job.run(config(chosen, tmp_path / "out", export_at=(0.5, 0.25, 1)), in_process=True)
    assert isinstance(trained, job.Trained)
    at = tmp_path / "out" / "at"
    assert trained.exported == {str(at / "0.25"): 2, str(at / "0.5"): 4, str(at / "1"): 8}
    assert f"model after step 4: {at / '0.5'}" in trained.text()
    assert sorted(each.name for each in at.iterdir()) == ["0.25", "0.5", "1"]
    for name, until in (("0.25", 2), ("0.5", 4)):
        _, expected = plain_training(
            CHECKPOINT, chosen / "samples", chosen / "selection", steps=STEPS, batch=BATCH, lr=RATE, until=until
        )
        assert worst(written(at / name), expected.state_dict()) < 1e-4
    assert worst(written(at / "0.25"), written(at / "0.5")) > 1e-3
    assert same(at / "1", tmp_path / "out" / "model")
    job.run(config(chosen, tmp_path / "without"), in_process=True)
    assert same(tmp_path / "out" / "model", tmp_path / "without" / "model")
    logs = [(tmp_path / name / "training" / "log.jsonl").read_text().splitlines() for name in ("out", "without")]
    ours, theirs = ([{**json.loads(line), "seconds": 0} for line in log] for log in logs)
    assert ours == theirs
    for folder in (at / "0.5", tmp_path / "out" / "model"):
        assert {"config.json", "tokenizer_config.json", "processor_config.json"} <= {
            each.name for each in folder.iterdir()
        }


def stopped(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, options: TrainConfig) -> None:
    """Run until the function of this name would be called, as a kill there ends it."""

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill)
        with pytest.raises(KeyboardInterrupt):
            job.run(options, in_process=True)


@pytest.mark.long
def test_a_killed_run_writes_each_of_them_once_and_whole(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run(config(chosen, tmp_path / "whole", export_at=(0.4, 0.5, 0.75)), in_process=True)
    options = config(chosen, tmp_path / "parts", export_at=(0.4, 0.5, 0.75), save_every=3)
    at = tmp_path / "parts" / "at"
    # While the first is written, which 0.4 and 0.5 of 8 steps are both: nothing of it may look whole.
    stopped(monkeypatch, Claim, "publish", options)
    assert not at.exists()
    # After both, and before their marker says so of the second; the checkpoint is of step 3.
    write, names = finish.write_bytes, []

    def write_and_kill(where: str, *rest: Any, **more: Any) -> None:
        names.append(where.rpartition("/")[2])
        if names[-1].startswith("at-0.5-"):
            raise KeyboardInterrupt
        write(where, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_bytes", write_and_kill)
        with pytest.raises(KeyboardInterrupt):
            job.run(options, in_process=True)
    assert [name.rpartition("-")[0] for name in names] == ["at-0.4", "at-0.5"]
    first = (at / "0.4" / "model.safetensors").stat()
    # Behind the last of them, with a checkpoint after it.
    stopped(monkeypatch, in_process, "finish", options)
    before = {name: (at / name / "model.safetensors").stat() for name in ("0.4", "0.5", "0.75")}
    assert before["0.4"] == first
    job.run(options, in_process=True)
    assert {name: (at / name / "model.safetensors").stat() for name in before} == before
    for name in before:
        assert worst(written(at / name), written(tmp_path / "whole" / "at" / name)) < 1e-6
    assert worst(written(tmp_path / "parts" / "model"), written(tmp_path / "whole" / "model")) < 1e-6
    assert not list((tmp_path / "parts").glob(".train-*"))


def test_with_adapters_it_is_what_export_makes_of_that_checkpoint(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(chosen, tmp_path / "out", export_at=(0.5,), save_every=4, **LORA)
    step = in_process._ByBar.step

    def stop(bar: Any, done: int, figures: Any) -> None:
        if done == 6:
            raise KeyboardInterrupt
        step(bar, done, figures)

    with monkeypatch.context() as patch:
        patch.setattr(in_process._ByBar, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            job.run(options, in_process=True)
    exported = export.run(ExportConfig(run=str(tmp_path / "out"), out=str(tmp_path / "exported")))
    assert exported.step == 4
    assert same(tmp_path / "out" / "at" / "0.5", tmp_path / "exported")
    job.run(options, in_process=True)
    assert same(tmp_path / "out" / "at" / "0.5", tmp_path / "exported")
    assert worst(written(tmp_path / "exported"), written(tmp_path / "out" / "model")) > 1e-3
    assert {"adapter", "at", "model"} <= {each.name for each in (tmp_path / "out").iterdir()}


def test_two_workers_write_what_one_does(chosen: Path, tmp_path: Path) -> None:
    setups = {
        "whole": setup_of(chosen, max_steps=STEPS, export_at=(0.5,)),
        "adapters": setup_of(chosen, max_steps=STEPS, export_at=(0.5,), **LORA),
    }
    outputs = {}
    for name, setup in setups.items():
        output = claim(str(tmp_path / f"{name}-out" / "training"), "train", {}, folders=("model", "at"))
        output.begin(setup.config)
        outputs[name] = output
    together(2, tmp_path, setups, outputs=outputs)
    for name in setups:
        lora = Lora(4, 8.0) if name == "adapters" else None
        # The same schedule, ended by hand: a run of as many steps would have another.
        half: dict[str, torch.Tensor] = {}

        class EndsError(Exception):
            pass

        def keep(
            run: Any, half: dict[str, torch.Tensor] = half, lora: Lora | None = lora, end: Any = EndsError
        ) -> None:
            if run.step == STEPS // 2:
                half |= {key: tensor.clone() for key, tensor in merged(weights_of(run), lora).items()}
                raise end

        with pytest.raises(EndsError):
            alone(setups[name], tmp_path / f"{name}-alone", after_step=keep)
        assert worst(written(tmp_path / f"{name}-out" / "at" / "0.5"), half) < 1e-4


def test_in_a_bucket(chosen: Path, tmp_path: Path, s3: Any) -> None:
    client = s3()
    client.create_bucket(Bucket="runs")
    job.run(config(chosen, "s3://runs/out", export_at=(0.5,), max_steps=2), in_process=True)
    client.download_file("runs", "out/at/0.5/model.safetensors", str(tmp_path / "model.safetensors"))
    job.run(config(chosen, tmp_path / "here", export_at=(0.5,), max_steps=2), in_process=True)
    assert same(tmp_path, tmp_path / "here" / "at" / "0.5")


def test_other_shares_are_another_run(chosen: Path, tmp_path: Path) -> None:
    job.run(config(chosen, tmp_path / "out", export_at=(0.5,), max_steps=2), in_process=True)
    with pytest.raises(StageError, match="export_at differ"):
        job.run(config(chosen, tmp_path / "out", max_steps=2), in_process=True)
    job.run(config(chosen, tmp_path / "out", max_steps=2, overwrite=True), in_process=True)
    assert not (tmp_path / "out" / "at").exists()
    (tmp_path / "out" / "at").mkdir()
    (tmp_path / "out" / "at" / "mine").write_text("")
    with pytest.raises(StageError, match="at/mine was not written by `vig train`"):
        job.run(config(chosen, tmp_path / "out", export_at=(0.5,), max_steps=2, overwrite=True), in_process=True)


def test_a_language_model_too(chosen: Path, tmp_path: Path) -> None:
    from vig_ray.demo import parts

    parts.write_language_model(str(tmp_path / "language"))
    options = TrainTextConfig(
        model=str(tmp_path / "language"), samples=str(chosen / "samples"), out=str(tmp_path / "out"), max_steps=3,
        global_batch=8, length=256, device="cpu", export_at=(0.3, 1), watch="none",
    )  # fmt: skip
    trained = text_job.run(options, in_process=True)
    assert isinstance(trained, job.Trained)
    assert list(trained.exported.values()) == [1, 3]
    assert same(tmp_path / "out" / "at" / "1", tmp_path / "out" / "model")
    assert (tmp_path / "out" / "at" / "0.3" / "tokenizer.json").exists()


def test_steps_are_rounded_up_as_people_count() -> None:
    assert [step_of(share, 10) for share in (0.25, 0.5, 1.0, 1e-9)] == [3, 5, 10, 1]
    assert step_of(0.07, 100) == 7  # as floats, 7.000000000000001
    assert step_of(0.1, 5000) == 500  # PRIOR records every 500 of 5,000


@pytest.mark.parametrize(
    ("shares", "told"),
    [("0", "0: takes shares"), ("0.5,1.5", "1.5: takes shares"), ("0.5,0.50", "a share twice"), ("half", "number")],
)
def test_what_is_no_share_is_told(chosen: Path, tmp_path: Path, shares: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config(chosen, tmp_path, export_at=shares)


def test_a_dry_run_says_when(chosen: Path, tmp_path: Path) -> None:
    told = job.run(config(chosen, tmp_path / "out", export_at=(0.3,), dry_run=True)).text()
    assert f"after step 3: {tmp_path / 'out' / 'at' / '0.3'}" in told
