"""The arithmetic of the least, held against torch's FLOP counter and against a count of prefixes one by one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.flops import counted
from benchmarks.least import image_flops, least_flops
from benchmarks.llava_shape import PASSES, Family, llava, prepared, qwen, reference, samples
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt


@pytest.fixture(scope="module", params=[llava, qwen], ids=["llava", "qwen"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param("small")


@pytest.fixture(scope="module")
def model(family: Family) -> Any:
    return family.model()


def cost(family: Family, prompt: Prompt) -> float:
    """Of the prompt's image."""
    return sum(image_flops(family.config, prompt.images[0]))


@torch.no_grad()
def test_an_image_costs_what_torch_counts_up_to_the_layer_that_is_read(family: Family) -> None:
    (prompt,) = prepared(samples(family, 1))
    config = copy.deepcopy(family.config)
    if config.model_type == "llava":  # whose last layer is run and not read
        config.vision_config.num_hidden_layers -= 1
        config.vision_feature_layer += 1
    model = replace(family, config=config).model()
    makes = model if hasattr(model, "get_image_features") else model.model
    pixels = family.formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
    assert counted(model, lambda: makes.get_image_features(**pixels)).total == cost(family, prompt)


@torch.no_grad()
def test_one_prompt_costs_what_torch_counts_of_a_forward_that_leaves_the_needless_out(
    family: Family, model: Any
) -> None:
    (prompt,) = prepared(samples(family, 1))
    text = family.config.get_text_config()
    last = int(prompt.answer_positions[-1])
    predicting = torch.from_numpy(prompt.answer_positions).long() - 1
    positions = position_ids(model, prompt)
    positions = (positions[None] if positions.ndim == 1 else positions[:, None])[..., :last]
    # What an image's features are costs nothing here: the decoder is asked alone.
    embedded = torch.randn(1, last, text.hidden_size)

    def forward() -> None:
        states = model.get_decoder()(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        model.get_output_embeddings()(states[:, predicting])

    least = least_flops(family.config, [prompt])
    spared = 2 * (last - len(predicting)) * 3 * text.hidden_size * text.intermediate_size  # of the last layer's MLP
    assert counted(model, forward).total - spared == least.total - cost(family, prompt)
    assert least.tokens == least.unshared == last


@pytest.mark.parametrize("name", PASSES)
def test_each_distinct_prefix_is_computed_once(family: Family, name: str) -> None:
    clean = samples(family, 12, images=4, text_only=0.2)
    without_image = reference(name, family)
    prompts = [*clean, *(without_image(prompt) for prompt in clean if prompt.images)]
    # The same in the slowest way: what a position holds, and all that is before it.
    prefixes, predicting, pairs, images = set(), set(), 0, set()
    for prompt in prompts:
        held: list[Any] = []
        for place, token in enumerate(prompt.token_ids.tolist()):
            if prompt.image_mask[place]:
                if prompt.hide_images:
                    continue
                token = prompt.images[0].key
            if place >= prompt.answer_positions[-1]:
                break
            held.append((place, token))
            if tuple(held) not in prefixes:
                pairs += len(held)
                prefixes.add(tuple(held))
            if place + 1 in prompt.answer_positions:
                predicting.add(tuple(held))
        images |= set() if prompt.hide_images else {image.key for image in prompt.images}
    text = family.config.get_text_config()
    least = least_flops(family.config, prompts, "pairs")
    assert least.tokens == len(prefixes)
    assert least.head == 2 * len(predicting) * text.hidden_size * text.vocab_size
    linear, others = image_flops(family.config, next(prompt.images[0] for prompt in clean if prompt.images))
    assert least.tower == len(images) * linear
    assert least.attention - len(images) * others == 4 * pairs * text.hidden_size * text.num_hidden_layers
    assert least.unshared > least.tokens


def test_a_square_costs_more_than_the_pairs_of_causal_attention(family: Family) -> None:
    prompts = samples(family, 3)
    squares, pairs = (least_flops(family.config, prompts, way) for way in ("rectangles", "pairs"))
    assert squares.attention > pairs.attention
    assert squares._replace(attention=0) == pairs._replace(attention=0)


def test_a_prompt_without_an_answer_costs_nothing(family: Family) -> None:
    (prompt,) = samples(family, 1)
    nothing = replace(prompt, answer_positions=np.zeros(0, np.int32), images=())
    assert least_flops(family.config, [nothing]).total == 0


def test_another_familys_tower_is_refused(family: Family) -> None:
    other = llava("small").config
    other.model_type = "other"
    with pytest.raises(ValueError, match="other: no arithmetic for its tower"):
        least_flops(other, samples(family, 1))
