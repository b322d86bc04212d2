"""The trainer against training written out plainly: the same losses, the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.plain import plain_training
from tests.training.runs import alone, setup_of, together, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_model

STEPS = 8  # the schedule's rise, its height and its end
MANY_STEPS = 20


def trained_plainly(chosen: Path, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses, model = plain_training(CHECKPOINT, chosen / "samples", chosen / "selection", steps=steps, batch=8, lr=1e-3)
    return losses, model.state_dict()


@pytest.fixture(scope="module")
def plainly(chosen: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return trained_plainly(chosen, STEPS)


def assert_same(log: list[dict[str, Any]], weights: dict[str, torch.Tensor], plainly: Any) -> None:
    losses, expected = plainly
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    assert weights.keys() == expected.keys()
    worst = max((weights[name] - expected[name]).abs().max().item() for name in expected)
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < 1e-4


WAYS = {
    "packed": {},
    "packed, 4 microbatches": {"micro_batch": 2},
    "padded": {"packing": False},
    "padded, 4 microbatches": {"packing": False, "micro_batch": 2},
    "recomputed": {"activation_checkpointing": "on"},
}


@pytest.mark.parametrize("way", WAYS)
def test_one_worker_trains_as_written_out_plainly(chosen: Path, plainly: Any, tmp_path: Path, way: str) -> None:
    run = alone(setup_of(chosen, max_steps=STEPS, **WAYS[way]), tmp_path)
    assert_same(run.log, weights_of(run), plainly)


def test_two_workers_train_as_one(chosen: Path, plainly: Any, tmp_path: Path) -> None:
    ways = WAYS | {"once a step": {"micro_batch": 2, "gradient_sync": "step"}}
    setups = {name: setup_of(chosen, max_steps=STEPS, **options) for name, options in ways.items()}
    setups["packed"] = setup_of(chosen, max_steps=MANY_STEPS)
    many = trained_plainly(chosen, MANY_STEPS)
    for name, found in together(2, tmp_path, setups).items():
        print(name)
        assert_same(found["log"], found["weights"], many if name == "packed" else plainly)


PRECISE = {"lora": True, "lora_rank": 4, "lora_alpha": 8.0}


@pytest.mark.long
def test_adapters_and_bfloat16_on_two_workers(chosen: Path, plainly: Any, tmp_path: Path) -> None:
    """LoRA sharded is LoRA alone; in bfloat16 the losses are those of float32 within its precision."""
    sharded = {
        "adapters": setup_of(chosen, max_steps=STEPS, **PRECISE),
        "bfloat16": setup_of(chosen, max_steps=STEPS, dtype="bfloat16"),
        "both": setup_of(chosen, max_steps=STEPS, dtype="bfloat16", activation_checkpointing="on", **PRECISE),
    }
    found = together(2, tmp_path, sharded)
    run = alone(sharded["adapters"], tmp_path / "alone")
    weights = weights_of(run)
    assert any(".lora_A." in name for name in weights)
    adapters = found["adapters"]
    assert [line["loss"] for line in adapters["log"]] == pytest.approx([line["loss"] for line in run.log], abs=1e-4)
    assert max((adapters["weights"][name] - weights[name]).abs().max().item() for name in weights) < 1e-4
    losses, expected = plainly
    assert [line["loss"] for line in found["bfloat16"]["log"]] == pytest.approx(losses, abs=0.02, rel=0.05)
    assert [line["loss"] for line in found["both"]["log"]] == pytest.approx(
        [line["loss"] for line in run.log], abs=0.02, rel=0.05
    )
    # Weights are kept in float32: what they moved by is far below bfloat16's steps, and is about what it should be.
    before = load_model(CHECKPOINT, dtype="float32", device="cpu").state_dict()
    for name, moved in found["bfloat16"]["weights"].items():
        if "language_model.layers" in name and moved.ndim == 2:
            assert moved.dtype == torch.float32
            ours, theirs = (moved - before[name]).flatten(), (expected[name] - before[name]).flatten()
            assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9, name


def test_weights_stored_in_bfloat16_are_trained_in_float32(chosen: Path, tmp_path: Path) -> None:
    """A checkpoint and its exact copy in float32 come to the same, on one worker and on two."""
    for name in ("bfloat16", "float32"):
        shutil.copytree(CHECKPOINT, tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        rounded = {key: tensor.bfloat16().to(getattr(torch, name)) for key, tensor in load_file(weights).items()}
        save_file(rounded, weights, metadata={"format": "pt"})
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"dtype": name}))
    setups = {name: setup_of(chosen, max_steps=4, model=str(tmp_path / name)) for name in ("bfloat16", "float32")}
    expected = weights_of(alone(setups["float32"], tmp_path / "float32-alone"))
    found = weights_of(alone(setups["bfloat16"], tmp_path / "bfloat16-alone"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    two = together(2, tmp_path, {"two": setups["bfloat16"]})["two"]["weights"]
    assert max((tensor - expected[name]).abs().max() for name, tensor in two.items()) < 1e-5
