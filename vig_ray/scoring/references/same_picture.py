"""One picture for all samples, in place of each image, at that image's size: `mean`, `blur-mean` and `noise`.

What stands before the question is then the same for all samples whose images come out alike, and an engine that knows
images by their keys computes it once. LLaVA pads with the mean colour and resizes to a fixed size, so the mean picture
comes out alike for all; a model that keeps sizes (Qwen2.5-VL) has one for each.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from vig_ray.model.prompt import Formatter, ImageInputs, Pixels, Prompt, PromptError, PromptImage, prepared_image

SIDE = 336
"""Height and width, pixels, of the pictures that are made once and resized to each image's size."""

_BYTES_KEPT = 256 << 20
Painter = Callable[[int, int], Pixels]
"""The picture at a height and a width in pixels, uint8 [height, width, 3]."""


def plain(colour: tuple[int, int, int]) -> Painter:
    """A picture of one colour."""

    def paint(height: int, width: int) -> Pixels:
        return np.full((height, width, 3), colour, dtype=np.uint8)

    return paint


def resized(picture: Pixels, interpolation: int) -> Painter:
    """A picture of another size, by one of OpenCV's interpolations."""

    def paint(height: int, width: int) -> Pixels:
        return np.asarray(cv2.resize(picture, (width, height), interpolation=interpolation))

    return paint


def noise_picture(seed: int) -> Pixels:
    """Noise without any structure: each channel of each pixel uniform over 0 to 255. uint8 [SIDE, SIDE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def mean_colour(formatter: Formatter) -> tuple[int, int, int]:
    """The image processor's mean colour, rounded down as LLaVA does where it pads: CLIP's is (122, 116, 104)."""
    red, green, blue = (int(value * 255) for value in formatter.mean)
    return red, green, blue


def picture_digest(picture: Pixels) -> str:
    """A hash of a picture's size and pixels, 32 hex digits."""
    size = np.asarray(picture.shape, dtype=np.int64).tobytes()
    return hashlib.blake2b(size + np.ascontiguousarray(picture).tobytes(), digest_size=16).hexdigest()


class SamePicture:
    """A reference: a prompt to the prompt with the same picture in place of each of its images.

    An image of the result is called "NAME#HASH", of what the model is given for it: the keys are equal where that is,
    and differ where it does. It is made once a size. Where the processor makes samples as a whole, what the model is
    given for an image is no one's, and the hash is the picture's. May be called from many threads.
    """

    def __init__(self, name: str, paint: Painter, formatter: Formatter) -> None:
        self._name, self._paint, self._formatter = name, paint, formatter
        self._keys: dict[tuple[int, int], str] = {}
        self._images: OrderedDict[str, PromptImage] = OrderedDict()  # the last ones used, by key
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, prompt: Prompt) -> Prompt:
        """Raises PromptError where the model's processor makes another number of tokens of the picture."""
        if prompt.whole is not None:
            images = tuple(self._unprocessed(*image.size) for image in prompt.images)
            return replace(prompt, images=images, whole=prompt.whole.of(images))
        return replace(prompt, images=tuple(self._in_place_of(image) for image in prompt.images))

    def _unprocessed(self, height: int, width: int) -> PromptImage:
        pixels = self._paint(height, width)
        return PromptImage(f"{self._name}#{picture_digest(pixels)}", lambda: pixels, self._formatter.preprocess)

    def _in_place_of(self, image: PromptImage) -> PromptImage:
        with self._lock:
            made = self._processed(image.size)
        text = getattr(image.inputs, "text", None)
        if text is not None and text != getattr(made.inputs, "text", None):
            raise PromptError("Processor", "another picture of the same size gives other token ids")
        return made

    def _processed(self, size: tuple[int, int]) -> PromptImage:
        key = self._keys.get(size)
        if key is not None and key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        inputs = self._formatter.preprocess(self._paint(*size))
        key = self._keys[size] = f"{self._name}#{self._digest(inputs)}"
        if key not in self._images:
            self._images[key] = prepared_image(key, inputs)
            self._bytes += _size(inputs)
        self._images.move_to_end(key)
        while self._bytes > _BYTES_KEPT and len(self._images) > 1:
            _, oldest = self._images.popitem(last=False)
            self._bytes -= _size(oldest.inputs)
        return self._images[key]

    def _digest(self, inputs: ImageInputs) -> str:
        """A hash of the arguments that the model gets."""
        import torch

        found = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self._formatter.collate([inputs], "cpu", torch.float32).items()):
            found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def _size(inputs: ImageInputs) -> int:
    return sum(array.nbytes for array in inputs.values())
