"""Arrays of images and samples, joined for one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import ImageInputs, Prompt

if TYPE_CHECKING:
    import torch


def joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Along their first dimension, each padded with zeros at the end of the others.

    Processors pad in the same way; a model tells padding by sizes, masks, grids or tiles of zeros.
    """
    arrays = [np.atleast_1d(array) for array in arrays]
    shapes = [array.shape[1:] for array in arrays]
    if len(set(shapes)) == 1:
        return np.concatenate(arrays)
    largest = np.max(shapes, axis=0)
    ends = [[(0, 0), *((0, most - size) for most, size in zip(largest, shape, strict=True))] for shape in shapes]
    return np.concatenate([np.pad(array, end) for array, end in zip(arrays, ends, strict=True)])


def on_device(array: npt.NDArray[Any], device: Any) -> torch.Tensor:
    """An array as a tensor on `device`. A GPU copies it in the order of its work, and the CPU doesn't wait for that."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # only from pinned memory is the CPU free to go on


def tensors(inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
    """Arrays of several images or samples, joined by name, as tensors on `device`; floats in `dtype`.

    Raises ValueError where they have different ones.
    """
    if any(each.keys() != inputs[0].keys() for each in inputs):
        raise ValueError("images or samples with arrays of different names")
    out = {}
    for name in inputs[0]:
        tensor = on_device(joined([np.asarray(each[name]) for each in inputs]), device)
        out[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return out


def of_whole(prompts: Sequence[Prompt], device: Any, dtype: Any) -> dict[str, Any]:
    """The arrays of samples that went through their processor as a whole, padded on the right as their tokens are."""
    return tensors([prompt.whole.arrays if prompt.whole is not None else {} for prompt in prompts], device, dtype)
