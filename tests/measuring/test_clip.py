"""Embeddings, scores and token logits against transformers' own CLIPModel."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from tests.measuring.tiny_clip import LIMIT
from tests.scoring.prompts import LONG, ask, picture
from vig_ray.demo import world
from vig_ray.errors import StageError
from vig_ray.measuring.clip import Clip, clip_score
from vig_ray.measuring.measure import Answered, clip_measures

SHORT = "The red circle."


@pytest.fixture(scope="module")
def clip(clip_checkpoint: str) -> Clip:
    return Clip(clip_checkpoint, "cpu")


@pytest.fixture(scope="module")
def theirs(clip_checkpoint: str) -> tuple[Any, Any, Any]:
    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    return model, AutoTokenizer.from_pretrained(clip_checkpoint), AutoImageProcessor.from_pretrained(clip_checkpoint)


def scene(number: int) -> Image.Image:
    return world.draw(world.random_scene(random.Random(number)))


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_the_score_is_that_of_clips_own_logits(clip: Clip, theirs: tuple[Any, Any, Any], text: str) -> None:
    model, tokenizer, images = theirs
    found = clip.texts([LONG, text, SHORT, "Yes."])[1]
    ours = clip.images([np.asarray(scene(number)) for number in range(4)])
    for number in range(1, 4):
        given = tokenizer([text], return_tensors="pt", truncation=True, max_length=LIMIT)
        pixels = images(images=scene(number), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logit = model(**given, pixel_values=pixels).logits_per_image.item()
        expected = 2.5 * max(logit / model.logit_scale.exp().item(), 0.0)
        assert clip_score(ours[number], found.embedding) == pytest.approx(expected, abs=1e-5)
    assert found.cut == max(0, len(tokenizer(text)["input_ids"]) - LIMIT)
    assert (found.cut > 0) == (text == LONG)


def test_a_likeness_below_zero_scores_zero() -> None:
    one = np.array([1.0, 0.0], dtype=np.float32)
    assert clip_score(one, -one) == 0.0
    assert clip_score(one, one) == 2.5


def test_tokens_are_projected_states_of_pieces_that_clip_can_take(clip: Clip, theirs: tuple[Any, Any, Any]) -> None:
    model, tokenizer, _ = theirs
    _, (vectors, chars), (nothing, _) = clip.tokens([SHORT, LONG, ""])
    assert nothing.shape == (0, vectors.shape[1])
    ids = tokenizer(LONG, add_special_tokens=False)["input_ids"]
    assert len(vectors) == len(chars) == len(ids) > 2 * (LIMIT - 2)
    start = 0
    while start < len(ids):
        piece = [tokenizer.bos_token_id, *ids[start : start + LIMIT - 2], tokenizer.eos_token_id]
        with torch.no_grad():
            states = model.text_projection(model.text_model(torch.tensor([piece])).last_hidden_state)[0, 1:-1]
        expected = states / states.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(vectors[start : start + LIMIT - 2], expected, atol=1e-5)
        start += LIMIT - 2
    words = "".join(LONG[first:past] for first, past in chars.tolist())
    assert words == LONG.replace(" ", "")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whoever is beside a sample changes nothing."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-6, atol=1e-6)


def test_a_samples_tokens_get_the_logits_of_their_characters(
    clip: Clip, demo_formatter: Any, theirs: tuple[Any, Any, Any]
) -> None:
    images = [picture(number, demo_formatter) for number in (1, 2)]
    prompt = ask(demo_formatter, SHORT, images[0])
    embeddings = list(clip.images([image.pixels for image in images]))
    samples = [
        Answered(prompt, [SHORT], embeddings), Answered(ask(demo_formatter, LONG, images[1]), [LONG], embeddings[1:]),
    ]  # fmt: skip
    found, other = clip_measures(clip, samples, tokens=True, score=True)
    assert_same(other, clip_measures(clip, samples[1:], tokens=True, score=True)[0])
    assert_same(found, clip_measures(clip, samples[:1], tokens=True, score=True)[0])
    ((vectors, chars),) = clip.tokens([SHORT])
    scale = theirs[0].logit_scale.exp().item()
    per_character: list[list[float]] = [[] for _ in SHORT]
    for vector, (first, past) in zip(vectors, chars.tolist(), strict=True):
        for place in range(first, past):
            per_character[place].append(scale * max(float(vector @ image) for image in embeddings))
    for logit, (first, past) in zip(found["clip"], prompt.answer_chars.tolist(), strict=True):
        inside = [value for place in range(first, past) for value in per_character[place]]
        assert logit == pytest.approx(np.mean(inside), abs=1e-4) if inside else np.isnan(logit)
    assert np.isnan(found["clip"][-1])  # the end of the turn
    text = clip.texts([SHORT])[0].embedding
    assert found["clip_score"] == pytest.approx(np.mean([clip_score(image, text) for image in embeddings]))


def test_another_kind_of_checkpoint_is_one_line(qwen_checkpoint: str, tmp_path: Any) -> None:
    for folder in (qwen_checkpoint, str(tmp_path)):
        with pytest.raises(StageError, match="--clip-model") as failed:
            Clip(folder, "cpu")
        assert "\n" not in str(failed.value)
