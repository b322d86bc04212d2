"""What is tower, projector and language model in every family, and what that decides."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Gemma4Config, LlavaConfig

from tests.model.families.base import SIGLIP, TEXT
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import load_model, without_weights
from vig_ray.training.parts import Part, modules_beside, parts_of, trained_names, tree, whole_modules
from vig_ray.training.training_model import Lora, TrainingModel

Expected = dict[Part, set[str]]


def of(tower: str, projector: str, language: str = "language_model lm_head", unused: str = "") -> Expected:
    """Modules and parameters below `model.`, but for the head."""
    given: dict[Part, str] = {"tower": tower, "projector": projector, "language": language, "unused": unused}
    return {
        part: {path if path == "lm_head" else f"model.{path}" for path in paths.split()}
        for part, paths in given.items()
    }


LLAVA = of("vision_tower", "multi_modal_projector")
IDEFICS = of("vision_model", "connector", "text_model lm_head")
QWEN2 = of("visual.patch_embed visual.blocks", "visual.merger")
QWEN3 = of("visual.patch_embed visual.pos_embed visual.blocks", "visual.merger")
DEEPSTACK = of("visual.patch_embed visual.pos_embed visual.blocks", "visual.merger visual.deepstack_merger_list")
GLM = of(
    "visual.embeddings visual.patch_embed visual.blocks visual.post_conv_layernorm visual.downsample "
    "visual.post_layernorm",
    "visual.merger",
)
FAMILIES = {
    "aria": LLAVA,
    "aya_vision": LLAVA,
    "cohere2_vision": LLAVA,
    "deepseek_vl": of("vision_model", "aligner"),
    "deepseek_vl_hybrid": of(
        "vision_model high_res_vision_model high_res_vision_neck high_res_vision_proj high_res_vision_alpha", "aligner"
    ),
    "ernie4_5_vl_moe": of("vision_tower", "resampler_model"),
    "exaone4_5": QWEN2,
    "fuyu": of("", "vision_embed_tokens"),
    "gemma3": LLAVA,
    "gemma3n": of("vision_tower", "embed_vision", unused="audio_tower embed_audio"),
    "gemma4": of("vision_tower", "embed_vision"),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "granite4_vision": of("vision_tower", "layerwise_projectors spatial_projectors image_newline"),
    "idefics2": IDEFICS,
    "idefics3": IDEFICS,
    "internvl": LLAVA,
    "janus": of("vision_model", "aligner", unused="vqmodel generation_embeddings generation_aligner generation_head"),
    "kimi_k25": of("vision_tower", "mm_projector"),
    "lfm2_vl": LLAVA,
    "lighton_ocr": of("vision_encoder", "vision_projection"),
    "llava_next": of("vision_tower", "multi_modal_projector image_newline"),
    "llava_onevision": of("vision_tower", "multi_modal_projector image_newline"),
    "llava_clip_qwen": LLAVA,
    "llava_siglip": LLAVA,
    "minicpmv4_6": of("vision_tower", "merger"),
    "mistral3": LLAVA,
    "mllama": of("vision_model", "multi_modal_projector"),
    "ovis2": of("vision_tower", "visual_embeddings_table"),
    "paddleocr_vl": of("visual", "projector"),
    "paligemma": LLAVA,
    "perception_lm": LLAVA,
    "pixtral": LLAVA,
    "qwen2_5_vl": QWEN2,
    "qwen2_vl": QWEN2,
    "qwen3_5": QWEN3,
    "qwen3_5_moe": QWEN3,
    "qwen3_vl": DEEPSTACK,
    "qwen3_vl_moe": DEEPSTACK,
    "smolvlm": IDEFICS,
    "video_llama_3": of("vision_model", "projector"),
    "vipllava": LLAVA,
}
NEEDS_TIMM = ("gemma3n", "perception_lm")


def family(name: str, folder: Path) -> Any:
    """The family's model without weights."""
    if name in NEEDS_TIMM:
        pytest.importorskip("timm")
    importlib.import_module(f"tests.model.families.{name}").make(str(folder))
    return without_weights(str(folder))


def assert_parts(model: Any, expected: Expected) -> None:
    parts = parts_of(model)
    every = dict(model.named_parameters(remove_duplicate=False))
    assert parts.keys() == every.keys()
    for name, part in parts.items():
        said = {each for each, paths in expected.items() if any(f"{name}.".startswith(f"{path}.") for path in paths)}
        assert said == {part}, name
    for part, paths in expected.items():
        for path in paths:
            assert path == "lm_head" or any(f"{name}.".startswith(f"{path}.") for name in parts), (part, path)
    # A tied tensor is of one part by all its names, and whole modules are of nothing else.
    for name, parameter in every.items():
        assert {parts[other] for other in every if every[other] is parameter} == {parts[name]}
    for part in expected:
        for path in whole_modules(model, parts, part):
            inside = {parts[name] for name in parts if name.startswith(f"{path}.")}
            assert inside == {part}, path


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_a_family_is_of_the_part_that_it_should_be(name: str, tmp_path: Path) -> None:
    assert_parts(family(name, tmp_path), FAMILIES[name])


