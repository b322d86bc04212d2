"""The two blurs against scipy's convolution in float64, on photographs and on images made to show what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import get_args

import cv2
import numpy as np
import pytest
from scipy.ndimage import correlate1d
from sklearn.datasets import load_sample_images

from vig_ray.options import BlurName
from vig_ray.scoring.blur import blur_by, blur_fast, blur_kernel, blur_opencv, blur_parameters

WITHIN = 1.1
"""Grey levels from the exact Gaussian, the rounding to whole levels included."""


@lru_cache(maxsize=8)
def gaussian(side: int, kernel: int) -> np.ndarray:
    """The truncated Gaussian along a side as a matrix, float64 [side, side]: scipy's of each pixel alone.

    scipy's "mirror" is OpenCV's reflect-101.
    """
    taps = np.exp(-0.5 * ((np.arange(kernel) - kernel // 2) / (kernel - 1)) ** 2)
    found: np.ndarray = correlate1d(np.eye(side), taps / taps.sum(), axis=0, mode="mirror")
    return found


def exact(pixels: np.ndarray, kernel: int | None = None) -> np.ndarray:
    """The Gaussian by definition, unrounded: float64 [H, W, 3]."""
    height, width, _ = pixels.shape
    kernel = kernel or blur_kernel(width)
    planes = pixels.transpose(2, 0, 1).astype(np.float64)
    blurred = gaussian(height, kernel) @ planes @ gaussian(width, kernel).T
    return blurred.transpose(1, 2, 0)


def from_exact(pixels: np.ndarray) -> float:
    return float(np.abs(blur_fast(pixels) - exact(pixels)).max())


def photographs() -> dict[str, np.ndarray]:
    """Those that come with scikit-learn, 640 x 427."""
    found = load_sample_images()
    return dict(zip(("china", "flower"), found.images, strict=True))


def patterns(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Black and white, bool [H, W]: what has the most beyond what a reduced image can hold."""
    y, x = np.mgrid[:height, :width]
    for period in (*range(1, 10), 16, 50, 51, 101, 200):
        yield f"stripes across, {period}", x // period % 2 == 0
        yield f"stripes down, {period}", y // period % 2 == 0
        yield f"checkerboard, {period}", (x // period + y // period) % 2 == 0
    yield "diagonal stripes", (x + y) // 4 % 2 == 0
    yield "halves across", x < width // 2
    yield "halves down", y < height // 2
    yield "quarters", (x < width // 2) ^ (y < height // 2)
    yield "disc", (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2
    yield "noise", np.random.default_rng(0).random((height, width)) < 0.5
    yield "white", np.ones((height, width), dtype=bool)
    for row, column in itertools.product((0, height // 2, height - 1), (0, width // 2, width - 1)):
        yield f"pixel {row}, {column}", (y == row) & (x == column)
    for name, edge in (("left", x), ("right", width - 1 - x), ("top", y), ("bottom", height - 1 - y)):
        for thick in (1, 5):
            yield f"{thick} px at the {name}", edge < thick


def in_threes(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """The patterns as uint8 [H, W, 3], a different one in each channel."""
    named = list(patterns(height, width))
    for start in range(0, len(named), 3):
        three = named[start : start + 3]
        planes = [three[min(channel, len(three) - 1)][1] for channel in range(3)]
        yield "; ".join(name for name, _ in three), np.stack(planes, axis=2).astype(np.uint8) * 255


@pytest.mark.parametrize("width", [64, 224, 336, 499, 500, 640, 799, 800, 1024])
@pytest.mark.parametrize("name", ["china", "flower"])
def test_photographs(name: str, width: int) -> None:
    photograph = photographs()[name]
    for height in (photograph.shape[0] * width // 640, width):
        pixels = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
        assert from_exact(pixels) < 0.7  # as docs/scoring.md says


SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 7), (3, 5), (13, 200), (50, 51), (64, 65), (101, 66), (1, 501), (900, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_smaller_than_the_kernel(height: int, width: int) -> None:
    """The border is reflected as often as it takes, by OpenCV's rule."""
    for name, pixels in in_threes(height, width):
        assert from_exact(pixels) < WITHIN, name


@pytest.mark.parametrize(("height", "width"), [(336, 336), (181, 499), (333, 500), (240, 641)])
def test_patterns(height: int, width: int) -> None:
    for name, pixels in in_threes(height, width):
        assert from_exact(pixels) < WITHIN, name


@pytest.mark.parametrize("width", [799, 800, 1999, 2000])
def test_patterns_of_wide_images(width: int) -> None:
    for name, pixels in list(in_threes(131, width))[::3]:
        assert from_exact(pixels) < WITHIN, name


def test_noise_of_all_levels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (257, 383, 3)).astype(np.uint8)
    assert from_exact(pixels) < WITHIN


def test_tiles_leave_no_seam() -> None:
    """Images above 2048 pixels are blurred in tiles: around the corner where four meet, and on to the last edges."""
    photograph = cv2.resize(photographs()["china"], (2400, 2300), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(2).integers(0, 2, photograph.shape).astype(np.uint8) * 255
    noise[:2048, :2048] //= 2
    for pixels in (photograph, noise):
        blurred = blur_fast(pixels)
        assert blurred.shape == pixels.shape
        assert blurred.dtype == np.uint8
        around = exact(pixels[1700:, 1700:], 501)[251:, 251:]  # what lies 250 pixels off its cut edges is right
        assert np.abs(blurred[1951:, 1951:] - around).max() < WITHIN


def test_a_tall_image_goes_by_its_width() -> None:
    tall = np.random.default_rng(3).integers(0, 256, (2500, 30, 3)).astype(np.uint8)
    assert from_exact(tall) < WITHIN


def test_pixels_may_be_a_view_and_read_only() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    view = np.pad(pixels, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6]
    view.setflags(write=False)
    for blur in (blur_fast, blur_opencv):
        np.testing.assert_array_equal(blur(view), blur(pixels))
        np.testing.assert_array_equal(view, pixels)
        turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)
        np.testing.assert_array_equal(blur(turned), blur(pixels))


@pytest.mark.parametrize("width", [336, 640])
def test_nearer_than_opencv_on_photographs(width: int) -> None:
    """OpenCV's taps are whole 256ths, some 2.5 of them at 101; the two blurs are a level or two apart at most."""
    for photograph in photographs().values():
        pixels = cv2.resize(photograph, (width, width), interpolation=cv2.INTER_AREA)
        opencv, fast, wanted = blur_opencv(pixels).astype(float), blur_fast(pixels).astype(float), exact(pixels)
        assert np.abs(fast - wanted).mean() <= np.abs(opencv - wanted).mean()
        assert np.abs(fast - opencv).max() <= 2


@pytest.mark.parametrize("name", get_args(BlurName))
def test_blurs_by_name(name: BlurName) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    np.testing.assert_array_equal(blur_by(name)(pixels), {"fast": blur_fast, "opencv": blur_opencv}[name](pixels))
    parameters = blur_parameters(name)
    assert parameters["method"] == name
    assert parameters["kernel_by_width"] == {"2000": 501, "800": 301, "500": 201, "0": 101}
    assert ("cell_by_kernel" in parameters) == (name == "fast")
