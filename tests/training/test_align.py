"""Alignment against a loop of torch's own AdamW over transformers' own loss, and what it computes and counts."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.command import call, refused
from tests.training.aligned import write_captions, write_model
from tests.training.runs import alone, left_by, setup_of, together, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter, load_model, template_fingerprint, without_weights
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.training.checkpoints import committed_checkpoints
from vig_ray.training.config import TrainConfig
from vig_ray.training.training_model import TrainingModel
from vig_ray.training.worker import prepare

STEPS, BATCH = 20, 6
# What is added to all keys alike changes no attention: its gradient is rounding, of which AdamW makes whole steps.
KEYS = ("k_proj.bias", "query_key_value.bias", "k_layernorm.bias")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 captions with their images, and 15 texts without."""
    return write_captions(tmp_path_factory.mktemp("captions"), texts=15)


@pytest.fixture(scope="module", params=[("llama", "clip"), ("qwen2", "siglip")], ids=" ".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("own"), *request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"))


def order(captions: Path, model: str) -> list[str]:
    """The keys of all steps' samples: the order isn't what is tested here."""
    setup = setup_of(captions, selection=False, model=model, stage="align", max_steps=STEPS, global_batch=BATCH)
    positions = [position for step in range(STEPS) for position in setup.sampler.positions(step).tolist()]
    return [sample.key for sample in setup.source(images=False).__getitems__(positions)]


def llava(processor: Any, said: str, picture: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Ids and labels of a caption, or of a text, and what else the model is given of its picture."""
    if picture is None:
        ids, arrays = processor.tokenizer(said, return_tensors="pt")["input_ids"][0], {}
    else:
        made = processor(images=[picture], text=f"<image>{said}\n", return_tensors="pt")
        ids, arrays = made["input_ids"][0], {"pixel_values": made["pixel_values"]}
    labels = ids.clone()
    labels[0] = -100
    labels[ids == processor.image_token_id] = -100
    return ids, labels, arrays


def fuyu(processor: Any, said: str, picture: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The same: the processor's own prompt of a picture without a text, then the caption."""
    if picture is None:
        before, arrays = torch.tensor([processor.tokenizer.bos_token_id]), {}
    else:
        made = processor(images=[picture], text="", return_tensors="pt")
        before, arrays = made["input_ids"][0], {"image_patches": made["image_patches"].reshape(-1, 2700)}
        said += "\n"
    after = processor.tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return torch.cat([before, after]), torch.cat([torch.full_like(before, -100), after]), arrays


def by_hand(
    model_folder: str, captions: Path, trained: Any, lr: float, encode: Any = llava
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """`STEPS` steps, each a padded batch whose loss transformers takes the mean of itself."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted((captions / "samples").glob("*.parquet"))])
    rows = rows.set_index("sample_key")
    processor = AutoProcessor.from_pretrained(model_folder)
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * STEPS), STEPS)
    keys, losses = order(captions, model_folder), []
    for step in range(STEPS):
        made = []
        for row in (rows.loc[key] for key in keys[step * BATCH : (step + 1) * BATCH]):
            picture = Image.open(row.images[0]["uri"]).convert("RGB") if len(row.images) else None
            made.append(encode(processor, row.conversation[-1]["text"], picture))
        ids, labels, arrays = zip(*made, strict=True)
        named = {name for each in arrays for name in each}
        pad = torch.nn.utils.rnn.pad_sequence
        out = model(
            input_ids=pad(ids, batch_first=True, padding_value=0),
            attention_mask=pad([torch.ones_like(each) for each in ids], batch_first=True),
            labels=pad(labels, batch_first=True, padding_value=-100),
            **{name: torch.cat([each[name] for each in arrays if each]) for name in named},
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    return losses, model.state_dict()


def of_projector(name: str) -> bool:
    return ".multi_modal_projector." in name


def align(captions: Path, model: str, **options: Any) -> Any:
    given = {"stage": "align", "max_steps": STEPS, "global_batch": BATCH, "lr": None, **options}
    return setup_of(captions, selection=False, model=model, **given)


def assert_same(
    log: list[dict[str, Any]], weights: dict[str, torch.Tensor], expected: Any, model: str, trained: Any, within: float
) -> None:
    losses, theirs = expected
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    before = load_model(model, dtype="float32", device="cpu").state_dict()
    worst = 0.0
    for name, tensor in weights.items():
        if not trained(name):
            assert torch.equal(tensor, before[name]), name
        elif not name.endswith(KEYS):
            assert not torch.equal(tensor, before[name]), name
            worst = max(worst, (tensor - theirs[name]).abs().max().item())
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < within


def test_twenty_steps_are_those_of_a_loop_written_by_hand(captions: Path, model: str, tmp_path: Path) -> None:
    expected = by_hand(model, captions, of_projector, 1e-3)
    for number, way in enumerate(({}, {"packing": False, "micro_batch": 2}, {"activation_checkpointing": "on"})):
        run = alone(align(captions, model, **way), tmp_path / str(number))
        assert_same(run.log, weights_of(run), expected, model, of_projector, 1e-5)
    assert [line["lr"] for line in run.log][:2] == [0.0, 1e-3]
    # What it left is a model that is asked questions, in transformers and in the scoring engine alike.
    folder = str(left_by(run, tmp_path / "run") / "model")
    aligned = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    formatter = load_formatter(folder)
    assert template_fingerprint(formatter) == template_fingerprint(load_formatter(model))
    source = setup_of(captions, selection=False, model=folder).source()
    engine = TorchEngine(load_model(folder, dtype="float32", device="cpu"), formatter.collate)
    sample = next(each for each in source.__getitems__(range(20)) if each.prompt.images)
    row = pd.concat([pd.read_parquet(path) for path in (captions / "samples").glob("*.parquet")])
    row = row.set_index("sample_key").loc[sample.key]
    picture = Image.open(row.images[0]["uri"]).convert("RGB")
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": "Give a brief description."}]
    said = [{"type": "text", "text": row.conversation[-1]["text"]}]
    given = processor.apply_chat_template(
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
        tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert given["input_ids"][0].tolist() == sample.prompt.token_ids.tolist()
    with torch.no_grad():
        logp = aligned(**given).logits[0].log_softmax(-1)
    places = sample.prompt.answer_positions.tolist()
    theirs = [logp[place - 1, given["input_ids"][0, place]].item() for place in places]
    assert engine.logprobs([sample.prompt])[0] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.long
def test_two_workers_that_stop_in_between_end_alike(captions: Path, llama: str, tmp_path: Path) -> None:
    expected = by_hand(llama, captions, of_projector, 1e-3)
    found = together(2, tmp_path, {"two": align(captions, llama, save_every=8)})["two"]
    assert_same(found["log"], found["weights"], expected, llama, of_projector, 1e-5)
    shutil.rmtree(tmp_path / "two" / committed_checkpoints(str(tmp_path / "two"))[-1].name)
    run = alone(align(captions, llama, save_every=8), tmp_path / "two")  # on one, from the checkpoint before
    assert_same(run.log, weights_of(run), expected, llama, of_projector, 1e-5)


def test_layers_of_the_tower_are_trained_with_the_rest_at_one_rate(captions: Path, llama: str, tmp_path: Path) -> None:
    """ShareGPT4V's first stage: projector, language model, and the tower from a layer on."""

    def trained(name: str) -> bool:
        return "vision_tower" not in name or ".layers.1." in name

    options = {"train": "projector,language,tower:1..2", "lr": 2e-4}
    run = alone(align(captions, llama, **options), tmp_path)
    assert_same(run.log, weights_of(run), by_hand(llama, captions, trained, 2e-4), llama, trained, 1e-5)
    with pytest.raises(StageError, match=r"^--train tower:2..4: the vision tower has 3 layers, 0..3 all of them$"):
        TrainingModel(without_weights(llama), pack=False, train=("projector", "tower:2..4"))


def test_a_fuyu_is_trained_on_captions_and_texts(captions: Path, tmp_path: Path) -> None:
    """PRIOR's second kind of model: no tower; the layer that its patches go through is its projector."""
    importlib.import_module("tests.model.families.fuyu").make(str(tmp_path / "fuyu"))
    model = str(tmp_path / "fuyu")
    every = by_hand(model, captions, lambda name: True, 2e-4, fuyu)
    run = alone(align(captions, model, train="projector,language", lr=2e-4), tmp_path / "out")
    assert_same(run.log, weights_of(run), every, model, lambda name: True, 1e-5)
    folder = left_by(run, tmp_path / "run") / "model"
    written = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in weights_of(run).items():
        assert torch.equal(written[name], tensor), name


def linears(model: Any, prompts_batch: Any) -> dict[str, int]:
    """FLOPs of the matrix products of a forward: in the language model's layers, the head, the tower, each layer of the
    projector; counted from what goes into each."""
    found = dict.fromkeys(("language", "head", "tower", "linear_1", "linear_2"), 0)

    def count(kind: str) -> Any:
        def hook(module: torch.nn.Linear, given: tuple[torch.Tensor], _: Any) -> None:
            found[kind] += 2 * given[0].numel() * module.out_features

        return hook

    hooks = []
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind = next((each for each in ("linear_1", "linear_2") if of_projector(name) and name.endswith(each)), None)
            kind = kind or ("head" if name == "lm_head" else "tower" if "vision_tower" in name else "language")
            hooks.append(module.register_forward_hook(count(kind)))
    model(prompts_batch)
    for hook in hooks:
        hook.remove()
    return found


def products(mode: FlopCounterMode) -> int:
    counts = mode.get_flop_counts()["Global"]
    return sum(flops for operation, flops in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("train", ["projector", "projector,language"])
def test_what_is_frozen_costs_no_gradient_of_weights(captions: Path, llama: str, train: str) -> None:
    """Backward, the matrix products of a frozen language model are as many as forward, not twice as many; the tower,
    and what goes into the projector, have none."""
    from vig_ray.training.distributed import DistributedContext

    setup = align(captions, llama, train=train, lr=1e-3)
    run = prepare(setup, DistributedContext(0, 1, torch.device("cpu")))
    samples = list(setup.source().__getitems__(range(12)))
    batch = run.batcher(samples, [np.ones(len(sample.weights_T), np.float32) for sample in samples])
    forward = linears(run.training_model, batch)
    assert forward["tower"] > 0
    with FlopCounterMode(display=False) as counted:
        loss, _ = run.training_model(batch)
    assert abs(products(counted) - sum(forward.values())) <= 1e-9 * sum(forward.values())
    with FlopCounterMode(display=False) as counted:
        loss.backward()
    times = 2 if "language" in train else 1
    expected = times * (forward["language"] + forward["head"]) + forward["linear_1"] + 2 * forward["linear_2"]
    assert products(counted) == expected


def test_the_stage_has_defaults_that_options_override() -> None:
    given = {"model": "m", "samples": "s", "out": "o"}
    tune, aligning = TrainConfig(**given), TrainConfig(**given, stage="align")  # type: ignore[arg-type]
    said = {"train": ("projector",), "global_batch": 256, "stage": "align"}
    assert {name for name in TrainConfig.model_fields if getattr(tune, name) != getattr(aligning, name)} == {*said}
    assert {name: getattr(aligning, name) for name in said} == said
    assert aligning.rates["projector"] == aligning.leading_rate == 1e-3
    recipe = (aligning.epochs, aligning.warmup, aligning.schedule, aligning.weight_decay, aligning.packing)
    assert recipe == (1, 0.03, "cosine", 0.0, True)
    assert (tune.usual_template, aligning.usual_template) == ("auto", "plain")
    other = TrainConfig(**given, stage="align", train="language,tower:12..24,projector", lr=2e-5, global_batch=8)  # type: ignore[arg-type]
    assert other.train == ("projector", "language", "tower:12..24")
    assert other.global_batch == 8
    assert other.rates == {"language": 2e-5, "projector": 2e-5, "tower": 2e-5}
    assert tune.rates == {"language": 2e-5, "projector": 2e-5, "tower": 2e-6}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ("--train", "projector,language"),
            "--stage align trains at 0.001, which is for a new projector alone; give --lr",
        ),
        (("--train", "projector,tower:1..2"), "--stage align trains at 0.001, which is for a new projector alone"),
        (
            ("--train", "projector,tower:2..2", "--lr", "1e-5"),
            "'tower:2..2': takes projector, language, tower, or of the",
        ),
        (("--train", "tower,tower:1..2", "--lr", "1e-5"), "names the tower twice"),
        (
            ("--train", "tower:1..9", "--lr", "1e-5"),
            "--train tower:1..9: the vision tower has 3 layers, 0..3 all of them",
        ),
        (("--lora",), "--lora puts adapters on the language model, which --train doesn't name"),
    ],
)
def test_what_does_not_fit_the_stage_is_one_line(
    captions: Path, llama: str, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    words = (
        "train",
        "--stage",
        "align",
        "--model",
        llama,
        "--samples",
        str(captions / "samples"),
        "--out",
        str(tmp_path / "out"),
    )
    assert told in refused(*words, "--dry-run", *more)


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LLaVA-1.5 7B's config, with the demo model's tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("7b")
    shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 32000}  # else LLaMA 7B's, transformers' defaults
    config["vision_config"] = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
LANGUAGE = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
TOWER_LAYER = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024


def test_llava_1_5_7b_trains_what_the_papers_train(captions: Path, llava_7b: str, tmp_path: Path) -> None:
    assert (PROJECTOR, LANGUAGE) == (20_979_712, 6_738_415_616)
    share_gpt4v = "projector,language,tower:12..24"
    for train, expected in (("projector", PROJECTOR), (share_gpt4v, PROJECTOR + LANGUAGE + 12 * TOWER_LAYER)):
        made = TrainingModel(without_weights(llava_7b), pack=True, train=tuple(train.split(",")))
        assert sum(each.numel() for each in made.parameters() if each.requires_grad) == expected
    assert expected == 6_910_550_016
    words = ("train", "--model", llava_7b, "--samples", str(captions / "samples"), "--out", str(tmp_path), "--dry-run")
    lines = call(*words, "--stage", "align").stdout.splitlines()
    assert "multi_modal_projector 20.98 M projector trained at 0.001" in [" ".join(line.split()) for line in lines]
    at = lines.index("20.98 M of 7.06 B parameters are trained")
    assert lines[at + 1] == "75 samples; steps of up to 256 samples: 1"
    lines = call(*words, "--stage", "align", "--train", share_gpt4v, "--lr", "2e-5").stdout.splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert "0..12 151.15 M tower frozen" in shown
    assert "12..24 151.15 M tower trained at 2e-5" in shown
    assert "post_layernorm 2.05 K tower frozen" in shown
    assert "language_model 6.61 B language trained at 2e-5" in shown
    assert "6.91 B of 7.06 B parameters are trained" in lines
