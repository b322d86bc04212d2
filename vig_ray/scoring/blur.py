"""The blur of Xing et al. (arXiv 2503.13891), which VIG's appendix B follows: no visual cue is left.

A Gaussian of kernel k, by the image's width, and sigma k - 1, borders reflected about the edge pixel (OpenCV's
default), on the uint8 image at its original size. Two ways to it: `opencv` convolves, in OpenCV's fixed point; `fast`
takes less than a tenth of the time and is nearer to the exact Gaussian: 0.7 grey levels at most on photographs, its
rounding included, 0.8 on stripes, checkerboards, edges and noise.

With sigma that near to k the Gaussian is cut off at 0.88 of its height: it is a box, and a small, smooth rest. What is
sharp in a blurred image, the kinks where an edge enters or leaves the kernel, is the box's. So

    fast = e * box + enlarged(gauss - e * box, of the image reduced by area),   e = the kernel's edge over its mean

with the box exact at full size, in time that doesn't depend on k, and `gauss` and `box` of the reduced image exact for
an image that is constant in each cell. e is such that what is enlarged has no jump at the kernel's edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from vig_ray.model.prompt import Pixels

if TYPE_CHECKING:  # a GPU's machine may be without pydantic
    from vig_ray.options import BlurName

_Floats = npt.NDArray[np.float32]

KERNEL_BY_WIDTH = {2000: 501, 800: 301, 500: 201, 0: 101}
"""The kernel's side in pixels, by the least width of the images that have it."""
CELL_BY_KERNEL = {501: 16, 301: 8, 201: 8, 101: 4}
"""The side in pixels of the cells that `fast` reduces to.

On photographs, stripes and noise each keeps it within 0.3 grey levels before rounding; an image made of the worst signs
for one pixel of a corner takes it to 1.
"""
_UNREDUCED = 64
"""Sides up to this many pixels aren't reduced."""
_TILE = 2048
"""Larger images are blurred in tiles of this side: the matrices grow with its square."""
_STRIP = 64
"""Rows that are enlarged at a time: floats of the whole image cost memory, and the system's time to hand it out."""


def blur_kernel(width: int) -> int:
    """The side of the blur's kernel in pixels, by the image's width in pixels."""
    return next(kernel for least, kernel in KERNEL_BY_WIDTH.items() if width >= least)


def blur_opencv(pixels: Pixels) -> Pixels:
    """Blur uint8 [H, W, 3] by OpenCV's convolution."""
    kernel = blur_kernel(pixels.shape[1])
    blurred: Pixels = cv2.GaussianBlur(pixels, (kernel, kernel), sigmaX=kernel - 1, sigmaY=kernel - 1)
    return blurred


def blur_fast(pixels: Pixels) -> Pixels:
    """Blur uint8 [H, W, 3] by a box at full size and the rest at a reduced one."""
    height, width, _ = pixels.shape
    kernel = blur_kernel(width)
    if max(height, width) <= _TILE:
        return _blur(pixels, kernel)
    around = kernel // 2 + 2 * CELL_BY_KERNEL[kernel]  # what a tile's pixels are made of, interpolation included
    blurred = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            above, before = max(0, top - around), max(0, left - around)
            tile = _blur(pixels[above : top + _TILE + around, before : left + _TILE + around], kernel)
            blurred[top : top + _TILE, left : left + _TILE] = tile[top - above :, left - before :][:_TILE, :_TILE]
    return blurred


def _blur(pixels: Pixels, kernel: int) -> Pixels:
    """`blur_fast` of an image whose matrices may be as large as its sides."""
    height, width, _ = pixels.shape
    edge = float(gaussian(kernel)[0] * kernel)
    rows, columns = _cells(height, kernel), _cells(width, kernel)
    box: _Floats = cv2.boxFilter(pixels, cv2.CV_32F, (kernel, kernel))
    reduced = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    planes = np.ascontiguousarray(reduced.transpose(2, 0, 1), dtype=np.float32)
    # Down the columns: each row of the product is [gauss | box]; along the rows: gauss - e * box of that.
    down = np.stack(_weights(height, rows, kernel), axis=1).reshape(2 * rows, rows)
    gauss, mean = _weights(width, columns, kernel)
    along = np.concatenate([gauss.T, -edge * mean.T])
    rest = np.ascontiguousarray(((down @ planes).reshape(3, rows, 2 * columns) @ along).transpose(1, 2, 0))
    tall = cv2.resize(rest, (columns, height), interpolation=cv2.INTER_LINEAR)
    blurred = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, height, _STRIP):
        strip = slice(top, min(top + _STRIP, height))
        enlarged = cv2.resize(tall[strip], (width, strip.stop - top), interpolation=cv2.INTER_LINEAR)
        cv2.addWeighted(box[strip], edge, enlarged, 1, 0, dst=blurred[strip], dtype=cv2.CV_8U)
    return blurred


def gaussian(kernel: int) -> npt.NDArray[np.float64]:
    """The taps of the truncated Gaussian of sigma kernel - 1, float64 [kernel], of sum 1."""
    taps = np.exp(-0.5 * ((np.arange(kernel) - kernel // 2) / (kernel - 1)) ** 2)
    return np.asarray(taps / taps.sum())


def _cells(side: int, kernel: int) -> int:
    """How many cells a side of so many pixels has."""
    return side if side <= _UNREDUCED else -(-side // CELL_BY_KERNEL[kernel])


@lru_cache(maxsize=256)  # a few hundred kB each at most
def _weights(side: int, cells: int, kernel: int) -> tuple[_Floats, _Floats]:
    """What the Gaussian and the box give at each cell's centre, as weights of the cells' means: float32 [cells, cells].

    Exact for pixels that are constant in each cell, with the border reflected pixel by pixel, as often as it takes.
    """
    borders = np.arange(cells + 1) * side / cells
    pixel = np.arange(side)[:, None]
    share = np.clip(np.minimum(pixel + 1, borders[1:]) - np.maximum(pixel, borders[:-1]), 0, None)  # [side, cells]
    period = max(2 * (side - 1), 1)
    line = np.arange(-(kernel // 2), side + kernel // 2) % period  # the pixels and what is reflected around them
    share = share[np.minimum(line, period - line)]
    centres = (borders[:-1] + borders[1:] - 1) / 2
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    above = (centres - low)[:, None]
    found = []
    for taps in (gaussian(kernel), np.full(kernel, 1 / kernel)):
        shifted = sliding_window_view(np.pad(taps, side), len(line))  # [side - i]: the taps around pixel i
        at_centres = shifted[side - low] * (1 - above) + shifted[side - high] * above
        found.append((at_centres @ share).astype(np.float32))
    return found[0], found[1]


def blur_by(name: BlurName) -> Callable[[Pixels], Pixels]:
    """The blur of that name: uint8 [H, W, 3] to the same."""
    return {"fast": blur_fast, "opencv": blur_opencv}[name]


def blur_parameters(name: BlurName) -> dict[str, Any]:
    """What a record holds of that blur."""
    parameters: dict[str, Any] = {
        "method": name,
        "kernel_by_width": {str(width): kernel for width, kernel in KERNEL_BY_WIDTH.items()},
        "sigma": "kernel - 1",
    }
    if name == "fast":
        parameters["cell_by_kernel"] = {str(kernel): cell for kernel, cell in CELL_BY_KERNEL.items()}
    return parameters
