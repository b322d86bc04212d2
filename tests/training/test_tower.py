"""Other parts trained than LLaVA-1.5's recipe has it, against training written out plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.model.family import SAMPLES, Family, apart
from tests.selection.made import copy_outputs, selected
from tests.training.plain import plain_training
from tests.training.runs import alone, left_by, setup_of, together, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_model
from vig_ray.training import export
from vig_ray.training.batch import Batcher, TrainingSample
from vig_ray.training.export import ExportConfig, merged, write_adapter
from vig_ray.training.parts import Part
from vig_ray.training.training_model import Lora, TrainingModel

STEPS, BATCH = 6, 4
EVERY: tuple[Part, ...] = ("projector", "language", "tower")
RATES = {"projector": 2e-3, "language": 1e-3, "tower": 4e-4}
OPTIONS: dict[str, Any] = {"lr": 1e-3, "projector_lr": 2e-3, "tower_lr": 4e-4}


@pytest.fixture(scope="module")
def by_turns(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The selection in another order: an image and none by turns, so that of two workers one never sees an image."""
    out: Path = tmp_path_factory.mktemp("by-turns")
    copy_outputs(chosen, out, "samples", "selection")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((out / "samples").glob("*.parquet"))])
    seen = {row["sample_key"]: bool(row["images"]) for row in samples.select(["sample_key", "images"]).to_pylist()}
    rows = selected(out)
    with_image = [row for row in rows if seen[row["sample_key"]]]
    without = [row for row in rows if not seen[row["sample_key"]]]
    assert len(without) >= STEPS * BATCH // 2
    turns = [row for pair in zip(with_image, without, strict=False) for row in pair]
    rest = with_image[len(without) :]
    for path in (files := sorted((out / "selection").glob("*.parquet")))[1:]:
        path.unlink()
    ordered = [row | {"position": position} for position, row in enumerate([*turns, *rest])]
    pq.write_table(pa.Table.from_pylist(ordered, schema=pq.read_schema(files[0])), files[0])
    return out


def trained_plainly(data: Path, rates: dict[str, float]) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses, model = plain_training(
        CHECKPOINT, data / "samples", data / "selection", steps=STEPS, batch=BATCH, lr=0.0, rates=rates
    )
    return losses, model.state_dict()


@pytest.fixture(scope="module")
def plainly(by_turns: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return trained_plainly(by_turns, RATES)


def assert_same(log: list[dict[str, Any]], weights: dict[str, torch.Tensor], plainly: Any) -> None:
    losses, expected = plainly
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    assert weights.keys() == expected.keys()
    # A bias of all keys alike changes no attention: its gradient is rounding, of which AdamW makes whole steps.
    compared = [name for name in expected if not ("vision_tower" in name and name.endswith("k_proj.bias"))]
    worst = max((weights[name] - expected[name]).abs().max().item() for name in compared)
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < 1e-4


def moved(weights: dict[str, torch.Tensor]) -> set[str]:
    """Which of tower, projector and language model are other than the checkpoint's."""
    before = load_model(CHECKPOINT, dtype="float32", device="cpu").state_dict()
    different = [name for name in before if not torch.equal(before[name], weights[name])]
    return {
        "tower" if "vision_tower" in name else "projector" if "projector" in name else "language" for name in different
    }


@pytest.mark.parametrize("way", [{}, {"packing": False, "micro_batch": 1}, {"activation_checkpointing": "on"}], ids=str)
def test_a_tower_is_trained_at_its_own_rate(by_turns: Path, plainly: Any, tmp_path: Path, way: dict[str, Any]) -> None:
    run = alone(
        setup_of(by_turns, max_steps=STEPS, global_batch=BATCH, train="projector,language,tower", **OPTIONS, **way),
        tmp_path,
    )
    assert_same(run.log, weights_of(run), plainly)
    assert moved(weights_of(run)) == set(EVERY)


def test_a_worker_that_sees_no_image_trains_the_same_tower(by_turns: Path, plainly: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"max_steps": STEPS, "global_batch": BATCH, "train": EVERY, **OPTIONS}
    setups = {
        "at once": setup_of(by_turns, **given),
        "one by one": setup_of(by_turns, micro_batch=1, activation_checkpointing="on", **given),
        "once a step": setup_of(by_turns, micro_batch=1, gradient_sync="step", **given),
        "bfloat16": setup_of(by_turns, dtype="bfloat16", **given),
    }
    for name, left in together(2, tmp_path, setups).items():
        print(name)
        if name != "bfloat16":
            assert_same(left["log"], left["weights"], plainly)
        losses = [line["loss"] for line in left["log"]]
        assert losses == pytest.approx(plainly[0], abs=0.02, rel=0.05)
        tower = [
            tensor for key, tensor in left["weights"].items() if "vision_tower" in key and tensor.is_floating_point()
        ]
        assert {tensor.dtype for tensor in tower} == {torch.float32}


def test_one_part_alone(by_turns: Path, tmp_path: Path) -> None:
    """Also by two workers, one of which sees no image: with the language model frozen, it has nothing to train."""
    options = {"projector": "projector_lr", "language": "lr", "tower": "tower_lr"}
    setups = {
        part: setup_of(
            by_turns,
            **{"max_steps": STEPS, "global_batch": BATCH, "micro_batch": 2, "train": part, "lr": None}
            | {options[part]: RATES[part]},
        )
        for part in EVERY
    }
    both = together(2, tmp_path, setups)
    for part, setup in setups.items():
        expected = trained_plainly(by_turns, {part: RATES[part]})
        run = alone(setup, tmp_path / f"{part} alone")
        assert_same(run.log, weights_of(run), expected)
        assert moved(weights_of(run)) == {part}
        assert_same(both[part]["log"], both[part]["weights"], expected)


@pytest.mark.parametrize("part", ["projector", "tower"])
def test_gradients_go_through_a_frozen_language_model_that_is_recomputed(
    chosen: Path, demo_formatter: Any, part: Part
) -> None:
    source: Any = setup_of(chosen).source()
    samples = [sample for sample in source.__getitems__(list(range(8))) if sample.prompt.images][:2]
    gradients = []
    for recomputed in (False, True):
        model = load_model(CHECKPOINT, dtype="float32", device="cpu")
        training_model = TrainingModel(model, pack=True, checkpoint_activations=recomputed, train=(part,))
        runs: list[int] = []
        layer: Any = training_model.layers()[0]
        layer.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        batcher = Batcher(model, demo_formatter.collate, device="cpu", dtype=torch.float32, packed=True)
        weights = [np.ones(len(sample.prompt.answer_positions), dtype=np.float32) for sample in samples]
        prepared = [
            TrainingSample(number, sample.key, sample.prompt, weight)
            for number, (sample, weight) in enumerate(zip(samples, weights, strict=True))
        ]
        loss, _ = training_model(batcher(prepared, weights))
        loss.backward()
        assert len(runs) == 1 + recomputed
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert {training_model.parts[name] for name in plain} == {part}
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)
    assert max(gradient.abs().max() for gradient in again.values()) > 1e-3


