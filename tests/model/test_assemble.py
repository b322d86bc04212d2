"""`vig assemble` tensor by tensor, and its forward against one put together by hand from the parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPModel, LlamaConfig, LlamaForCausalLM

from tests import tiny_models
from tests.model.llava_parts import DEEP, config_of, write_clip, write_projector
from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.assemble import run
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import PromptImage


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Vicuna, a whole CLIP (its text half is not wanted) and a projector in LLaVA's layout."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = tiny_models.sentencepiece_like("legacy")
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=DEEP, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    language.save_pretrained(folder / "vicuna")
    tokenizer.save_pretrained(folder / "vicuna")
    write_clip(folder / "clip")
    write_projector(folder / "mm_projector.bin")
    return folder


@pytest.fixture(scope="module")
def assembled(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assembled") / "model"
    run(config_of(parts, out))
    return out


def test_every_tensor_is_where_it_belongs(parts: Path, assembled: Path) -> None:
    found = AutoModelForImageTextToText.from_pretrained(assembled).state_dict()
    language = LlamaForCausalLM.from_pretrained(parts / "vicuna").state_dict()
    clip = CLIPModel.from_pretrained(parts / "clip").state_dict()
    projector = torch.load(parts / "mm_projector.bin", weights_only=True)
    expected = {}
    for name, tensor in language.items():
        place = name if name.startswith("lm_head") else "model.language_model." + name.removeprefix("model.")
        expected[place] = tensor
    for name, tensor in clip.items():
        if name.startswith("vision_model."):
            expected["model.vision_tower." + name.removeprefix("vision_model.")] = tensor
    for name, tensor in projector.items():
        layer = {"0": "linear_1", "2": "linear_2"}[name.split(".")[2]]
        expected[f"model.multi_modal_projector.{layer}.{name.split('.')[3]}"] = tensor
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_forward_is_the_parts_in_a_row(parts: Path, assembled: Path) -> None:
    formatter = load_formatter(str(assembled))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    image = PromptImage("p", lambda: pixels, formatter.preprocess)
    prompt = formatter.prompt([Turn("user", "<image>\nRed?"), Turn("assistant", "The left.")], [image])
    inputs = formatter.collate([image.inputs], "cpu", torch.float32)
    ids = torch.from_numpy(prompt.token_ids).long()[None]
    with torch.no_grad():
        logits = AutoModelForImageTextToText.from_pretrained(assembled)(input_ids=ids, **inputs).logits
        tower = CLIPModel.from_pretrained(parts / "clip").vision_model
        features = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        weights = torch.load(parts / "mm_projector.bin", weights_only=True)
        first = torch.nn.functional.linear(
            features, weights["model.mm_projector.0.weight"], weights["model.mm_projector.0.bias"]
        )
        projected = torch.nn.functional.linear(
            torch.nn.functional.gelu(first),
            weights["model.mm_projector.2.weight"],
            weights["model.mm_projector.2.bias"],
        )
        language = LlamaForCausalLM.from_pretrained(parts / "vicuna")
        is_image = torch.from_numpy(prompt.image_mask)
        embeds = language.model.embed_tokens(ids.masked_fill(is_image, 0))
        embeds[0, is_image] = projected[0]
        expected = language(inputs_embeds=embeds).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_weights_are_in_the_hubs_layout(assembled: Path) -> None:
    from safetensors import safe_open

    with safe_open(assembled / "model.safetensors", "pt") as file:
        prefixes = {".".join(name.split(".")[:2]) for name in file.keys()}  # noqa: SIM118
    assert prefixes == {
        "language_model.model", "language_model.lm_head", "vision_tower.vision_model",
        "multi_modal_projector.linear_1", "multi_modal_projector.linear_2",
    }  # fmt: skip


def test_its_processor_pads_and_its_template_is_vicunas(assembled: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(assembled)
    assert processor.image_processor.do_pad
    text = processor.apply_chat_template([{"role": "user", "content": "q"}], add_generation_prompt=True)
    assert text.endswith("USER: q ASSISTANT:")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"projector": "nowhere.bin"}, "--projector nowhere.bin: no such file"),
        ({"language_model": "/nowhere"}, "/nowhere: no such folder; --language-model takes"),
        ({"vision_tower": "/nowhere"}, "/nowhere: no such folder; --vision-tower takes"),
    ],
)
def test_missing_parts_are_named(parts: Path, tmp_path: Path, changes: dict[str, str], told: str) -> None:
    with pytest.raises(StageError, match=told):
        run(config_of(parts, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_wrong_projectors_are_refused(parts: Path, tmp_path: Path) -> None:
    torch.save({"model.mm_projector.weight": torch.zeros(2, 2)}, tmp_path / "linear.bin")
    with pytest.raises(StageError, match=r"needs weight and bias of mm_projector.0 and .2.*mm_projector.weight"):
        run(config_of(parts, tmp_path / "out", projector=str(tmp_path / "linear.bin")))
    other = {f"model.mm_projector.{n}": torch.zeros(8, 8) for n in ("0.weight", "2.weight")}
    other |= {f"model.mm_projector.{n}": torch.zeros(8) for n in ("0.bias", "2.bias")}
    torch.save(other, tmp_path / "other.bin")
    with pytest.raises(
        StageError, match="from 8 to 8 dimensions, but the vision tower has 32 and the language model 48"
    ):
        run(config_of(parts, tmp_path / "out", projector=str(tmp_path / "other.bin")))
    (tmp_path / "text.bin").write_text("not weights")
    with pytest.raises(StageError, match="can't be read as weights"):
        run(config_of(parts, tmp_path / "out", projector=str(tmp_path / "text.bin")))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    with pytest.raises(StageError, match=r"there/config\.json was not written by `vig assemble`"):
        run(config_of(parts, tmp_path / "there"))
