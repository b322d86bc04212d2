"""Images of rows of `samples/`, each made once for all rows that name it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vig_ray.dataset.images import load_image
from vig_ray.model.prompt import ImageInputs, Pixels, PromptImage


def image_key(image: Mapping[str, Any]) -> str:
    """What an image of `samples/` is known by: its path or URI, or a hash of its bytes."""
    return str(image["uri"] or hashlib.blake2b(image["bytes"] or b"", digest_size=16).hexdigest())


class SharedImages:
    """The images of a block of rows: those that name the same one share its decoding and what is made of it.

    `preprocess`: the formatter's. `max_pixels`: more are refused as they are decoded, at first use.
    """

    def __init__(self, preprocess: Callable[[Pixels], ImageInputs], max_pixels: int) -> None:
        self._preprocess, self._max_pixels = preprocess, max_pixels
        self._by_key: dict[str, PromptImage] = {}

    def of(self, row: Mapping[str, Any]) -> list[PromptImage]:
        """The images of a row, in its order."""
        return [self._image(image) for image in row["images"] or ()]

    def _image(self, image: Mapping[str, Any]) -> PromptImage:
        key = image_key(image)
        if key not in self._by_key:
            load = partial(load_image, image, max_pixels=self._max_pixels)
            self._by_key[key] = PromptImage(key, load, self._preprocess)
        return self._by_key[key]
