"""One suite for every engine: the same numbers as a plain one-sample transformers forward, whatever the batch."""

from __future__ import annotations

import copy
import pickle
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from tests.oracle import blurred, plain_logprobs
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.arrays import tensors
from vig_ray.model.head import forward_arguments
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import Engine
from vig_ray.scoring.engines.forwards import plan_batches
from vig_ray.scoring.engines.load import vllm_installed
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.reference import blind, blur, make_reference
from vig_ray.scoring.references.average import to_png

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
    for number, (prompt, logp, other) in enumerate(zip(changed, found[len(prompts) :], clean, strict=True)):
        inputs = [image.inputs for image in prompt.images]

        def processed(inputs: Any = inputs, **_: Any) -> Any:
            return family.formatter.collate(inputs, "cpu", torch.float32)

        expected = plain_logprobs(family.model, processed, prompt, inputs)
        exact = plain_logprobs(in_float64, processed, prompt, inputs)
        off = 2 * np.abs(expected - exact).max()
        np.testing.assert_allclose(logp, exact, atol=max(under_test.tolerance, off), rtol=0)
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
    # And nothing from the last answer token on, which predicts no other.
    assert lengths == [int(prompt.answer_positions[-1]) - int(prompt.image_mask.sum())]


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
            np.testing.assert_allclose(one, other, atol=2e-5)  # each within 1e-5 of the truth
        scarce.most = longest - 2  # the last answer token isn't computed
        found = engine.logprobs(prompts)
        if "by parts" in engine.packed:  # a prompt is cut where it doesn't fit
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-5)
            scarce.most = 8  # fewer than any row is cut to
            found = engine.logprobs(prompts)
    finally:
        scarce.restore()
    failed = [place for place, result in enumerate(found) if isinstance(result, PromptError)]
    assert all("OutOfMemory" in str(found[place]) for place in failed)
    if "by parts" in engine.packed:
        assert failed == list(range(len(prompts)))
    else:
        assert failed == [[len(p.token_ids) for p in prompts].index(longest)]


def test_a_prompt_that_fails_costs_only_itself(family: Family, pictures: list[Image.Image]) -> None:
    prompts = [prompt for prompt, _ in make(family, pictures)]
    engine = TorchEngine(family.model, family.formatter.collate, max_batch_tokens=100_000)
    expected = engine.logprobs(prompts)
    ids = [set(prompt.token_ids[: prompt.answer_positions[-1]].tolist()) for prompt in prompts]
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
            np.testing.assert_allclose(one, other, atol=2e-5)  # each within 1e-5 of the truth


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


class Waits(TorchFunctionMode):
    """What our own code calls that waits for the device: a tensor's value, or a size that depends on one."""

    VALUES = (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "masked_select",
        "unique",
        "__bool__",
        "__int__",
        "__float__",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        index = args[1] if name == "__getitem__" else ()
        by_mask = any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool
            for one in (index if isinstance(index, tuple) else (index,))
        )
        if name in self.VALUES or by_mask:
            caller = next(each for each in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in each.filename)
            if "/vig_ray/" in caller.filename:
                self.found.append(f"{Path(caller.filename).name} {caller.name}: {name}")
        return function(*args, **(kwargs or {}))


def test_rows_wait_for_the_device_once(family: Family, pictures: list[Image.Image]) -> None:
    """So a GPU has its next row before it is done with the last: only the log-probs are waited for, at the end."""
    if family.name == "gemma":
        pytest.skip("isn't run as a tree")
    engine = TorchEngine(family.model, family.formatter.collate, max_batch_tokens=64)
    turns = [Turn("user", "<image>\nWhat?"), Turn("assistant", "A red circle on the left of a blue square.")]
    prompts = [
        family.formatter.prompt(turns, [family.image(str(n), picture)]) for n, picture in enumerate(pictures)
    ]  # fmt: skip
    rows: list[Any] = []
    with family.model.model.register_forward_pre_hook(lambda *given: rows.append(given)), Waits() as waits:
        engine.logprobs([each for prompt in prompts for each in (prompt, blur(prompt))])
    assert len(rows) > 4
    # Positions are computed on the CPU, before the first row.
    assert [each for each in waits.found if "position" not in each and each != "tree.py <listcomp>: numpy"] == [
        "tree.py run: cpu"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_go_to_the_gpu_without_a_wait(pictures: list[Image.Image]) -> None:
    """By PyTorch's own watch over synchronising calls."""
    formatter = load_formatter(CHECKPOINT)
    inputs = [formatter.preprocess(np.asarray(picture)) for picture in pictures]
    expected = formatter.collate(inputs, "cpu", torch.float32)["pixel_values"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [formatter.collate(inputs, "cuda", torch.float32), tensors(inputs, "cuda", torch.float32)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found[0]["pixel_values"].cpu(), expected)
    joined = torch.from_numpy(np.concatenate([each["pixel_values"] for each in inputs]))
    assert torch.equal(found[1]["pixel_values"].cpu(), joined)


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
