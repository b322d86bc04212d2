"""The picture of `blur-mean`: the mean of a dataset's blurred images, made once, by the driver of a job."""

from __future__ import annotations

import hashlib
import heapq
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vig_ray.dataset.images import MAX_PIXELS, ImageError, load_image
from vig_ray.errors import StageError
from vig_ray.model.prompt import Pixels
from vig_ray.scoring.references.same_picture import SIDE
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.order import hashes

log = logging.getLogger(__name__)

IMAGES = 256
"""How many images the mean is of, where the dataset has as many."""
_SEED = "blur-mean"  # of the hashes by which samples are chosen


class _Place(NamedTuple):
    """Where a sample lies, in the order in which samples are taken: by a hash of their keys."""

    hash: int
    path: str
    group: int
    row: int


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
    for image in _images(samples_directory, n):
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


def _images(directory: str, n: int) -> Iterator[Mapping[str, Any]]:
    """Distinct images as the samples table has them, in the order of their samples' hashes."""
    fs, _ = filesystem(directory)
    seen = set()
    many = n
    last: _Place | None = None
    while True:
        # Few samples have what is needed as a rule; where most are text, four times as many are looked at next.
        chosen = heapq.nsmallest(many, (place for place in _places(directory, fs) if last is None or place > last))
        images: dict[_Place, Mapping[str, Any]] = {}
        for path, group in dict.fromkeys((place.path, place.group) for place in sorted(chosen, key=_by_file)):
            with pq.ParquetFile(path, filesystem=fs) as file:
                column = file.read_row_group(group, columns=["images"])["images"]
            for place in chosen:
                if (place.path, place.group) == (path, group) and (first := (column[place.row].as_py() or [None])[0]):
                    images[place] = first
        for place in chosen:
            image = images.get(place)
            key = image and (image["uri"] or hashlib.blake2b(image["bytes"] or b"", digest_size=16).digest())
            if image is not None and key not in seen:
                seen.add(key)
                yield image
        if len(chosen) < many:
            return
        last, many = chosen[-1], 4 * many


def _by_file(place: _Place) -> tuple[str, int]:
    return place.path, place.group


def _places(directory: str, fs: Any) -> Iterator[_Place]:
    for path in parquet_files(directory):
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["sample_key"])["sample_key"]
                for row, value in enumerate(hashes(keys, _SEED).tolist()):
                    yield _Place(value, path, group, row)
