"""`vig assemble` with parts of one's own: any language model that speaks, a CLIP or a SigLIP, a new projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    SiglipModel,
)

from tests.model.llava_parts import write_clip, write_parts
from tests.model.own_parts import TOWERS, write_own
from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.assemble import AssembleConfig, run
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import PromptImage
from vig_ray.scoring.engines.check import make_sure
from vig_ray.scoring.engines.torch import TorchEngine

OWN = {"qwen2 and siglip": ("qwen2", "siglip", None), "llama and clip": ("llama", "clip", "<s>")}


def assemble(language: Path, tower: Path, out: Path, **options: Any) -> Path:
    given = {"projector": "random", "dtype": "float32", **options}
    run(AssembleConfig(language_model=str(language), vision_tower=str(tower), out=str(out), **given))
    return out


@pytest.fixture(scope="module", params=OWN)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with language/, tower/ and what they were put together to, model/."""
    kind, tower, bos = OWN[request.param]
    folder: Path = tmp_path_factory.mktemp("own")
    write_own(folder / "language", kind, bos=bos)
    TOWERS[tower](folder / "tower")
    assemble(folder / "language", folder / "tower", folder / "model")
    return folder


def test_the_forward_is_that_of_the_parts(own: Path) -> None:
    """By transformers' own classes: features of the last layer but one, the class token's left out, projected."""
    processor = AutoProcessor.from_pretrained(own / "model")
    model = AutoModelForImageTextToText.from_pretrained(own / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    given = processor(images=[picture], text="<image>\nRed?", return_tensors="pt")
    config = model.config
    is_clip = config.vision_config.model_type == "clip_vision_model"
    tower = (CLIPModel if is_clip else SiglipModel).from_pretrained(own / "tower").vision_model
    language = AutoModelForCausalLM.from_pretrained(own / "language")
    weights = {
        name.removeprefix("multi_modal_projector."): tensor
        for name, tensor in load_file(own / "model" / "model.safetensors").items()
        if "multi_modal_projector" in name
    }
    linear = torch.nn.functional.linear
    with torch.no_grad():
        logits = model(**given).logits
        features = tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, int(is_clip) :]
        hidden = torch.nn.functional.gelu(linear(features, weights["linear_1.weight"], weights["linear_1.bias"]))
        projected = linear(hidden, weights["linear_2.weight"], weights["linear_2.bias"])
        is_image = given["input_ids"][0] == config.image_token_id
        assert int(is_image.sum()) == 4 == projected.shape[1]
        embeds = language.get_input_embeddings()(given["input_ids"])
        embeds[0, is_image] = projected[0]
        expected = language(inputs_embeds=embeds).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert config.image_token_id >= len(AutoTokenizer.from_pretrained(own / "language"))


def test_texts_are_said_as_the_language_model_says_them(own: Path) -> None:
    said = AutoTokenizer.from_pretrained(own / "language")
    processor = AutoProcessor.from_pretrained(own / "model")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is red? "}]
    lists = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    expected = said.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for given in (turns, lists):
        assert processor.apply_chat_template(given, add_generation_prompt=True) == expected
        assert processor.tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=False) == expected
    picture = [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "red? "}]
    with_image = processor.apply_chat_template([{"role": "user", "content": picture}])
    assert with_image.endswith("<|im_start|>user\n<image>\nWhat is red?<|im_end|>\n")


def test_answers_are_found_and_its_numbers_are_its_own(own: Path) -> None:
    """The chat formatter against the written processor, and the engine against the model's plain forward."""
    formatter = load_formatter(str(own / "model"))
    assert isinstance(formatter, ChatFormatter)
    assert formatter.by_parts
    pixels = np.full((50, 30, 3), 90, dtype=np.uint8)
    image = PromptImage("p", lambda: pixels, formatter.preprocess)
    turns = [Turn("user", "<image>\nRed?"), Turn("assistant", "The left."), Turn("user", "x"), Turn("assistant", "No")]
    prompt = formatter.prompt(turns, [image])
    decode = formatter.tokenizer.decode
    assert [decode(prompt.answer_ids[prompt.turns == turn]) for turn in (0, 1)] == [
        "The left.<|im_end|>",
        "No<|im_end|>",
    ]
    engine = TorchEngine(load_model(str(own / "model"), dtype="float32", device="cpu"), formatter.collate)
    make_sure(engine, str(own / "model"), formatter)
    assert engine.packed
    assert not engine.plainly
    stops = AutoModelForImageTextToText.from_pretrained(own / "model").generation_config.eos_token_id
    assert [formatter.tokenizer.convert_ids_to_tokens(stop) for stop in stops] == ["<|im_end|>", "<|endoftext|>"]


