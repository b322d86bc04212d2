"""Fuyu's images for the plain prompt: patches that go into the language model without a vision tower.

A model of one Transformer, as PRIOR's second kind (section 3.1). What Fuyu's own processor makes of an image and no
text is what a caption follows: a token a patch, one at each row's end, BOS, and the token at which an answer begins.
Fuyu has no chat template, so `--template plain` is the only prompt for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vig_ray.compat.transformers import image_options, process_image
from vig_ray.model.arrays import tensors
from vig_ray.model.processor import as_array
from vig_ray.model.prompt import ImageArrays, ImageInputs, Pixels, PromptError, PromptImage

PATCHES = "image_patches"
_BEGINS_ANSWER = "<0x04>"
_SIZES = ((30, 30), (64, 96), (200, 61), (60, 300), (1200, 1600))  # height, width


class FuyuImages:
    """What `vig_ray.model.plain` takes of a Fuyu. `processor`: a transformers FuyuProcessor.

    Raises PromptError where this makes other tokens or patches than the processor's own call.
    """

    def __init__(self, processor: Any, *, image_token_id: int, max_length: int) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token_id, self.max_length = image_token_id, max_length
        self._options = image_options(processor)
        tokens = (processor.image_token, processor.image_newline_token, self.tokenizer.bos_token)
        self._tokens = re.compile("|".join(map(re.escape, tokens)))
        self._check()

    def encode(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """A text's token ids by itself, int32 [n], and the characters of each, int64 [n, 2]."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.asarray(encoded["input_ids"], dtype=np.int32), offsets

    def before_caption(self, image: PromptImage | None) -> npt.NDArray[np.int32]:
        """What a caption follows, int32 [n]: of an image what its processor has for it, else BOS alone."""
        if image is None:
            return np.asarray([self.tokenizer.bos_token_id], dtype=np.int32)
        text = str(getattr(image.inputs, "text", ""))
        ids = [self.tokenizer.convert_tokens_to_ids(token) for token in self._tokens.findall(text)]
        return np.concatenate([np.asarray(ids, dtype=np.int32), self.encode(_BEGINS_ANSWER)[0]])

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """An image's patches, {"image_patches": float32 [patches, 3 x side x side]}; with the text in its place."""
        made, text = process_image(self.processor, Image.fromarray(pixels), self._options)
        return ImageArrays({PATCHES: as_array(made[PATCHES])}, text)

    @property
    def mean(self) -> tuple[float, ...]:
        """The image processor's."""
        return tuple(float(x) for x in np.broadcast_to(self.processor.image_processor.image_mean, 3))

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """As they are: the image processor has normalised them."""
        return inputs

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """The patches of several images, one after the other: the model puts them at the image tokens in this order."""
        return tensors([{PATCHES: image[PATCHES]} for image in inputs], device, dtype)

    def identity(self) -> dict[str, Any]:
        """Tokenizer and image processor."""
        return {
            "family": "fuyu",
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "image_token_id": self.image_token_id,
            "image_processor": self.processor.image_processor.to_dict(),
        }

    def _check(self) -> None:
        for height, width in _SIZES:
            pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
            given = self.processor(images=[Image.fromarray(pixels)], text="", return_tensors="pt")
            image = PromptImage("probe", lambda: pixels, self.preprocess)  # noqa: B023
            ids, patches = self.before_caption(image), image.inputs[PATCHES]
            alike = np.array_equal(ids, np.asarray(given["input_ids"]).reshape(-1))
            if not alike or not np.array_equal(patches, as_array(given[PATCHES]).reshape(patches.shape)):
                raise PromptError(
                    "Processor", f"an image of {width}x{height} pixels comes out otherwise than by itself"
                )
