"""What a model's vision side makes of images, once an image: prompts that share one share its features."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vig_ray.model.arrays import on_device
from vig_ray.model.head import forward_arguments
from vig_ray.model.prompt import ImageInputs, PromptImage

Collate = Callable[[Sequence[ImageInputs], Any, Any], dict[str, Any]]


class _Features(NamedTuple):
    """One image's: those that its tokens become, and those that are added to them deeper in the model (DeepStack)."""

    pooled: torch.Tensor
    deeper: tuple[torch.Tensor, ...]


class ImageFeatures:
    """The features of images of one model, kept by the image's key until they are forgotten.

    `collate` turns image inputs of a formatter into the model's vision arguments. Where a model doesn't take features,
    or gives such as can't be told apart by image, it takes the arrays of every image each time.
    """

    def __init__(self, model: Any, collate: Collate) -> None:
        self._collate = collate
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._makes = model if hasattr(model, "get_image_features") else getattr(model, "model", model)
        self._shared = "mm_encoder_outputs" in forward_arguments(model)
        self._stacked = False  # whether the model's features of several images are one tensor
        self._output: type[Any] = BaseModelOutputWithPooling
        self._made: dict[str, _Features] = {}

    def arguments(
        self, images: Sequence[PromptImage], *, ahead: Iterable[PromptImage] = (), at_once: int = 1
    ) -> dict[str, Any]:
        """The forward's arguments for these images, in the order of their tokens.

        What is missing is made, `at_once` images together: where these are fewer, of those that come next, `ahead`.
        """
        if not images:
            return {}
        if self._shared:
            missing = {image.key: image for image in images if image.key not in self._made}
            for image in ahead if missing else ():
                if len(missing) >= at_once:
                    break
                if image.key not in self._made:
                    missing[image.key] = image
            for part in _alike(list(missing.values()), at_once):
                if not self._make(part):
                    self._shared = False
                    break
        if not self._shared:
            return self._collate([image.inputs for image in images], self._device, self._dtype)
        made = [self._made[image.key] for image in images]
        pooled = [each.pooled for each in made]
        output = self._output(pooler_output=torch.stack(pooled) if self._stacked else pooled)
        if made[0].deeper:
            output.deepstack_features = [list(layer) for layer in zip(*(each.deeper for each in made), strict=True)]
        arguments: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
        grids = [image.inputs["image_grid_thw"] for image in images if "image_grid_thw" in image.inputs]
        if grids:
            arguments["image_grid_thw"] = on_device(np.concatenate(grids), self._device)
        return arguments

    def _make(self, images: Sequence[PromptImage]) -> bool:
        """Make the features of images; False where they can't be told apart."""
        arguments = self._collate([image.inputs for image in images], self._device, self._dtype)
        try:  # Fuyu's takes them by another name than its forward
            inspect.signature(self._makes.get_image_features).bind(**arguments)
        except TypeError:
            return False
        output = self._makes.get_image_features(**arguments, return_dict=True)
        pooled = output.pooler_output
        layers = getattr(output, "deepstack_features", None) or []
        each = [
            isinstance(layer, list | tuple) and all(isinstance(one, torch.Tensor) for one in layer) for layer in layers
        ]
        if not all(each) or any(len(by_image) != len(images) for by_image in (pooled, *layers)):
            return False
        self._stacked, self._output = isinstance(pooled, torch.Tensor), type(output)
        for number, image in enumerate(images):
            self._made[image.key] = _Features(pooled[number], tuple(layer[number] for layer in layers))
        return True

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Forget the features of these images; of all by default."""
        for key in list(self._made) if keys is None else keys:
            self._made.pop(key, None)


def _alike(images: Sequence[PromptImage], most: int) -> Iterator[list[PromptImage]]:
    """Images in groups of at most `most` whose arrays can be joined: equal but for their first dimension."""
    groups: dict[Any, list[PromptImage]] = {}
    for image in images:
        shape = tuple((name, array.shape[1:]) for name, array in sorted(image.inputs.items()))
        groups.setdefault(shape, []).append(image)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]
