"""transformers is as vig_ray/compat/transformers.py, the torch engine and packed attention take it to be.

What fails here names what a release has changed.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.scoring.prompts import ask, picture
from vig_ray.compat import transformers as compat
from vig_ray.demo import CHECKPOINT

takes_features = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="models take features for images from transformers 5.18 on; before, every row takes its images' pixels",
)


@pytest.fixture
def model(demo_model: Any) -> Any:
    return copy.deepcopy(demo_model)


@pytest.fixture(scope="module")
def inputs(demo_formatter: Any, demo_model: Any) -> dict[str, Any]:
    """Ids and pixels of two prompts of one length."""
    prompts = [ask(demo_formatter, "Seven.", picture(number, demo_formatter)) for number in (1, 2)]
    pixels = demo_formatter.collate([prompt.images[0].inputs for prompt in prompts], "cpu", torch.float32)
    return {"input_ids": torch.tensor([prompt.token_ids.tolist() for prompt in prompts]), "use_cache": False} | pixels


def test_processors_have_default_options_for_images() -> None:
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    processor = transformers.AutoProcessor.from_pretrained(CHECKPOINT)
    assert compat.image_options(processor) == {"return_tensors": "pt"}
    assert compat.image_options(object()) == {"return_tensors": "pt"}
    told = "the defaults of Idefics 3 (and SmolVLM) aren't merged by _merge_kwargs any more"
    images = transformers.Idefics3ImageProcessor()
    idefics = Idefics3Processor(images, processor.tokenizer)
    assert compat.image_options(idefics).get("return_row_col_info") is True, told


def test_a_processor_tells_what_stands_for_an_image(qwen_checkpoint: str) -> None:
    processor = transformers.AutoProcessor.from_pretrained(qwen_checkpoint)
    tensors, text = compat.process_image(processor, Image.new("RGB", (112, 168)), compat.image_options(processor))
    places = int(tensors["image_grid_thw"].prod()) // processor.image_processor.merge_size**2
    assert text == processor.image_token * places, "_process_images gives no text for an image any more"


@takes_features
@pytest.mark.parametrize("name", ["LlavaModel", "Qwen2_5_VLModel"])
def test_models_take_features_for_images(name: str) -> None:
    arguments = inspect.signature(getattr(transformers, name).forward).parameters
    assert "mm_encoder_outputs" in arguments, f"{name}: without it every prompt runs the vision tower anew"


@takes_features
@torch.no_grad()
def test_features_give_what_pixels_give(model: Any, inputs: dict[str, Any]) -> None:
    expected = model.model(**inputs).last_hidden_state
    made = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    shared = {"image": BaseModelOutputWithPooling(pooler_output=list(made))}  # one tensor an image, from several calls
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(model.model(**text, mm_encoder_outputs=shared).last_hidden_state, expected)


@torch.no_grad()
def test_the_last_mlp_runs_for_the_tokens_that_are_needed(model: Any, inputs: dict[str, Any]) -> None:
    expected = model.model(**inputs).last_hidden_state.flatten(0, 1)
    last = model.get_decoder().layers[-1]
    rows: list[int] = []
    last.mlp.down_proj.register_forward_hook(lambda _, arguments, __: rows.append(arguments[0].shape[:-1].numel()))
    assert compat.spare_last_mlp(last), "the last decoder layer has no mlp of linear layers"
    unique_state_index_K = torch.tensor([2, 5, len(expected) - 1])
    found = model.model(**inputs, unique_state_index_K=unique_state_index_K).last_hidden_state.flatten(0, 1)
    told = "unique_state_index_K doesn't reach the last layer, or its mlp isn't called with the hidden states"
    assert rows == [len(unique_state_index_K)], told
    torch.testing.assert_close(found[unique_state_index_K], expected[unique_state_index_K], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.model(**inputs).last_hidden_state.flatten(0, 1), expected)  # without it, as before
    assert not compat.spare_last_mlp(torch.nn.Linear(2, 2))


@torch.no_grad()
def test_attention_without_a_mask_function_gets_no_mask_but_every_argument(model: Any, inputs: dict[str, Any]) -> None:
    seen: list[tuple[Any, Any]] = []

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
        seen.append((attention_mask, given.get("row")))
        return query.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("canary", attention)
    assert "canary" not in transformers.AttentionMaskInterface()
    model.set_attn_implementation({"text_config": "canary"})
    # Positions that begin anew, as in a packed row, would call for a mask elsewhere.
    length = inputs["input_ids"].shape[1]
    positions = (torch.arange(length) % 7).expand(2, -1)
    model.model(**inputs, position_ids=positions, row="row")
    layers = model.config.text_config.num_hidden_layers
    assert seen == [(None, "row")] * layers, "a mask was made, or an argument didn't reach the attention"


def test_which_models_take_images_is_known_by_their_config() -> None:
    known = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    assert transformers.LlavaConfig in known
    assert transformers.Qwen2_5_VLConfig in known
    assert transformers.LlamaConfig not in known