def test_parts_of_llava_1_5() -> None:
    assert_parts(without_weights(CHECKPOINT), LLAVA)


def test_what_hears_is_no_part_of_reading_images() -> None:
    config = Gemma4Config(
        text_config={**TEXT, "vocab_size": 300, "head_dim": 16, "hidden_size_per_layer_input": 8},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
        audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32},
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert_parts(model, of("vision_tower", "embed_vision", unused="audio_tower embed_audio"))


def test_what_does_not_say_how_it_reads_images_is_refused(tmp_path: Path) -> None:
    model = family("fuyu", tmp_path / "fuyu")
    model.model.reads_patches = model.model.vision_embed_tokens
    del model.model.vision_embed_tokens
    with pytest.raises(
        StageError, match=r"^FuyuForCausalLM: doesn't say which of its modules reads images; it can be "
    ):
        parts_of(model)
    model = without_weights(CHECKPOINT)
    model.model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(
        StageError, match=r"^LlavaForConditionalGeneration: no parameter is of its projector; it can be"
    ):
        parts_of(model)
    with pytest.raises(StageError, match=r"has no part that gives states without logits; it can't be trained$"):
        TrainingModel(family("llama4", tmp_path / "llama4"), pack=False)


def test_what_is_trained_of_the_parts(tmp_path: Path) -> None:
    model = family("llava_next", tmp_path)
    parts = parts_of(model)
    assert trained_names(model, parts, ("projector",), lora=False) == {
        name for name in parts if "projector" in name or "newline" in name
    }
    adapted = TrainingModel(copy.deepcopy(model), pack=False, lora=Lora(2, 4.0), train=("language", "tower"))
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or "vision_tower" in name for name in trained)
    # A row's end is no module, which adapters can't hold.
    adapted = TrainingModel(model, pack=False, lora=Lora(2, 4.0))
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {name for name in parts if "projector" in name}


