"""One suite for every engine: the same numbers as a plain one-sample transformers forward, whatever the batch."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.oracle import blurred, plain_logprobs
from tests.scoring.families import TOLERANCE, Family, family_of, make
from vig_ray.scoring.engines import Engine
from vig_ray.scoring.engines.load import vllm_installed
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.reference import blind, blur, make_reference
from vig_ray.scoring.references.average import to_png


@dataclass
class UnderTest:
    """An engine of one kind over one family; `make` gives one whose batches are small, middling or large."""

    kind: str
    family: Family
    make: Callable[[int], Engine]
    blind: bool = True

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.kind][self.family.name]


KINDS = [f"torch-{name}" for name in TOLERANCE["torch"]]
KINDS += [pytest.param(f"vllm-{name}", marks=pytest.mark.vllm) for name in TOLERANCE["vllm"] if vllm_installed()]


@pytest.fixture(scope="module", params=KINDS)
def under_test(request: pytest.FixtureRequest, folders: dict[str, str]) -> UnderTest:
    kind, _, name = request.param.partition("-")
    family = family_of(name, folders)
    if kind == "torch":

        def torch_engine(size: int) -> Engine:
            return TorchEngine(family.model, family.formatter.collate, max_batch_tokens=size)

        return UnderTest(kind, family, torch_engine)
    engine = request.getfixturevalue("vllm_engine")(family.folder)

    def vllm_engine(size: int) -> Engine:
        engine.max_in_flight = {1: 1, 300: 5}.get(size, 256)
        return engine

    return UnderTest(kind, family, vllm_engine, blind=False)


BATCHES = [pytest.param(1, marks=pytest.mark.vllm_v2), 300, pytest.param(100_000, marks=pytest.mark.vllm_v2)]


@pytest.mark.parametrize("batch_tokens", BATCHES)
def test_same_numbers_as_a_plain_forward(under_test: UnderTest, pictures: list[Image.Image], batch_tokens: int) -> None:
    family = under_test.family
    made = make(family, pictures)
    prompts = [p for p, _ in made] + [blur(p) for p, _ in made]
    if under_test.blind:
        prompts += [blind(p) for p, used in made if used]

    def plain(model: Any) -> list[np.ndarray]:
        values = [plain_logprobs(model, family.image_processor, p, used) for p, used in made]
        values += [plain_logprobs(model, family.image_processor, p, [blurred(x) for x in used]) for p, used in made]
        if under_test.blind:
            values += [plain_logprobs(model, family.image_processor, p, used, blind=True) for p, used in made if used]
        return values

    expected = plain(family.model)
    tolerance = under_test.tolerance
    if under_test.kind == "torch":
        # float32 itself may be off by more, on some processors: the engine is to be as near as the plain forward is.
        in_float64 = plain(copy.deepcopy(family.model).double())
        tolerance = max(tolerance, *(1.5 * np.abs(a - b).max() for a, b in zip(expected, in_float64, strict=True)))
        expected = in_float64
    order = list(range(len(prompts)))
    random.Random(batch_tokens).shuffle(order)
    found = under_test.make(batch_tokens).logprobs([prompts[i] for i in order])
    for index, logp in zip(order, found, strict=True):
        assert isinstance(logp, np.ndarray)
        assert logp.dtype == np.float32
        assert logp.shape == prompts[index].answer_positions.shape
        np.testing.assert_allclose(logp, expected[index], atol=tolerance, rtol=0)


@pytest.mark.vllm_v2
def test_one_picture_for_all_and_no_image_are_plain_forwards(
    under_test: UnderTest, pictures: list[Image.Image]
) -> None:
    family = under_test.family
    made = [(prompt, used) for prompt, used in make(family, pictures) if used]
    mean, no_image = (make_reference(name, formatter=family.formatter).without_image for name in ("mean", "no-image"))
    red, green, blue = (int(255 * x) for x in family.image_processor.image_mean)
    asked, expected = [], []
    for prompt, used in made:
        plain = [Image.new("RGB", picture.size, (red, green, blue)) for picture in used]
        asked += [mean(prompt), no_image(prompt)]
        expected.append(plain_logprobs(family.model, family.image_processor, prompt, plain))
        expected.append(plain_logprobs(family.model, family.image_processor, no_image(prompt), []))
    tolerance = max(under_test.tolerance, rounding(family, made, expected[1::2], no_image))
    found = under_test.make(100_000).logprobs(asked)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


def rounding(family: Family, made: Any, in_float32: Sequence[Any], without: Any) -> float:
    """How far float32 itself is off: the engine is to be as near as the plain forward is."""
    exact = copy.deepcopy(family.model).double()
    truth = [plain_logprobs(exact, family.image_processor, without(prompt), []) for prompt, _ in made]
    return max(float(np.abs(a - b).max()) for a, b in zip(in_float32, truth, strict=True))


@pytest.mark.vllm_v2
def test_other_arrays_for_the_images_are_plain_forwards(under_test: UnderTest, pictures: list[Image.Image]) -> None:
    """`vcd` changes what the processor gave; `noise` and `blur-mean` have one picture, of each image's size: the model
    gets it as it is, in a window with the clean images."""
    family = under_test.family
    average = to_png(np.asarray(blurred(pictures[3])))
    names: list[Any] = ["vcd", "noise", "blur-mean"]
    references = [make_reference(name, formatter=family.formatter, average=average) for name in names]
    prompts = [prompt for prompt, used in make(family, pictures) if used]
    changed = [reference.without_image(prompt) for prompt in prompts for reference in references]
    found = under_test.make(100_000).logprobs([*prompts, *changed])
    clean = [logp for logp in found[: len(prompts)] for _ in references]
    in_float64 = copy.deepcopy(family.model).double()

    def plain(model: Any, prompt: Any) -> np.ndarray:
        inputs = [image.inputs for image in prompt.images]
        given = family.formatter.collate(inputs, "cpu", torch.float32)
        return plain_logprobs(model, lambda **_: given, prompt, inputs)

    exact = [plain(in_float64, prompt) for prompt in changed]
    # The engine is to be as near as the plain forward is in float32, which differs from processor to processor.
    off = max(np.abs(plain(family.model, prompt) - each).max() for prompt, each in zip(changed, exact, strict=True))
    for number, (logp, each, other) in enumerate(zip(found[len(prompts) :], exact, clean, strict=True)):
        np.testing.assert_allclose(logp, each, atol=max(under_test.tolerance, 2 * off), rtol=0)
        assert np.abs(logp - other).max() > 2 * under_test.tolerance, names[number % 3]


@pytest.mark.vllm_v2
def test_the_image_and_each_reference_matter(under_test: UnderTest, pictures: list[Image.Image]) -> None:
    """Otherwise the test above could pass with images ignored altogether."""
    prompt, _ = make(under_test.family, pictures)[0]
    engine = under_test.make(100_000)
    clean, blurry, hidden = engine.logprobs([prompt, blur(prompt), blind(prompt)])
    assert np.abs(clean - blurry).max() > 1e-2
    if not under_test.blind:
        assert str(hidden).startswith("Blind: ")
        assert "--engine torch" in str(hidden)
        return
    assert np.abs(clean - hidden).max() > 1e-2
    assert np.abs(blurry - hidden).max() > 1e-2


@pytest.mark.vllm_v2
def test_a_prompt_without_answer_tokens_gives_an_empty_array(
    under_test: UnderTest, pictures: list[Image.Image]
) -> None:
    prompt, _ = make(under_test.family, pictures)[0]
    empty = replace(prompt, answer_positions=prompt.answer_positions[:0], turns=prompt.turns[:0])
    found = under_test.make(100_000).logprobs([empty, prompt])
    assert found[0].shape == (0,)
    assert len(found[1]) == len(prompt.answer_positions)


def test_the_order_is_the_prompts_own(under_test: UnderTest, pictures: list[Image.Image]) -> None:
    """Engines sort; whoever asks mustn't notice, nor whether a prompt is asked twice."""
    prompts = [prompt for prompt, _ in make(under_test.family, pictures)]
    engine = under_test.make(100_000)
    once = engine.logprobs(prompts)
    back = engine.logprobs([*reversed(prompts), prompts[2]])
    for one, other in zip([*reversed(once), once[2]], back, strict=True):
        np.testing.assert_allclose(one, other, atol=under_test.tolerance)


def test_a_prompt_that_was_pickled_gives_the_same(under_test: UnderTest, pictures: list[Image.Image]) -> None:
    prompts = [prompt for prompt, _ in make(under_test.family, pictures)]
    engine = under_test.make(100_000)
    sent = pickle.loads(pickle.dumps([(prompt, blur(prompt)) for prompt in prompts]))
    expected = engine.logprobs([each for prompt in prompts for each in (prompt, blur(prompt))])
    found = engine.logprobs([each for pair in sent for each in pair])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=under_test.tolerance)
