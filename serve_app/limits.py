"""Limits: samples under way, images and pixels of a request, and its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from serve_app.errors import RequestError, WholeRequestError, busy
from serve_app.prepare import image_error
from vig_ray.dataset.images import ImageError, image_size
from vig_ray.dataset.schema import Sample


class Place:
    """What one request holds: a place for one sample until it is known how many the request has."""

    def __init__(self, places: Places) -> None:
        self._places, self.samples = places, 1

    def grow(self, samples: int) -> None:
        """Hold places for `samples`. Raises RequestError where the other requests have filled all meanwhile."""
        self._places.check(self._places.taken - self.samples)
        self.set(samples)

    def set(self, samples: int) -> None:
        """Hold places for `samples`, whatever the others hold."""
        self._places.taken += samples - self.samples
        self.samples = samples


class Places:
    """Counts the samples under way in this process. The last request to come in may go beyond `total`."""

    def __init__(self, total: int) -> None:
        self._total, self.taken = total, 0

    def check(self, taken: int) -> None:
        """Raise RequestError where `taken` places leave none free."""
        if taken >= self._total:
            raise busy(f"{taken} samples are under way; try again in a moment")

    @contextmanager
    def hold(self) -> Iterator[Place]:
        """A place, from before the body is read until the answer is there. Raises RequestError where none is free."""
        self.check(self.taken)
        place = Place(self)
        self.taken += 1
        try:
            yield place
        finally:
            self.taken -= place.samples


@asynccontextmanager
async def time_limit(until: float, error: RequestError) -> AsyncIterator[None]:
    """Raise `error` where the block isn't done at `until`, on the event loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as timeout:
        raise error from timeout


def check_images(images: int, max_images: int) -> None:
    """Raise WholeRequestError where a request has more than `max_images` images."""
    if images > max_images:
        raise WholeRequestError(413, "TooLarge", f"{images} images, and a request may have {max_images} (--max-images)")


def pixels_of(sample: Sample, *, max_image_pixels: int, max_decoded_pixels: int) -> int:
    """The pixels that a sample's images take once decoded, by their headers. Raises RequestError.

    An image counts as the square of its longer side, since processors pad to one. All images of a sample are decoded at
    a time, and one sample at a time: so `max_decoded_pixels` bounds what is decoded at a time.
    """
    pixels = 0
    for image in sample.images:
        assert image.bytes is not None
        try:
            pixels += max(image_size(image.bytes, max_pixels=max_image_pixels)) ** 2
        except ImageError as error:
            raise image_error(error) from error
    if pixels > max_decoded_pixels:
        raise RequestError(
            413,
            "TooLarge",
            f"the sample's images have {pixels:,} pixels, each image counted as a square, and the limit of what is "
            f"decoded at a time is {max_decoded_pixels:,} (--max-decoded-pixels)",
        )
    return pixels


def check_pixels(pixels: int, max_pixels: int) -> None:
    """Raise WholeRequestError where a request's images have more than `max_pixels` pixels together."""
    if pixels > max_pixels:
        raise WholeRequestError(
            413,
            "TooLarge",
            f"the images have {pixels:,} pixels, each image counted as a square, and a request may have {max_pixels:,} "
            "(--max-request-pixels)",
        )