LAYERS = {
    "llava_siglip": "vision_tower.encoder.layers",
    "qwen2_vl": "visual.blocks",
    "idefics3": "vision_model.encoder.layers",
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_range_of_the_towers_layers(name: str, tmp_path: Path) -> None:
    model = family(name, tmp_path)
    parts = parts_of(model)
    inside = {path for path in parts if path.startswith(f"model.{LAYERS[name]}.1.")}
    assert inside
    for lora in (False, True):
        assert trained_names(model, parts, ("tower:1..2",), lora=lora) == inside
    assert modules_beside(model, parts, ("tower:1..2",)) == [f"model.{LAYERS[name]}.1"]
    with pytest.raises(StageError, match=r"^--train tower:1..3: the vision tower has 2 layers, 0..2 all of them$"):
        trained_names(model, parts, ("tower:1..3",), lora=False)


def test_a_part_that_a_model_has_not_got_is_refused(tmp_path: Path) -> None:
    model = family("fuyu", tmp_path)
    for train in ("tower", "tower:0..1"):
        with pytest.raises(StageError, match=r"^--train tower: a FuyuForCausalLM has no tower$"):
            TrainingModel(model, pack=False, train=("projector", train))


def test_layers_that_are_trained_alike_are_one_line(tmp_path: Path) -> None:
    config = LlavaConfig(vision_config={**SIGLIP, "model_type": "siglip_vision_model", "num_hidden_layers": 6})
    config.text_config = AutoConfig.for_model("llama", **{**TEXT, "vocab_size": 300})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shown = [" ".join(line.split()) for line in printed(model, train=("projector", "tower:2..5"))]
    layers = [line.partition(" ")[0] + line.partition("tower")[2] for line in shown if ".." in line or line[0] == "5"]
    assert layers == ["0..2 frozen", "2..5 trained at 1.5e-6", "5 frozen"]


def printed(model: Any, **options: Any) -> list[str]:
    training_model = TrainingModel(model, pack=False, **options)
    trained = {name for name, parameter in training_model.model.named_parameters() if parameter.requires_grad}
    rates = {"language": 2e-5, "projector": 1e-3, "tower": 1.5e-6}
    return tree(training_model.model, training_model.parts, trained, rates).splitlines()


def test_the_tree_that_is_printed(tmp_path: Path) -> None:
    model = family("qwen3_vl", tmp_path / "qwen")
    assert printed(copy.deepcopy(model), train=("projector", "tower")) == [
        "Qwen3VLForConditionalGeneration  251.46 K",
        "  model                          227.20 K",
        "    visual                       141.12 K",
        "      patch_embed                 49.18 K  tower      trained at 1.5e-6",
        "      pos_embed                    2.05 K  tower      trained at 1.5e-6",
        "      blocks                      15.01 K  tower      trained at 1.5e-6",
        "      merger                      24.83 K  projector  trained at 0.001",
        "      deepstack_merger_list       50.05 K  projector  trained at 0.001",
        "    language_model                86.08 K  language   frozen",
        "  lm_head                         24.26 K  language   frozen",
        "141.12 K of 251.46 K parameters are trained",
    ]
    lines = printed(family("llava_next", tmp_path / "next"), lora=Lora(4, 8.0))
    assert lines == [
        "LlavaNextForConditionalGeneration  158.30 K",
        "  model                            134.18 K",
        "    image_newline                        64  projector  frozen: PEFT can't keep it",
        "    vision_tower                    34.53 K  tower      frozen",
        "    multi_modal_projector            6.27 K  projector  trained at 0.001",
        "    language_model                  93.31 K  language   adapters of 7.42 K trained at 2e-5",
        "  lm_head                           24.13 K  language   frozen",
        "13.70 K of 158.30 K parameters are trained",
    ]
    assert (
        printed(family("janus", tmp_path / "janus"))[4] == "    vqmodel                    380.30 K  unused     frozen"
    )


def dropping(name: str, folder: Path) -> Any:
    """The family's model, whose config drops half of everything that it can drop."""
    importlib.import_module(f"tests.model.families.{name}").make(str(folder))
    config = json.loads((folder / "config.json").read_text())

    def half(settings: dict[str, Any]) -> None:
        for key, value in settings.items():
            if isinstance(value, dict):
                half(value)
            elif "drop" in key and isinstance(value, int | float):
                settings[key] = 0.5

    half(config)
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["llava_siglip", "granite4_vision", "internvl"])
def test_nothing_is_dropped_out(name: str, tmp_path: Path) -> None:
    model = dropping(name, tmp_path)
    text = model.config.get_text_config()
    ids = torch.randint(20, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    assert text.attention_dropout == 0.5
    outputs = lambda of: [of(input_ids=ids).logits.detach() for _ in range(2)]  # noqa: E731
    one, other = outputs(model.train())
    assert not torch.equal(one, other)
    training_model = TrainingModel(model, pack=False, train=("projector", "language", "tower"))
    assert all(module.training for module in training_model.modules())
    one, other = outputs(model)
    assert torch.equal(one, other)
    for path, module in model.named_modules():
        drops = [key for key, value in vars(module).items() if "drop" in key and isinstance(value, float) and value]
        assert not drops, path
        assert not isinstance(module, torch.nn.Dropout) or module.p == 0, path


class Counting(torch.nn.Module):
    """A module with statistics and dropout of its own behind another."""

    def __init__(self, module: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.module, self.statistics = module, torch.nn.BatchNorm1d(width)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, *given: Any, **named: Any) -> Any:
        output = self.module(*given, **named)
        return self.dropout(self.statistics(output.flatten(0, -2)).view_as(output))


@pytest.mark.parametrize("train", [("language",), ("projector", "language"), ("projector", "language", "tower")])
def test_statistics_move_of_what_is_trained_alone(train: tuple[Part, ...], tmp_path: Path) -> None:
    importlib.import_module("tests.model.families.llava_siglip").make(str(tmp_path))
    model = load_model(str(tmp_path), dtype="float32", device="cpu")
    vision = model.config.vision_config
    encoder = model.model.vision_tower
    encoder.embeddings = Counting(encoder.embeddings, vision.hidden_size)
    model.model.multi_modal_projector = Counting(
        model.model.multi_modal_projector, model.config.text_config.hidden_size
    )
    training_model = TrainingModel(model, pack=False, train=train)
    ids = torch.full((1, 30), 50)
    features = (vision.image_size // vision.patch_size) ** 2
    ids[:, 5 : 5 + features] = model.config.image_token_id
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
    moved = lambda of: bool((of.statistics.running_mean != 0).any())  # noqa: E731
    one, other = (model(input_ids=ids, pixel_values=pixels).logits for _ in range(2))
    assert torch.equal(one, other)
    assert moved(encoder.embeddings) == ("tower" in train)
    assert moved(model.model.multi_modal_projector) == ("projector" in train)
    training_model.eval()
    training_model.train()
    assert encoder.embeddings.statistics.training == ("tower" in train)
