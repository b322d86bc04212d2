"""Two workers of one model: one of them reads it, both train it, and their gradients meet as often as is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.training.runs import Beginning, alone, setup_of, together, weights_of
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.load import Prompts, load_model
from vig_ray.training.memory import whole_gradients
from vig_ray.training.parts import is_adapter
from vig_ray.training.run import Setup
from vig_ray.training.training_model import Lora, TrainingModel

STEPS = 3
LORA = {"lora": True, "lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-2}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 demo samples in samples/, neither scored nor selected: every answer token is trained on."""
    out = tmp_path_factory.mktemp("imported")
    importing.run(ImportConfig(data=world.write(str(out / "data"), 40, 7), out=str(out)))
    return out


def assert_close(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    worst = {name: float((one[name] - other[name]).abs().max()) for name in one}
    assert max(worst.values()) < 1e-4, max(worst, key=lambda name: worst[name])


def losses_of(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log]


def test_gradients_that_meet_once_a_step_are_the_same(imported: Path, tmp_path: Path) -> None:
    """In fewer exchanges: one a decoder layer and one for the rest of the model, however many microbatches."""
    options: dict[str, Any] = {"max_steps": STEPS, "micro_batch": 1, "selection": False}
    setups = {way: setup_of(imported, **options, gradient_sync=way) for way in ("microbatch", "step")}
    left = together(2, tmp_path, setups)
    run = alone(setups["step"], tmp_path / "alone")
    assert run.whole_gradients == 0  # which is said of a run of several workers only
    units = len(run.training_model.layers()) + 1
    assert left["step"]["reduce_scatters"] == STEPS * units
    assert left["microbatch"]["reduce_scatters"] == STEPS * units * 4  # 8 samples a step, one at a time on each of two
    for each in left.values():
        assert losses_of(each["log"]) == pytest.approx(losses_of(run.log), abs=1e-4)
        assert_close(each["weights"], weights_of(run))


def test_whole_gradients_without_room_are_refused() -> None:
    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    training_model = TrainingModel(model, pack=True)
    size = 4 * sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    # Beside them: a half of the gradients and of Adam's two moments.
    assert whole_gradients(training_model, 2, 2.5 * size) == size
    with pytest.raises(StageError, match=r"--gradient-sync step: [\d.]+ GB .* take --gradient-sync microbatch"):
        whole_gradients(training_model, 2, 2.5 * size - 1)
    adapters = TrainingModel(load_model(CHECKPOINT, dtype="float32", device="cpu"), pack=True, lora=Lora(2, 4.0))
    assert whole_gradients(adapters, 2, 2.5 * size - 1) < size / 4


def stored_in_bfloat16(folder: Path) -> str:
    """The demo checkpoint's weights, rounded."""
    shutil.copytree(CHECKPOINT, folder)
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return str(folder)


def with_a_head_of_its_own(checkpoint: str, folder: Path) -> str:
    """A checkpoint whose config says that the head is tied, and whose weights say that it isn't."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    embeddings = next(tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
    save_file(weights | {"lm_head.weight": embeddings * 0.5}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, gemma_checkpoint: str, qwen_checkpoint: str) -> dict[str, Any]:
    """Checkpoints and what they are trained with, each another difficulty for a model that is built without weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    bfloat16 = stored_in_bfloat16(folder / "bfloat16")
    return {
        "stored in bfloat16": (bfloat16, {}),
        "computed in bfloat16": (bfloat16, {"dtype": "bfloat16"}),
        "three kinds of positions": (qwen_checkpoint, {}),
        "tied": (gemma_checkpoint, {}),
        "tied adapters": (gemma_checkpoint, LORA),
        "untied": (with_a_head_of_its_own(gemma_checkpoint, folder / "untied"), {}),
    }


def without_weights(checkpoint: str, folder: Path, **text: Any) -> str:
    """A copy of a checkpoint that lacks its weights, its language model's config changed by `text`."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_config": config["text_config"] | text}))
    return str(folder)


@pytest.fixture(scope="module")
def read_by_one(imported: Path, models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each model: its setup, what the second of two workers left, and the same run by one worker, in float32, with
    its start.

    The second worker's folder holds no weights, so that it can't have read any.
    """
    folder = tmp_path_factory.mktemp("runs")
    setups: dict[str, tuple[Setup, Setup]] = {}
    runs = {}
    for name, (checkpoint, options) in models.items():
        bare = without_weights(checkpoint, folder / f"{name} without weights")
        setup = setup_of(imported, selection=False, model=checkpoint, max_steps=2, global_batch=4, **options)
        setups[name] = setup, replace(setup, prompts=Prompts(bare))
        began = Beginning()
        runs[name] = alone(replace(setup, dtype="float32"), folder / f"{name} alone", began), began
    demo = setup_of(imported, selection=False, max_steps=2)
    nothing = without_weights(CHECKPOINT, folder / "nothing")
    fewer = without_weights(CHECKPOINT, folder / "fewer layers", num_hidden_layers=1)
    refused = {
        "nothing to read": (replace(demo, prompts=Prompts(nothing)), demo),
        "another model": (demo, replace(demo, prompts=Prompts(fewer))),
    }
    left = together(2, folder, refused | setups, rank=1)
    return {name: (setups[name][0], left[name], *runs[name]) for name in setups} | {
        name: left[name] for name in refused
    }


NAMES = (
    "stored in bfloat16", "computed in bfloat16", "three kinds of positions", "tied", "tied adapters", "untied",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_who_read_nothing_has_every_tensor_to_the_bit(read_by_one: Any, name: str) -> None:
    setup, left, _, by_one = read_by_one[name]
    began = left["began"]
    plain: Any = AutoModelForImageTextToText.from_pretrained(setup.prompts.model, dtype="auto")
    expected = dict(plain.named_parameters(remove_duplicate=False))
    buffers = dict(plain.named_buffers(remove_duplicate=False))
    assert any("inv_freq" in buffer for buffer in buffers)
    adapters = {tensor for tensor in began["tensors"] if is_adapter(tensor)}
    base = {tensor.replace(".base_layer", ""): tensor for tensor in began["tensors"].keys() - adapters}
    assert base.keys() == expected.keys() | buffers.keys()
    assert began["trained"] == by_one.trained
    assert bool(adapters) == setup.config.lora
    for plain_name, ours in base.items():
        tensor = began["tensors"][ours]
        assert torch.equal(tensor.float(), (expected | buffers)[plain_name].float()), ours
        wanted = torch.float32 if ours in began["trained"] else getattr(torch, setup.dtype)
        assert tensor.dtype == (buffers[plain_name].dtype if plain_name in buffers else wanted), ours
    for adapter in adapters:
        assert torch.equal(began["tensors"][adapter], by_one.tensors[adapter]), adapter
    assert began["tied"] == (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight)
    assert began["tied"] == name.startswith("tied")


@pytest.mark.parametrize("name", NAMES)
def test_what_one_worker_read_two_train_as_one(read_by_one: Any, name: str) -> None:
    setup, left, run, _ = read_by_one[name]
    if setup.dtype == "bfloat16":
        assert losses_of(left["log"]) == pytest.approx(losses_of(run.log), abs=0.02, rel=0.05)
        return
    assert losses_of(left["log"]) == pytest.approx(losses_of(run.log), abs=1e-4)
    assert_close(left["weights"], weights_of(run))


def test_what_the_first_worker_cannot_give_is_told_by_all(read_by_one: Any) -> None:
    """What the second worker says, though its own folder lacks nothing that it needs."""
    assert "the weights can't be loaded" in read_by_one["nothing to read"]["refused"]
    assert "has other tensors after loading" in read_by_one["another model"]["refused"]


def test_a_run_goes_on_where_another_worker_read_the_model(
    imported: Path, tmp_path: Path, gemma_checkpoint: str
) -> None:
    """Frozen weights come from the first worker, adapters from the checkpoint that a single worker left."""
    setup = setup_of(
        imported, selection=False, model=gemma_checkpoint, max_steps=4, save_every=2, global_batch=4, **LORA
    )
    bare = without_weights(gemma_checkpoint, tmp_path / "without weights")
    run = alone(setup, tmp_path / "run")
    (last,) = (tmp_path / "run").glob("step-00000004-*")
    shutil.rmtree(last)
    left = together(2, tmp_path, {"run": (setup, replace(setup, prompts=Prompts(bare)))}, rank=1)["run"]
    assert [line["workers"] for line in left["log"]] == [1, 1, 2, 2]
    assert losses_of(left["log"]) == pytest.approx(losses_of(run.log), abs=1e-4)
    assert_close(left["weights"], weights_of(run))
