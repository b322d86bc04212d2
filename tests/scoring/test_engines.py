"""One suite for every engine: the same numbers as a plain one-sample transformers forward, whatever the batch."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.oracle import blurred, plain_logprobs
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.head import forward_arguments
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import Engine
from vig_ray.scoring.engines.load import vllm_installed
from vig_ray.scoring.engines.torch import TorchEngine, plan_batches
from vig_ray.scoring.reference import blind, blur, make_reference

# Log-probs near -10 in float32 have steps of 1e-6, and the order of summing depends on batches and threads. vLLM: other
# kernels, and for Qwen2.5-VL another attention in the tower.
TOLERANCE = {
    "torch": {"llava": 1e-5, "qwen": 1e-5, "gemma": 1e-5},
    "vllm": {"llava": 1e-4, "qwen": 1e-3},
}


@dataclass
class Family:
    name: str
    folder: str
    model: Any
    formatter: Any
    image_processor: Any

    def image(self, key: str, picture: Image.Image) -> PromptImage:
        return PromptImage(key, lambda: np.asarray(picture), self.formatter.preprocess)


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


def _family(name: str, folders: dict[str, str]) -> Family:
    from transformers import AutoImageProcessor

    model = load_model(folders[name], dtype="float32", device="cpu")
    # LLaVA's images are resized by Pillow, as in LLaVA; others by what transformers finds, torchvision if it is there.
    backend = {"backend": "pil"} if name == "llava" else {}
    processor = AutoImageProcessor.from_pretrained(folders[name], **backend)
    return Family(name, folders[name], model, load_formatter(folders[name]), processor)


@pytest.fixture(scope="module")
def folders(qwen_checkpoint: str, gemma_checkpoint: str) -> dict[str, str]:
    return {"llava": CHECKPOINT, "qwen": qwen_checkpoint, "gemma": gemma_checkpoint}


@pytest.fixture(scope="module", params=["llava", "qwen", "gemma"])
def family(request: pytest.FixtureRequest, folders: dict[str, str]) -> Family:
    return _family(request.param, folders)


KINDS = [f"torch-{name}" for name in TOLERANCE["torch"]]
KINDS += [pytest.param(f"vllm-{name}", marks=pytest.mark.vllm) for name in TOLERANCE["vllm"] if vllm_installed()]


@pytest.fixture(scope="module", params=KINDS)
def under_test(request: pytest.FixtureRequest, folders: dict[str, str]) -> UnderTest:
    kind, _, name = request.param.partition("-")
    family = _family(name, folders)
    if kind == "torch":

        def torch_engine(size: int) -> Engine:
            return TorchEngine(family.model, family.formatter.collate, max_batch_tokens=size)

        return UnderTest(kind, family, torch_engine)
    engine = request.getfixturevalue("vllm_engine")(family.folder)

    def vllm_engine(size: int) -> Engine:
        engine.max_in_flight = {1: 1, 300: 5}.get(size, 256)
        return engine

    return UnderTest(kind, family, vllm_engine, blind=False)


def conversations(rng: random.Random) -> list[tuple[list[Turn], list[int]]]:
    """(turns, numbers of the pictures they use): one turn, many turns, two images, text only, long."""
    long = " ".join(rng.choice(["A red circle on the left.", "The square is blue."]) for _ in range(40))
    return [
        ([Turn("user", "<image>\nWhat color is the circle?"), Turn("assistant", "The circle is red.")], [0]),
        (
            [
                Turn("user", "<image>Where is it?"),
                Turn("assistant", "It is on the left."),
                Turn("user", "Sure?"),
                Turn("assistant", "Yes."),
            ],
            [0],
        ),
        (
            [
                Turn("user", "<image><image>\nCompare."),
                Turn("assistant", "A green cross."),
                Turn("user", "Why?"),
                Turn("assistant", "No."),
            ],
            [1, 2],
        ),
        ([Turn("user", "How many days are in a week?"), Turn("assistant", "A week has seven days.")], []),
        ([Turn("user", "<image>\nDescribe the image."), Turn("assistant", long)], [2]),
        ([Turn("user", "<image>\nDescribe the image."), Turn("assistant", "Où? 😀 \n\t ok")], [3]),
    ]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = random.Random(5)
    return [world.draw(world.random_scene(rng)) for _ in range(4)]


def make(family: Family, pictures: list[Image.Image]) -> list[tuple[Prompt, list[Image.Image]]]:
    made = []
    shared = [family.image(f"picture-{i}", picture) for i, picture in enumerate(pictures)]
    for turns, numbers in conversations(random.Random(0)):
        prompt = family.formatter.prompt(turns, [shared[i] for i in numbers])
        made.append((prompt, [pictures[i] for i in numbers]))
    return made


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
        tolerance = max(tolerance, *(np.abs(a - b).max() for a, b in zip(expected, in_float64, strict=True)))
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
    found = under_test.make(100_000).logprobs(asked)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=under_test.tolerance, rtol=0)


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


def test_one_vision_pass_an_image(family: Family, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many prompts about few images: each image, clear and blurred, goes through the tower once in a window."""
    shared = [family.image(f"picture-{i}", picture) for i, picture in enumerate(pictures[:2])]
    turns = [Turn("user", "<image>\nDescribe the image.")]
    prompts = []
    for i in range(12):
        answer = " ".join(["A red circle."] * (1 + i % 3))
        prompts.append(family.formatter.prompt([*turns, Turn("assistant", answer)], [shared[i % 2]]))
    seen: list[int] = []
    original = family.formatter.collate

    def counting(inputs: Any, *rest: Any) -> Any:
        seen.append(len(inputs))
        return original(inputs, *rest)

    engine = TorchEngine(family.model, counting, max_batch_tokens=400)
    engine.logprobs([*prompts, *(blur(p) for p in prompts)])
    if family.name == "gemma" and "mm_encoder_outputs" not in forward_arguments(family.model):
        assert sum(seen) == len(prompts) * 2  # padded batches, and no features to share: transformers 5.17
        return
    assert sum(seen) == 4