def test_a_new_projector_begins_as_torch_has_it_and_by_its_seed(own: Path, tmp_path: Path) -> None:
    def projector(folder: Path) -> dict[str, torch.Tensor]:
        weights = load_file(folder / "model.safetensors")
        return {name: tensor for name, tensor in weights.items() if "projector" in name}

    again = projector(assemble(own / "language", own / "tower", tmp_path / "a", projector="mlp2x_gelu"))
    other = projector(assemble(own / "language", own / "tower", tmp_path / "b", seed=1))
    for name, tensor in projector(own / "model").items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name])
        inputs = 32 if "linear_1" in name else 64
        assert 0.8 * inputs**-0.5 < tensor.abs().max() <= inputs**-0.5  # torch.nn.Linear's bound
        assert abs(float(tensor.mean())) < 0.3 * inputs**-0.5


def test_tied_embeddings_become_two(tmp_path: Path) -> None:
    write_own(tmp_path / "language", tie_word_embeddings=True)
    write_clip(tmp_path / "clip")
    assemble(tmp_path / "language", tmp_path / "clip", tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(head, embeddings)
    assert head is not embeddings


REFUSED = {
    "linear": ({}, {"projector": "linear"}, "--projector linear: transformers' LLaVA has two layers"),
    "no template": ({"template": None}, {}, "has no chat template, so nothing says how it is spoken to"),
    "a head with a bias": ({"kind": "phi"}, {}, "can't hold it: its output layer has a bias"),
    "scaled logits": ({"kind": "granite", "logits_scaling": 4.0}, {}, "its logits are changed after the output layer"),
    "capped logits": (
        {"kind": "gemma2", "head_dim": 16, "final_logit_softcapping": 5.0}, {}, "its logits are changed after",
    ),
    "another tower": ({}, {"vision_tower": "language"}, "a 'qwen2' model; LLaVA's tower is a CLIP or a SigLIP"),
    "a template that refuses": (
        {"template": "{{ raise_exception('never') }}"}, {}, "its chat template refuses a question and an answer: never",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_llava_cannot_hold_is_refused(tmp_path: Path, why: str) -> None:
    language, options, told = REFUSED[why]
    write_own(tmp_path / "language", **language)  # type: ignore[arg-type]
    write_clip(tmp_path / "clip")
    tower = tmp_path / str(options.get("vision_tower", "clip"))
    with pytest.raises(StageError) as refused:
        assemble(tmp_path / "language", tower, tmp_path / "out", projector=options.get("projector", "random"))
    assert told in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_vicuna_with_a_new_projector_is_prompted_as_llava_is(tmp_path: Path) -> None:
    write_parts(tmp_path)
    assemble(tmp_path / "vicuna", tmp_path / "clip", tmp_path / "out")
    assert load_formatter(str(tmp_path / "out")).identity()["template"] == "llava_v1"
    published = tmp_path / "published"
    assemble(tmp_path / "vicuna", tmp_path / "clip", published, projector=str(tmp_path / "mm_projector.bin"))
    for name in ("config.json", "processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer.model"):
        assert (published / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("tower", TOWERS)
def test_a_llama_that_ends_as_vicuna_does_keeps_a_chat_template_of_its_own(tmp_path: Path, tower: str) -> None:
    """TinyLlama's chat model is one: `</s>` ends its answers, and it is spoken to in another way than Vicuna."""
    write_parts(tmp_path)
    TOWERS[tower](tmp_path / tower)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vicuna")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "vicuna")
    assemble(tmp_path / "vicuna", tmp_path / tower, tmp_path / "out")
    turns = [{"role": "user", "content": "Red?"}, {"role": "assistant", "content": "Yes."}]
    asked = AutoProcessor.from_pretrained(tmp_path / "out").apply_chat_template(turns)
    assert asked == "<|user|>\nRed?</s>\n<|assistant|>\nYes.</s>\n"
    assert load_formatter(str(tmp_path / "out")).identity()["template"] != "llava_v1"


def test_a_vicuna_whose_chat_template_says_the_same_is_one(tmp_path: Path) -> None:
    """As published ones have: in other words of Jinja, with `<s>` before."""
    write_parts(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vicuna")
    tokenizer.chat_template = "{{ bos_token }}" + LLAVA_V1
    tokenizer.save_pretrained(tmp_path / "vicuna")
    assemble(tmp_path / "vicuna", tmp_path / "clip", tmp_path / "out")
    assert load_formatter(str(tmp_path / "out")).identity()["template"] == "llava_v1"
