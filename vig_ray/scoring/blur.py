"""The blur of Xing et al. (arXiv 2503.13891), which VIG's appendix B follows: no visual cue is left."""

from __future__ import annotations

import cv2

from vig_ray.model.prompt import Pixels


def blur_kernel(width: int) -> int:
    """The side of the blur's kernel in pixels, by the image's width in pixels."""
    for least, kernel in ((2000, 501), (800, 301), (500, 201)):
        if width >= least:
            return kernel
    return 101


def blur_opencv(pixels: Pixels) -> Pixels:
    """Blur uint8 [H, W, 3]: Gaussian of kernel k (by width) and sigma k - 1, borders reflected (OpenCV's default)."""
    kernel = blur_kernel(pixels.shape[1])
    blurred: Pixels = cv2.GaussianBlur(pixels, (kernel, kernel), sigmaX=kernel - 1, sigmaY=kernel - 1)
    return blurred
