"""`marginal` and `swap`: other images of the dataset in the sample's own place, each as large as it is.

    marginal    K images, the same for all samples; the reference is the mean of the K probabilities
    swap        one image of the sample's own source

What stands before the question is then the same for many samples, and an engine that knows images by their keys
computes it once. A sample never gets one of its own images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from vig_ray.dataset.images import MAX_PIXELS, load_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage, truncate
from vig_ray.model.shared_images import image_key
from vig_ray.options import OtherImagesName

OF_OTHER_IMAGES = get_args(OtherImagesName)
TooLong = Literal["error", "truncate"]
_KEPT_PIXELS = 1 << 20
"""Larger images are decoded anew where a processor makes samples as a whole; what it makes of one alone is kept."""


class About(NamedTuple):
    """What of a sample decides which images it gets, and how its prompt is made of them."""

    conversation: Sequence[Turn]
    source: str | None
    key: str


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn from a dataset, as its samples have them, each once, and the seed that drew them.

    `images`: by source, or for all under None, where `by_source` is False.
    """

    images: Mapping[str | None, Sequence[Mapping[str, Any]]]
    seed: int
    by_source: bool

    def parameters(self) -> dict[str, Any]:
        """What a record holds of them: the seed and a hash of their keys."""
        digest = hashlib.blake2b(digest_size=16)
        for source in sorted(self.images, key=str):
            digest.update(repr((source, [image_key(image) for image in self.images[source]])).encode())
        return {"seed": self.seed, "drawn": digest.hexdigest()}


class OtherImages:
    """One pass: a sample's conversation about images that aren't its own.

    `place`: which of the images that a sample may have it gets, from 0; of `swap`, where it is None, the sample's key
    decides. `pool`: the images by source, or under None for all.
    """

    def __init__(
        self,
        place: int | None,
        pool: Mapping[str | None, Sequence[PromptImage]],
        formatter: Formatter,
        seed: int,
        too_long: TooLong,
    ) -> None:
        self._place, self._pool, self._formatter = place, pool, formatter
        self._seed, self._too_long = seed, too_long

    def of(self, prompt: Prompt, about: About) -> Prompt:
        """The prompt with other images, whose tokens may be more or fewer than those of `prompt`.

        Raises PromptError where there is no other image, where the prompt is too long with it, and where the answer's
        tokens aren't those of `prompt`.
        """
        own = {image.key for image in prompt.images}
        pool = self._pool.get(about.source if self._place is None else None, ())
        others = [image for image in pool if image.key not in own]
        place = self._chosen(about.key, len(others)) if self._place is None else self._place
        if place >= len(others) or len(others) < len(prompt.images):
            raise PromptError("NoOther", f"{len(others)} images of {self._of()} aren't its own, too few")
        chosen = [others[(place + number) % len(others)] for number in range(len(prompt.images))]
        made = self._formatter.prompt(about.conversation, chosen)
        if len(made.token_ids) > self._formatter.max_length:
            if self._too_long == "error":
                raise PromptError("TooLong", f"{len(made.token_ids)} tokens with another image")
            made = truncate(made, self._formatter.max_length)
        if not np.array_equal(made.answer_ids, prompt.answer_ids):
            raise PromptError("Changed", "with another image its answer has other tokens, or is cut elsewhere")
        return made

    def _of(self) -> str:
        return "its source" if self._place is None else "those drawn"

    def _chosen(self, key: str, among: int) -> int:
        """Which of so many images the sample of a key gets."""
        if not among:
            return 0
        digest = hashlib.blake2b(f"{self._seed}\n{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % among


def pool_of(
    drawn: Drawn, formatter: Formatter, max_pixels: int = MAX_PIXELS
) -> dict[str | None, tuple[PromptImage, ...]]:
    """The drawn images on their way into the model; each is preprocessed once in a process."""
    by_key: dict[str, PromptImage] = {}

    def made(image: Mapping[str, Any]) -> PromptImage:
        key = image_key(image)
        if key not in by_key:
            load = partial(load_image, image, max_pixels=max_pixels)
            by_key[key] = PromptImage(key, load, formatter.preprocess)
        return by_key[key]

    return {source: tuple(made(image) for image in images) for source, images in drawn.images.items()}


def release(prompt: Prompt) -> None:
    """Forget the pixels of a prompt's images, once it has its arrays, where they are many."""
    for image in prompt.images:
        height, width = image.size
        if prompt.whole is None or height * width > _KEPT_PIXELS:
            image.release()