@pytest.mark.parametrize("batch_tokens", [48, 300, 100_000])
def test_a_model_that_takes_no_features_takes_pixels(
    family: Family, pictures: list[Image.Image], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of transformers 5.17 do: a forward is given the pixels of those images whose tokens it holds."""
    without = forward_arguments(family.model) - {"mm_encoder_outputs"}
    monkeypatch.setattr("vig_ray.scoring.engines.features.forward_arguments", lambda _: without)
    made = make(family, pictures)
    found = TorchEngine(family.model, family.formatter.collate, max_batch_tokens=batch_tokens).logprobs(
        [*(prompt for prompt, _ in made), *(blur(prompt) for prompt, _ in made)]
    )

    def plain(model: Any) -> list[np.ndarray]:
        shown = [*made, *((prompt, [blurred(each) for each in used]) for prompt, used in made)]
        return [plain_logprobs(model, family.image_processor, prompt, used) for prompt, used in shown]

    expected, in_float64 = plain(family.model), plain(copy.deepcopy(family.model).double())
    # As in the test of the same numbers: as near as the plain forward in float32 is to that in float64.
    rounding = max(np.abs(a - b).max() for a, b in zip(expected, in_float64, strict=True))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=max(TOLERANCE["torch"][family.name], rounding), rtol=0)


def test_head_runs_on_answer_positions_only(family: Family, pictures: list[Image.Image]) -> None:
    prompt, _ = make(family, pictures)[1]
    rows: list[int] = []
    engine = TorchEngine(family.model, family.formatter.collate)
    handle = family.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(int(np.prod(output.shape[:-1])))
    )
    try:
        engine.logprobs([prompt, blur(prompt)])
    finally:
        handle.remove()
    assert sum(rows) == 2 * len(prompt.answer_positions)


def test_blind_computes_no_image_positions(family: Family, pictures: list[Image.Image]) -> None:
    if family.name == "gemma":
        pytest.skip("a sliding window counts places, so they have to stay")
    prompt, _ = make(family, pictures)[0]
    lengths: list[int] = []
    engine = TorchEngine(family.model, family.formatter.collate)
    handle = family.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: lengths.append(output.shape[1])
    )
    try:
        engine.logprobs([blind(prompt)])
    finally:
        handle.remove()
    assert lengths == [len(prompt.token_ids) - int(prompt.image_mask.sum())]


class _Scarce:
    """A model whose device has memory for so many tokens only: raises what CUDA raises above that."""

    def __init__(self, model: Any, most: int) -> None:
        self.most, self.refused = most, 0
        self._forward = model.model.forward
        model.model.forward = self._limited
        self._model = model

    def _limited(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].numel() > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return self._forward(*args, **kwargs)

    def restore(self) -> None:
        del self._model.model.forward


def test_out_of_memory_halves_the_batch_and_loses_nothing(family: Family, pictures: list[Image.Image]) -> None:
    made = make(family, pictures)
    prompts = [prompt for prompt, _ in made]
    engine = TorchEngine(family.model, family.formatter.collate, max_batch_tokens=100_000)
    expected = engine.logprobs(prompts)
    longest = max(len(p.token_ids) for p in prompts)
    scarce = _Scarce(family.model, longest)
    try:
        found = engine.logprobs(prompts)
        assert scarce.refused > 0
        assert engine.max_batch_tokens < 100_000
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        scarce.most = longest - 1
        found = engine.logprobs(prompts)
    finally:
        scarce.restore()
    failed = [result for result in found if isinstance(result, PromptError)]
    assert len(failed) == 1
    assert "OutOfMemory" in str(failed[0])
    assert isinstance(found[[len(p.token_ids) for p in prompts].index(longest)], PromptError)


def test_a_prompt_that_fails_costs_only_itself(family: Family, pictures: list[Image.Image]) -> None:
    prompts = [prompt for prompt, _ in make(family, pictures)]
    engine = TorchEngine(family.model, family.formatter.collate, max_batch_tokens=100_000)
    expected = engine.logprobs(prompts)
    ids = [set(prompt.token_ids.tolist()) for prompt in prompts]
    poison, forward = min(ids[5] - set().union(*ids[:5])), family.model.model.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        if (kwargs["input_ids"] == poison).any():
            raise ValueError("poisoned")
        return forward(*args, **kwargs)

    family.model.model.forward = failing
    try:
        found = engine.logprobs(prompts)
        fresh = TorchEngine(family.model, family.formatter.collate)
        with pytest.raises(ValueError, match="poisoned"):  # nothing has ever worked: not the data's fault
            fresh.logprobs([prompts[5]])
    finally:
        del family.model.model.forward
    for prompt, one, other in zip(prompts, found, expected, strict=True):
        if prompt is prompts[5]:
            assert str(one) == "ValueError: poisoned"
        else:
            np.testing.assert_allclose(one, other, atol=1e-5)


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, pictures: list[Image.Image]) -> None:
    formatter = load_formatter(CHECKPOINT)
    family = Family("llava", CHECKPOINT, None, formatter, None)
    prompts = [prompt for prompt, _ in make(family, pictures)]
    full = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate).logprobs(prompts)
    half = TorchEngine(load_model(CHECKPOINT, dtype=dtype, device="cpu"), formatter.collate).logprobs(prompts)
    for one, other in zip(half, full, strict=True):
        assert one.dtype == np.float32
        likely = other > -3
        np.testing.assert_allclose(one[likely], other[likely], atol=0.25)
        # Log-probs rounded to half precision would all be multiples of a coarse step.
        assert len(np.unique(one)) > len(one) // 2


def test_batches_hold_every_prompt_once_and_stay_within_their_budget() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 200) for _ in range(rng.randint(0, 40))]
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        batches = list(plan_batches(lengths, order, 256))
        assert [i for batch in batches for i in batch] == order
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_numbers(pictures: list[Image.Image]) -> None:
    formatter = load_formatter(CHECKPOINT)
    family = Family("llava", CHECKPOINT, None, formatter, None)
    prompts = [prompt for prompt, _ in make(family, pictures)]
    on_cpu = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate).logprobs(prompts)
    on_gpu = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cuda"), formatter.collate).logprobs(prompts)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
