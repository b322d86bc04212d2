"""Generated samples have LLaVA-665K's shape, whichever way they are made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.llava_shape import PASSES, TEXT_ONLY, llava, prepared, qwen, reference, samples
from benchmarks.published import largest_difference, published_loop
from benchmarks.shape_files import processor_of, write_checkpoint, write_dataset
from vig_ray.dataset.schema import Turn
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import PromptImage
from vig_ray.scoring.engines.torch import TorchEngine


@pytest.mark.parametrize("count", [8, 400])
def test_samples_have_the_lengths_of_llava_665k(count: int) -> None:
    prompts = samples(llava("12x768"), count)
    assert {int(prompt.image_mask.sum()) for prompt in prompts} == {576}
    assert {tuple(prompt.token_ids[:38]) for prompt in prompts} == {tuple(prompts[0].token_ids[:38])}
    assert {prompt.image_spans.tolist()[0][0] for prompt in prompts} == {38}
    assert np.mean([len(prompt.token_ids) - 614 for prompt in prompts]) == pytest.approx(212, rel=0.03)
    assert np.mean([len(prompt.answer_positions) for prompt in prompts]) == pytest.approx(94, rel=0.03)
    assert max(len(prompt.token_ids) for prompt in prompts) <= 2048
    assert len({image.key for prompt in prompts for image in prompt.images}) == round(0.6 * count)
    assert np.mean([prompt.turns[-1] + 1 for prompt in prompts]) > 2


def test_the_same_seed_gives_the_same_samples() -> None:
    first, again, other = (samples(qwen("small"), 5, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.token_ids, b.token_ids)
        assert np.array_equal(a.images[0].pixels, b.images[0].pixels)
    assert any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(first, other, strict=True))


def test_text_only_samples_come_in_their_share() -> None:
    prompts = samples(llava("small"), 200, text_only=TEXT_ONLY, images=7)
    assert sum(not prompt.images for prompt in prompts) == round(200 * 40_688 / 665_298)
    assert len({image.key for prompt in prompts for image in prompt.images}) == 7


@pytest.mark.parametrize("name", PASSES)
def test_the_engine_and_the_loop_agree_on_them(name: str) -> None:
    family = qwen("small")  # LLaVA's are held against each other in test_flops.py
    model, without_image = family.model(), reference(name, family)
    clean = samples(family, 2, images=1)
    prompts = prepared([each for prompt in clean for each in (prompt, without_image(prompt))])
    expected = published_loop(model, family.formatter.collate, prompts)
    found = TorchEngine(model, family.formatter.collate).logprobs(prompts)
    assert largest_difference(expected, found) < 1e-5
    assert max(np.abs(a - b).max() for a, b in zip(expected[::2], expected[1::2], strict=True)) > 1e-3


def test_a_dataset_has_the_same_shape(tmp_path: Path) -> None:
    family = llava("12x768")
    rows = json.loads(Path(write_dataset(family, tmp_path / "data", 30)).read_text())
    processor = processor_of(family)
    formatter = LlavaFormatter(
        processor.tokenizer, processor.image_processor, image_token_id=family.image_token, num_image_tokens=576
    )
    picture = PromptImage("", lambda: np.zeros((8, 8, 3), np.uint8), formatter.preprocess)
    roles = {"human": "user", "gpt": "assistant"}
    prompts = []
    for row in rows:
        assert (tmp_path / "data" / row["image"]).exists()
        turns = [Turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        prompts.append(formatter.prompt(turns, [picture]))
    assert len({row["image"] for row in rows}) == 18
    behind = [len(prompt.token_ids) - prompt.image_spans[0][1] for prompt in prompts]
    assert np.mean(behind) == pytest.approx(212, rel=0.05)
    assert np.mean([len(prompt.answer_positions) for prompt in prompts]) == pytest.approx(94, rel=0.05)
    assert not any(prompt.note for prompt in prompts)


def test_a_checkpoint_is_the_model_that_was_made(tmp_path: Path) -> None:
    family = llava("small")
    folder = write_checkpoint(family, tmp_path)
    prompts = prepared(samples(family, 2))
    formatter = load_formatter(folder)
    assert formatter.num_image_tokens == family.image_tokens  # type: ignore[attr-defined]
    written = published_loop(load_model(folder, dtype="float32", device="cpu"), formatter.collate, prompts)
    assert largest_difference(published_loop(family.model(), family.formatter.collate, prompts), written) < 1e-5
