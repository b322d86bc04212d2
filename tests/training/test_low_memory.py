"""What spares a GPU's memory changes nothing else: 8-bit moments, optimizer state elsewhere, weights in nf4."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes.functional as functional
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.training.runs import Beginning, alone, left_by, moments_of, setup_of, together, weights_of
from tests.training.test_checkpoints import ALONE, stopped, worst_difference
from tests.training.test_export import logits_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.training import export
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.export import ExportConfig
from vig_ray.training.optimizer import check_packages
from vig_ray.training.run import Run
from vig_ray.training.worker import train

STEPS = 6
LORA: dict[str, Any] = {"lora": True, "lora_rank": 64, "lora_alpha": 64.0, "lr": 1e-3}
QLORA = LORA | {"quantise": "nf4"}
EIGHT = {"optimizer": "adamw8bit"}


def losses_of(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log]


@pytest.fixture(scope="module")
def eight_bits(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("eight")
    return alone(setup_of(chosen, max_steps=STEPS, save_every=2, **EIGHT), folder), folder


@pytest.fixture(scope="module")
def quantised(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Beginning, Path]:
    out = tmp_path_factory.mktemp("quantised")
    manager = CheckpointManager(str(out / "training" / "checkpoints"), keep=2, distributed=ALONE)
    began = Beginning()
    run = train(setup_of(chosen, max_steps=STEPS, **QLORA), ALONE, manager, began)
    return run, began, left_by(run, out)


def test_moments_in_8_bits_lead_where_those_in_float32_do(
    chosen: Path, tmp_path: Path, eight_bits: tuple[Run, Path]
) -> None:
    run, _ = eight_bits
    expected = alone(setup_of(chosen, max_steps=STEPS), tmp_path)
    assert losses_of(run.log)[-1] < losses_of(run.log)[0]
    assert losses_of(run.log) == pytest.approx(losses_of(expected.log), rel=0.02)
    matrices = [name for name in moments_of(run) if name.endswith("exp_avg codes")]
    assert any("mlp" in name for name in matrices)
    assert not any("bias" in name or "norm" in name for name in matrices)


def test_a_stopped_run_goes_on_with_its_8_bit_moments(
    chosen: Path, tmp_path: Path, eight_bits: tuple[Run, Path]
) -> None:
    expected, _ = eight_bits
    setup = setup_of(chosen, max_steps=STEPS, save_every=2, **EIGHT)
    stopped(setup, str(tmp_path), 5)
    run = alone(setup, tmp_path)
    assert worst_difference(weights_of(run), weights_of(expected)) == 0.0
    assert worst_difference(moments_of(run), moments_of(expected)) == 0.0


@pytest.mark.long
def test_any_number_of_workers_has_the_same_8_bit_moments(
    chosen: Path, tmp_path: Path, eight_bits: tuple[Run, Path]
) -> None:
    """Three read what one wrote, to the last bit; one reads what three wrote."""
    expected, folder = eight_bits
    shutil.copytree(folder, tmp_path / "read")
    setup = setup_of(chosen, max_steps=STEPS, save_every=2, **EIGHT)
    left = together(3, tmp_path, {"read": setup, "whole": setup})
    read, trained = left["read"], left["whole"]
    assert [line["workers"] for line in read["log"]] == [1] * STEPS
    assert worst_difference(read["moments"], moments_of(expected)) == 0.0
    assert losses_of(trained["log"]) == pytest.approx(losses_of(expected.log), abs=1e-3)
    assert trained["moments"].keys() == moments_of(expected).keys()
    back = alone(setup, tmp_path / "whole")
    assert [line["workers"] for line in back.log] == [3] * STEPS
    assert worst_difference(moments_of(back), trained["moments"]) == 0.0
    assert worst_difference(weights_of(back), trained["weights"]) == 0.0


def test_a_state_elsewhere_is_the_same_state(chosen: Path, tmp_path: Path) -> None:
    """To the last bit, with gradients that meet once a step too, with adapters on nf4, and read from either's files."""
    options = {"max_steps": 3, "micro_batch": 2, "gradient_sync": "step"}
    ways: dict[str, Any] = {"all": {}, "nf4": QLORA}
    setups = {
        f"{name}, {place}": setup_of(chosen, **options, **way, offload_optimizer=place == "there")
        for name, way in ways.items()
        for place in ("here", "there")
    }
    left = together(2, tmp_path, setups)
    for name in ways:
        here, there = left[f"{name}, here"], left[f"{name}, there"]
        assert losses_of(here["log"]) == losses_of(there["log"])
        assert worst_difference(here["weights"], there["weights"]) == 0.0
        assert worst_difference(here["moments"], there["moments"]) == 0.0
    back = alone(setups["all, here"], tmp_path / "all, there")
    assert [line["workers"] for line in back.log] == [2] * 3
    assert worst_difference(moments_of(back), left["all, there"]["moments"]) == 0.0


