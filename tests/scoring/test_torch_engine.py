"""The torch engine itself: what it computes and what it doesn't, what fails, memory, precision, and the GPU."""

from __future__ import annotations

import copy
import random
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from tests.oracle import blurred, plain_logprobs
from tests.scoring.families import TOLERANCE, Family, family_of, make
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.arrays import tensors
from vig_ray.model.head import forward_arguments
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import PromptError
from vig_ray.scoring.engines.forwards import plan_batches
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.reference import blind, blur


@pytest.fixture(scope="module", params=["llava", "qwen", "gemma"])
def family(request: pytest.FixtureRequest, folders: dict[str, str]) -> Family:
    return family_of(request.param, folders)


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
