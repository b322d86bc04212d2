"""Every reference through the torch engine against transformers' own forward, with pictures and ids made by hand.

LLaVA, three families whose prompts are made from parts, and two whose processor makes samples as a whole.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tests.model.family import SAMPLES, TOLERANCE, WHOLE, Family, Sample, apart
from tests.oracle import plain_logprobs
from tests.scoring.prompts import ask
from vig_ray.demo import CHECKPOINT
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references.average import to_png

NAMES = ["qwen2_5_vl", "internvl", "gemma3", "lfm2_vl", "mllama"]
ASKED = ("one image", "two images", "wide", "a later image", "text")
BEIGE = (200, 180, 140)
AVERAGE = to_png(np.full((336, 336, 3), BEIGE, dtype=np.uint8))


def noise(size: tuple[int, int]) -> Image.Image:
    """The same noise at any size, to the nearest pixel."""
    picture = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)


def by_hand(name: str, size: tuple[int, int], mean: Any) -> Image.Image:
    if name == "noise":
        return noise(size)
    return Image.new("RGB", size, BEIGE if name == "blur-mean" else tuple(int(255 * x) for x in mean))


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


class Asked(NamedTuple):
    """Prompts of a family's samples, clean and under a reference."""

    samples: list[Sample]
    clean: list[Prompt]
    without: list[Prompt]


def asked(family: Family, name: Any, *, images: bool = True) -> Asked:
    reference = make_reference(name, formatter=family.formatter, average=AVERAGE)
    samples = [SAMPLES[each] for each in ASKED if SAMPLES[each].sizes or not images]
    clean = [family.prompt(str(number), sample) for number, sample in enumerate(samples)]
    return Asked(samples, clean, [reference.without_image(prompt) for prompt in clean])


@pytest.mark.parametrize("name", ["mean", "noise", "blur-mean"])
def test_one_picture_for_all(family: Family, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, clean, without = asked(family, name)
    mean = family.processor.image_processor.image_mean
    found = family.engine.logprobs([*clean, *without])[len(clean) :]
    sent = family.engine.logprobs(pickle.loads(pickle.dumps(without)))
    monkeypatch.setattr(family, "pictures", lambda sample: [by_hand(name, size, mean) for size in sample.sizes])
    for sample, prompt, ours, again in zip(samples, clean, found, sent, strict=True):
        inputs = family.inputs(sample)
        assert inputs["input_ids"][0].tolist() == prompt.token_ids.tolist()
        assert apart(ours, family.logprobs(inputs, prompt)) < TOLERANCE
        assert apart(again, ours) < TOLERANCE


def test_no_image(family: Family) -> None:
    """The processor's ids without the image's: a plain text forward."""
    samples, clean, without = asked(family, "no-image", images=False)
    found = family.engine.logprobs([*without, *clean])
    token = family.model.config.image_token_id
    exact = copy.deepcopy(family.model).double()  # float32 itself may be off by more than the tolerance
    for sample, prompt, text, ours, seen in zip(samples, clean, without, found, found[len(clean) :], strict=False):
        given = family.inputs(sample)["input_ids"][0].tolist()
        ids = torch.tensor([[each for each in given if each != token]])
        assert text.token_ids.tolist() == ids[0].tolist()
        places = prompt.answer_positions.tolist()
        moved = [place - given[:place].count(token) for place in places]
        theirs, truth = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            .logits[0]
            .log_softmax(-1)[torch.tensor(moved) - 1, torch.tensor(given)[places]]
            .detach()
            .numpy()
            for model in (family.model, exact)
        )
        # CPUs round differently: on one InternVL's numbers are 1.2e-5 off, its own forward's 5e-6.
        assert apart(ours, truth) < max(1.5 * TOLERANCE, 2 * apart(theirs, truth))
        assert (apart(ours, seen) > 1e-3) == bool(sample.sizes)


def test_vcd(family: Family) -> None:
    """The model's own forward on the processor's pixels, each under sqrt(a) x + sqrt(1 - a) e."""
    samples, clean, without = asked(family, "vcd")
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, 0)[500].item()
    found = family.engine.logprobs([*clean, *without])[len(clean) :]
    sent = family.engine.logprobs(pickle.loads(pickle.dumps(without)))
    for sample, prompt, noisy, ours, again in zip(samples, clean, without, found, sent, strict=True):
        inputs = family.inputs(sample)
        pixels = inputs["pixel_values"].double()
        if family.name in WHOLE:
            assert noisy.whole is not None
            made = torch.from_numpy(noisy.whole.arrays["pixel_values"])
        else:
            made = torch.from_numpy(np.concatenate([image.inputs["pixel_values"] for image in noisy.images]))
        e = (made.double() - kept**0.5 * pixels) / (1 - kept) ** 0.5
        real = pixels.ne(0).any(-1)  # what is filled up with zeros is no picture
        assert not made[~real].any()
        assert abs(e[real].mean()) < 0.05
        assert abs(e[real].std() - 1) < 0.05
        inputs["pixel_values"] = made
        assert apart(ours, family.logprobs(inputs, prompt)) < TOLERANCE
        assert apart(again, ours) < TOLERANCE


@pytest.mark.parametrize("name", ["mean", "noise", "blur-mean", "vcd", "no-image"])
def test_llava(name: Any, demo_formatter: Any, demo_model: Any, tmp_path: Path) -> None:
    """Clean and reference in one batch; the checkpoint's own image processor has the pictures made by hand."""
    images = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    reference = make_reference(name, formatter=demo_formatter, average=AVERAGE)
    sizes = [(120, 80), (80, 120), (64, 64)]
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)) for i, (w, h) in enumerate(sizes)]  # fmt: skip # noqa: E501
    clean = [
        ask(demo_formatter, "A red circle.", PromptImage(str(i), lambda p=p: np.asarray(p), demo_formatter.preprocess))  # type: ignore[misc]
        for i, p in enumerate(pictures)
    ]
    without = [reference.without_image(prompt) for prompt in clean]
    engine = TorchEngine(demo_model, demo_formatter.collate)
    found = engine.logprobs([each for pair in zip(clean, without, strict=True) for each in pair])
    for prompt, other, size, seen, picture, ours in zip(clean, without, sizes, found[::2], pictures, found[1::2], strict=True):  # fmt: skip # noqa: E501
        np.testing.assert_allclose(seen, plain_logprobs(demo_model, images, prompt, [picture]), atol=1e-5, rtol=0)
        if name == "no-image":
            assert other.token_ids.tolist() == [
                i for i in prompt.token_ids.tolist() if i != demo_formatter.image_token_id
            ]
            expected = plain_logprobs(demo_model, images, other, [])
        elif name == "vcd":
            given = lambda images, return_tensors, o=other: {"pixel_values": torch.from_numpy(o.images[0].inputs["pixel_values"])[None]}  # fmt: skip # noqa: E501, E731
            expected = plain_logprobs(demo_model, given, prompt, [picture])
        else:
            expected = plain_logprobs(demo_model, images, prompt, [by_hand(name, size, images.image_mean)])
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
        assert np.abs(ours - seen).max() > 1e-3
