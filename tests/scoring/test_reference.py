"""The blur against its definition: a direct convolution written out here, and the kernel's table."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.options import ReferenceName
from vig_ray.scoring.blur import blur_kernel, blur_opencv
from vig_ray.scoring.reference import REFERENCES, blind, blur, make_reference


@pytest.mark.parametrize(
    ("width", "kernel"),
    [(1, 101), (499, 101), (500, 201), (799, 201), (800, 301), (1999, 301), (2000, 501), (9000, 501)],
)
def test_kernel_by_width(width: int, kernel: int) -> None:
    assert blur_kernel(width) == kernel


def reflected(index: int, size: int) -> int:
    """OpenCV's default border: the edge pixel is not repeated (dcb|abcd|cba)."""
    period = 2 * (size - 1)
    index = abs(index) % period
    return min(index, period - index)


def by_definition(pixels: np.ndarray) -> np.ndarray:
    """A Gaussian of 101 taps and sigma 100, along each axis, in float64.

    OpenCV's is in fixed point with 8 bits for a tap of about 2.5/256, so it is off by up to two levels; a PIL or torch
    blur of the same sigma is off by more at the borders.
    """
    taps = np.exp(-0.5 * ((np.arange(101) - 50) / 100.0) ** 2)
    taps /= taps.sum()
    out = pixels.astype(np.float64)
    for axis in (0, 1):
        size = pixels.shape[axis]
        moved = np.moveaxis(out, axis, 0)
        blurred = np.zeros_like(moved)
        for offset, tap in zip(range(-50, 51), taps, strict=True):
            blurred += tap * moved[[reflected(i + offset, size) for i in range(size)]]
        out = np.moveaxis(blurred, 0, axis)
    return out


@pytest.mark.parametrize("size", [(40, 60), (13, 200), (150, 120)])
def test_blur_is_the_gaussian_it_says(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    pixels[:, : size[1] // 2, 0] = 255
    assert np.abs(blur_opencv(pixels).astype(float) - by_definition(pixels)).max() <= 2.5


def test_kernel_goes_by_width_not_by_height() -> None:
    tall = np.random.default_rng(0).integers(0, 256, (900, 60, 3)).astype(np.uint8)
    rows = [0, 450, 899]
    np.testing.assert_allclose(blur_opencv(tall)[rows], by_definition(tall)[rows], atol=2.5)


def prompt_with(image: PromptImage) -> Prompt:
    ids = np.arange(6, dtype=np.int32)
    return Prompt(ids, ids[4:], ids[:2] * 0, ids == 2, np.array([[2, 3]], dtype=np.int32), (image,))


def test_references_leave_the_text_alone_and_rename_the_image() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    image = PromptImage("a.png", lambda: pixels, lambda p: {"pixel_values": p})
    prompt = prompt_with(image)
    blurry, hidden = blur(prompt), blind(prompt)
    for other in (blurry, hidden):
        assert other.token_ids is prompt.token_ids
        assert other.answer_positions is prompt.answer_positions
    assert blurry.images[0].key != "a.png"
    np.testing.assert_array_equal(blurry.images[0].inputs["pixel_values"], blur_opencv(pixels))
    assert hidden.hide_images
    assert hidden.length == 5
    assert not prompt.hide_images


def test_an_image_is_blurred_once_for_all_its_samples() -> None:
    calls = []

    def load() -> np.ndarray:
        calls.append(1)
        return np.zeros((8, 8, 3), np.uint8)

    image = PromptImage("a.png", load, lambda p: {"pixel_values": p})
    assert blur(prompt_with(image)).images[0] is blur(prompt_with(image)).images[0]
    for _ in range(3):
        _ = blur(prompt_with(image)).images[0].inputs, image.inputs
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["blur", "mean", "noise", "vcd"])
def test_an_image_whose_pixels_were_released_is_not_decoded_again(name: Any, demo_formatter: Any) -> None:
    """For the next sample that names it."""
    calls = []

    def load() -> np.ndarray:
        calls.append(1)
        return np.zeros((8, 12, 3), np.uint8)

    image = PromptImage("a.png", load, demo_formatter.preprocess)
    without = make_reference(name, formatter=demo_formatter).without_image
    for _ in range(2):
        _ = image.inputs, without(prompt_with(image)).images[0].inputs
        image.release()
    assert len(calls) == 1


def test_references_know_their_names_and_what_they_need(demo_formatter: Any) -> None:
    for name in get_args(ReferenceName):
        if name != "blur-mean":
            reference = make_reference(name, formatter=demo_formatter)
            assert (reference.name, reference.needs_hiding) == (name, name == "blind")
    assert set(REFERENCES) < set(get_args(ReferenceName))
