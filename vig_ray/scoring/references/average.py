"""The picture of `blur-mean`: the mean of a dataset's blurred images, made once, by the driver of a job."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vig_ray.dataset.images import MAX_PIXELS, ImageError, load_image
from vig_ray.errors import StageError
from vig_ray.model.prompt import Pixels
from vig_ray.scoring.references.drawing import distinct_images
from vig_ray.scoring.references.same_picture import SIDE

log = logging.getLogger(__name__)

IMAGES = 256
"""How many images the mean is of, where the dataset has as many."""
_SEED = "blur-mean"  # of the hashes by which samples are chosen


def blur_mean_image(
    samples_directory: str, n: int, blur: Callable[[Pixels], Pixels], *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """The mean of `n` blurred images of a dataset, uint8 [SIDE, SIDE, 3]: each image is blurred by `blur` at its own
    size and resized by area, the mean is taken in float64 and rounded.

    The images are the first ones of the samples whose keys have the lowest hashes, each image once: the same ones
    whatever files the samples lie in. Those that can't be read are skipped, and how many is logged. Fewer than `n` are
    taken where there aren't more. Raises StageError where there is none.
    """
    total, count, bad = np.zeros((SIDE, SIDE, 3)), 0, 0
    first_cause = ""
    for image in distinct_images(samples_directory, n, _SEED):
        try:
            pixels = load_image(image, max_pixels=max_pixels)
        except ImageError as error:
            bad += 1
            first_cause = first_cause or f", such as {error}"
            continue
        total += cv2.resize(blur(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        count += 1
        if count == n:
            break
    if not count:
        unread = f"{bad:,} images that can't be read{first_cause}" if bad else "no sample with an image"
        raise StageError(f"{samples_directory}: {unread}: nothing to take the mean of for --reference blur-mean")
    if bad:
        log.warning("blur-mean: the mean of %d images; %d couldn't be read%s", count, bad, first_cause)
    return np.rint(total / count).astype(np.uint8)


def to_png(picture: Pixels) -> bytes:
    """A picture as the bytes of a PNG, which any process can be handed."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