def test_adapters_and_a_tower_come_out_merged_and_apart(chosen: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    given: dict[str, Any] = {"lora": True, "lora_rank": 4, "lora_alpha": 8.0, "train": EVERY, **OPTIONS, "lr": 1e-2}
    setup = setup_of(chosen, max_steps=STEPS, global_batch=BATCH, **given)
    run = alone(setup, tmp_path / "training" / "checkpoints")
    out = left_by(run, tmp_path)
    model = load_model(str(out / "model"), dtype="float32", device="cpu")
    assert moved(model.state_dict()) == set(EVERY)
    apart_model = PeftModel.from_pretrained(
        load_model(CHECKPOINT, dtype="float32", device="cpu"), str(out / "adapter")
    ).eval()
    ids = torch.randint(300, 400, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 5:21] = model.config.image_token_id
    pixels = torch.randn((2, 3, 56, 56), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (
            each(input_ids=ids, pixel_values=pixels).logits.log_softmax(-1) for each in (model, apart_model)
        )
    assert (ours - theirs).abs().max() < 1e-4
    # A checkpoint of the run has all that the end has.
    for format, name in (("hub", "model/model.safetensors"), ("adapter", "adapter/adapter_model.safetensors")):
        exported = tmp_path / "exported" / format
        export.run(ExportConfig(run=str(out), out=str(exported), format=format))
        found, expected = load_file(exported / Path(name).name), load_file(out / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.long
def test_adapters_where_one_of_two_workers_sees_no_image(by_turns: Path, tmp_path: Path) -> None:
    """Nothing that is trained lies before the first layer there."""
    given: dict[str, Any] = {"lora": True, "lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-3, "micro_batch": 1}
    setups = {
        name: setup_of(by_turns, max_steps=STEPS, global_batch=BATCH, **given, **more)
        for name, more in {
            "adapters": {},
            "and a tower": {"train": EVERY, "tower_lr": 4e-4},
            "recomputed": {"activation_checkpointing": "on"},
            "once a step": {"gradient_sync": "step"},
        }.items()
    }
    for name, left in together(2, tmp_path, setups).items():
        run = alone(setups[name], tmp_path / f"{name} alone")
        assert_same(left["log"], left["weights"], ([line["loss"] for line in run.log], weights_of(run)))


@pytest.mark.parametrize("name", ["qwen3_vl", "granite4_vision", "deepseek_vl_hybrid", "llava_next", "gemma4"])
def test_peft_loads_what_is_trained_beside_adapters(name: str, tmp_path: Path) -> None:
    """Whatever the family keeps its projector and tower in: lists of modules, several modules, single parameters."""
    from peft import PeftModel

    family, lora = Family(name, tmp_path / "checkpoint"), Lora(2, 4.0)
    inputs, prompt = family.inputs(SAMPLES["one image"]), family.prompt("one image", SAMPLES["one image"])
    before = family.logprobs(inputs, prompt)
    training_model = TrainingModel(
        load_model(family.folder, dtype="float32", device="cpu"), pack=False, lora=lora, train=EVERY
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in training_model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    state = {key: tensor.detach() for key, tensor in training_model.model.state_dict().items()}
    (tmp_path / "adapter").mkdir()
    write_adapter(state, family.folder, lora, EVERY, str(tmp_path / "adapter"))
    family.model = load_model(family.folder, dtype="float32", device="cpu")
    family.model.load_state_dict(merged(state, lora))
    expected = family.logprobs(inputs, prompt)
    assert apart(before, expected) > 0.1
    base = load_model(family.folder, dtype="float32", device="cpu")
    family.model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).get_base_model().eval()
    assert apart(family.logprobs(inputs, prompt), expected) < 1e-4