def of_what_nf4_leaves(folder: Path, names: set[str]) -> str:
    """The demo checkpoint with these weights through nf4 and back."""
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    for name in names:
        packed, state = functional.quantize_4bit(weights[name], compress_statistics=True, quant_type="nf4")
        weights[name] = functional.dequantize_4bit(packed, state)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_adapters_on_nf4_are_adapters_on_what_nf4_leaves_of_the_weights(
    chosen: Path, tmp_path: Path, quantised: tuple[Run, Beginning, Path]
) -> None:
    """LoRA on a checkpoint whose weights have been there and back: the same losses, adapters and projector."""
    run, began, _ = quantised
    linear = {
        name
        for name in load_file(Path(CHECKPOINT) / "model.safetensors")
        if name.startswith("language_model.model.layers") and "norm" not in name
    }
    assert linear
    left = of_what_nf4_leaves(tmp_path / "left", linear)
    expected = alone(setup_of(chosen, max_steps=STEPS, model=left, **LORA), tmp_path / "run")
    assert losses_of(run.log) == pytest.approx(losses_of(expected.log), abs=1e-4)
    theirs = weights_of(expected)
    trained = {name for name, parameter in run.training_model.model.named_parameters() if parameter.requires_grad}
    assert trained == began.trained
    assert all(".lora_" in name or "multi_modal_projector" in name for name in trained)
    ours = weights_of(run)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in trained) < 1e-4
    assert (logits_of(run.training_model.model) - logits_of(expected.training_model.model)).abs().max() < 1e-3
    # Nothing else has moved, the packed weights included.
    assert all(torch.equal(ours[name], began.tensors[name]) for name in ours if name not in trained)
    packed = [name for name, tensor in ours.items() if tensor.dtype == torch.uint8]
    assert len(packed) == len(linear)


def test_a_stopped_run_goes_on_with_its_adapters_on_nf4(
    chosen: Path, tmp_path: Path, quantised: tuple[Run, Beginning, Path]
) -> None:
    setup = setup_of(chosen, max_steps=STEPS, save_every=2, **QLORA)
    stopped(setup, str(tmp_path), 3)
    (checkpoint,) = tmp_path.glob("step-*")
    assert b"base_layer" not in (checkpoint / ".metadata").read_bytes()  # neither weights nor scales
    run = alone(setup, tmp_path)
    assert worst_difference(weights_of(run), weights_of(quantised[0])) == 0.0


@pytest.mark.long
def test_nf4_on_two_workers_and_in_bfloat16(
    chosen: Path, tmp_path: Path, quantised: tuple[Run, Beginning, Path]
) -> None:
    run, *_ = quantised
    setups = {
        "float32": setup_of(chosen, max_steps=STEPS, micro_batch=2, **QLORA),
        "bfloat16": setup_of(chosen, max_steps=STEPS, dtype="bfloat16", activation_checkpointing="on", **QLORA),
        "8 bits": setup_of(chosen, max_steps=STEPS, **QLORA, **EIGHT),
    }
    left = together(2, tmp_path, setups)
    trained = {name for name, parameter in run.training_model.model.named_parameters() if parameter.requires_grad}
    ours, theirs = weights_of(run), left["float32"]["weights"]
    assert losses_of(left["float32"]["log"]) == pytest.approx(losses_of(run.log), abs=1e-4)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in trained) < 1e-4
    assert losses_of(left["bfloat16"]["log"]) == pytest.approx(losses_of(run.log), abs=0.02, rel=0.05)
    assert losses_of(left["8 bits"]["log"]) == pytest.approx(losses_of(run.log), rel=0.02)


def test_what_is_exported_lies_on_the_weights_as_they_were(
    tmp_path: Path, quantised: tuple[Run, Beginning, Path]
) -> None:
    from peft import PeftModel

    run, _, out = quantised
    base = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = AutoModelForImageTextToText.from_pretrained(out / "model")
    trained = weights_of(run)
    name = "model.language_model.layers.1.mlp.down_proj"
    moved = trained[f"{name}.lora_B.default.weight"] @ trained[f"{name}.lora_A.default.weight"]  # alpha is the rank
    assert torch.allclose(merged.state_dict()[f"{name}.weight"], before[f"{name}.weight"] + moved, atol=1e-6)
    apart = PeftModel.from_pretrained(base, str(out / "adapter"))
    assert (logits_of(merged) - logits_of(apart)).abs().max() < 1e-4
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == CHECKPOINT
    export.run(ExportConfig(run=str(out), out=str(tmp_path / "again")))
    expected, found = (load_file(folder / "model.safetensors") for folder in (out / "model", tmp_path / "again"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


GIVEN: dict[str, Any] = {"model": "m", "samples": "s", "out": "o"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantise": "nf4"}, "--quantise freezes the language model's weights; it needs --lora"),
        ({"offload_optimizer": True, "optimizer": "adamw8bit"}, "--offload-optimizer and --optimizer adamw8bit"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(**GIVEN, **options)


@pytest.mark.parametrize(
    ("options", "package"), [({"lora": True, "quantise": "nf4"}, "bitsandbytes"), (EIGHT, "torchao")]
)
def test_a_package_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], package: str
) -> None:
    check_packages(TrainConfig(**GIVEN, **options))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(TrainConfig(**GIVEN))
    with pytest.raises(StageError, match=rf"{package} isn't installed; pip install 'vig-ray\[quantised\]'"):
        check_packages(TrainConfig(**GIVEN, **options))
