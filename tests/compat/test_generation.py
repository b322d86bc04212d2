"""transformers' `generate` is as vig_ray.compat.generation takes it to be; what fails here names what has changed."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from tests.scoring.prompts import picture
from vig_ray.compat import generation
from vig_ray.dataset.schema import Turn


def test_generate_lets_itself_be_gone_through_step_by_step(demo_model: Any, demo_formatter: Any) -> None:
    """Rows end one after the other; what is written is what `generate` writes."""
    told = "generate doesn't call a function as custom_generate any more, or calls it otherwise"
    assert "custom_generate" in inspect.signature(GenerationMixin.generate).parameters, told
    images = [picture(number, demo_formatter) for number in (1, 2, 3)]
    prompts = [
        demo_formatter.question([Turn("user", "<image>\nDescribe the image." + " Please." * number)], [image])
        for number, image in enumerate(images)
    ]
    longest = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt.token_ids)) + prompt.token_ids.tolist() for prompt in prompts])
    vision = demo_formatter.collate([image.inputs for image in images], "cpu", torch.float32)
    written: list[list[int]] = [[], [], []]
    rows = [0, 1, 2]

    def choose(logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = logits_RV.argmax(-1)
        assert len(tokens) == len(rows), told
        for row, token in zip(rows, tokens.tolist(), strict=True):
            written[row].append(token)
        kept = [place for place, row in enumerate(rows) if len(written[row]) < 2 + 2 * row]
        if len(kept) == len(rows):
            return tokens, None
        rows[:] = [rows[place] for place in kept]
        return tokens, torch.tensor(kept, dtype=torch.int64)

    generation.write(demo_model, ids, choose, most=6, pad=0, attention_mask=(ids != 0).long(), **vision)
    for number, prompt in enumerate(prompts):
        pixels = {"pixel_values": vision["pixel_values"][number][None]}
        alone = torch.tensor(prompt.token_ids.tolist())[None]
        out = demo_model.generate(
            alone, attention_mask=torch.ones_like(alone), **pixels, do_sample=False, max_new_tokens=2 + 2 * number,
            eos_token_id=None,
        )  # fmt: skip
        assert out[0, alone.shape[1] :].tolist() == written[number], told


def test_nothing_of_a_checkpoints_own_settings_is_left(demo_model: Any) -> None:
    """A cache of another kind, a penalty or a least length of a generation config would change what is written."""
    model = copy.deepcopy(demo_model)
    own = GenerationConfig(cache_implementation="static", repetition_penalty=5.0, min_new_tokens=3, num_beams=2)
    model.generation_config = own
    ids = torch.tensor([[1, 300, 301, 302]])
    seen = []

    def choose(logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.append(logits_RV)
        return logits_RV.argmax(-1), torch.arange(0)

    generation.write(model, ids, choose, most=1, pad=0, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, -1]
    told = "generate takes settings from the model's generation_config that it didn't take before"
    assert torch.allclose(seen[0], expected, atol=1e-5), told
    assert model.generation_config is own


@pytest.mark.parametrize("name", ["reorder_cache", "get_seq_length"])
def test_caches_can_be_reordered(name: str, demo_model: Any) -> None:
    assert hasattr(generation.cache_of(demo_model), name), f"a DynamicCache has no {name} any more"
