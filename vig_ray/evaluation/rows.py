"""Prompts as rows of a batch that a model writes on: padded on the left, or behind prefixes that are computed once.

A prompt that begins with an image has its prefix up to the end of its last image. Prompts with the same prefix, such as
the questions of a benchmark about one picture, take its keys and values from one row of one forward:

    prefix A ----+---- question 1          [pad] prefix A | [pad] question 1
                 +---- question 2          [pad] prefix A |       question 2
    prefix B --------- question 3                prefix B | [pad] question 3

What is padding, before the prefix or between the two, is hidden by the attention mask, and position ids are those of
each prompt alone. So a model that knows positions by their ids alone gives the same numbers as for each prompt by
itself; others are given whole prompts, padded on the left as transformers' `generate` takes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vig_ray.compat.generation import cache_of
from vig_ray.model.arrays import on_device, tensors
from vig_ray.model.head import forward_arguments, token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines.features import Collate, ImageFeatures

Row = tuple[torch.Tensor, dict[str, Any]]
"""Token ids, int64 [B, L], and the other arguments of a forward."""


@dataclass(frozen=True, eq=False)
class Line:
    """A prompt and how many of its first tokens may be shared with others; 0: it is computed as a whole."""

    prompt: Prompt
    prefix: int = 0

    @property
    def key(self) -> tuple[bytes, tuple[str, ...]]:
        """What prompts with the same prefix have in common."""
        if not self.prefix:
            return b"", ()
        images = [
            image.key
            for image, (first, _) in zip(self.prompt.images, self.prompt.image_spans.tolist(), strict=True)
            if first < self.prefix
        ]
        return self.prompt.token_ids[: self.prefix].tobytes(), tuple(images)


def line_of(prompt: Prompt) -> Line:
    """The prompt with what of it may be shared: up to the end of its last image, where something follows that."""
    past = int(prompt.image_spans[-1, 1]) if len(prompt.image_spans) and prompt.whole is None else 0
    return Line(prompt, past if past < len(prompt.token_ids) and not prompt.hide_images else 0)


def aligned(prompt: Prompt) -> bool:
    """Whether arrays of a whole sample have a place a token, other than those that say of each token what it is."""
    arrays = prompt.whole.arrays.values() if prompt.whole is not None else ()
    return any(len(prompt.token_ids) in array.shape[1:] and not _says_of_each(array, prompt) for array in arrays)


def _says_of_each(array: npt.NDArray[Any], prompt: Prompt) -> bool:
    return array.shape == (1, len(prompt.token_ids))


def padded_left(rows: Sequence[npt.NDArray[Any]], fill: int = 0) -> npt.NDArray[np.int64]:
    """Arrays [..., n], n different, as one, int64 [..., B, longest]."""
    longest = max(row.shape[-1] for row in rows)
    out = np.full((*rows[0].shape[:-1], len(rows), longest), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        out[..., number, longest - row.shape[-1] :] = row
    return out


class Rows:
    """Rows for a loaded `model`; `collate` is its formatter's, `pad` a token that fills up."""

    def __init__(self, model: Any, collate: Collate, pad: int) -> None:
        self.model, self.pad = model, pad
        self._collate = collate
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype
        self.features = ImageFeatures(model, collate)
        self._types = token_types_argument(model)
        self._accepts = forward_arguments(model) | set(inspect.signature(model.forward).parameters)
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
        # Leaving positions out is exact where attention knows positions by their ids alone.
        self.can_hide = kinds == {"full_attention"} and "token_type_ids" not in self._accepts

    def plainly(self, prompt: Prompt) -> Row:
        """One prompt as its family's own processor gives it, images hidden by the attention mask."""
        ids = prompt.token_ids[None]
        arguments: dict[str, Any] = {
            "attention_mask": ~prompt.image_mask[None] if prompt.hide_images else np.ones_like(ids)
        }
        if prompt.hide_images:
            arguments["position_ids"] = self._positions([prompt])[0][..., None, :]
        if prompt.whole is None and self._types:
            arguments[self._types] = prompt.image_mask[None]
        arguments = {name: self._to_device(array.astype(np.int64)) for name, array in arguments.items()}
        if prompt.whole is not None:
            arguments |= tensors([prompt.whole.arrays], self._device, self._dtype)
        elif prompt.images:
            arguments |= self._collate([image.inputs for image in prompt.images], self._device, self._dtype)
        return self._to_device(ids.astype(np.int64)), self._accepted(arguments)

    def padded(self, prompts: Sequence[Prompt]) -> Row:
        """Prompts of one kind (`vig_ray.scoring.engines.forwards.together`), padded on the left.

        Raises PromptError where their images would have to be hidden, and can't.
        """
        if prompts[0].hide_images:
            return self._without_images(prompts)
        ids_BL = padded_left([prompt.token_ids for prompt in prompts], self.pad)
        arguments = {"attention_mask": self._to_device(padded_left([np.ones(len(p.token_ids)) for p in prompts]))}
        if prompts[0].whole is not None:
            arguments |= self._of_whole(prompts)
            return self._to_device(ids_BL), self._accepted(arguments)
        if self._types:
            arguments[self._types] = self._to_device(padded_left([prompt.image_mask for prompt in prompts]))
        images = [image for prompt in prompts for image in prompt.images]
        arguments |= self._vision(images, ids_BL.size)
        return self._to_device(ids_BL), arguments

    def _of_whole(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The arrays of samples that went through their processor as a whole; of each token on the left."""
        each: list[dict[str, Any]] = []
        by_token: dict[str, list[npt.NDArray[Any]]] = {}
        for prompt in prompts:
            assert prompt.whole is not None, "a batch has samples of one kind"
            arrays = dict(prompt.whole.arrays)
            for name in [name for name, array in arrays.items() if _says_of_each(array, prompt)]:
                by_token.setdefault(name, []).append(arrays.pop(name)[0])
            each.append(arrays)
        joined = tensors(each, self._device, self._dtype)
        return joined | {name: self._to_device(padded_left(rows)) for name, rows in by_token.items()}

    def _without_images(self, prompts: Sequence[Prompt]) -> Row:
        """Prompts whose images are hidden: their positions are left out, and the text keeps its own."""
        if not self.can_hide:
            raise PromptError("Blind", "this model's attention counts places, so that an image can't be left out")
        positions = self._positions(prompts)
        text = [~prompt.image_mask for prompt in prompts]
        ids = [prompt.token_ids[kept] for prompt, kept in zip(prompts, text, strict=True)]
        mask = padded_left([np.ones(len(row)) for row in ids])
        arguments = {
            "attention_mask": self._to_device(mask),
            "position_ids": self._to_device(padded_left([p[..., k] for p, k in zip(positions, text, strict=True)])),
        }
        if self._types:
            arguments[self._types] = torch.zeros_like(arguments["attention_mask"])
        return self._to_device(padded_left(ids, self.pad)), self._accepted(arguments)

    @torch.inference_mode()
    def behind_prefixes(self, lines: Sequence[Line], spread: Callable[[torch.Tensor], None] | None = None) -> Row:
        """These lines with their prefixes in a cache, each prefix computed once: the arguments to write on with.

        `spread`: told which prefix each line has, once they are computed.
        """
        numbers: dict[Any, int] = {}
        of_line = [numbers.setdefault(line.key, len(numbers)) for line in lines]
        owners = [lines[of_line.index(number)] for number in range(len(numbers))]
        positions = self._positions([line.prompt for line in lines])
        cache = self._prefixes(owners, [positions[of_line.index(number)] for number in range(len(numbers))])
        rows_B = self._to_device(np.array(of_line, dtype=np.int64))
        cache.reorder_cache(rows_B)
        if spread is not None:
            spread(rows_B)
        parts = [(slice(0, line.prefix), slice(line.prefix, None)) for line in lines]

        def rows(values: Sequence[npt.NDArray[Any]], fill: int = 0) -> torch.Tensor:
            sides = [[value[..., part[side]] for value, part in zip(values, parts, strict=True)] for side in (0, 1)]
            return self._to_device(np.concatenate([padded_left(side, fill) for side in sides], axis=-1))

        return rows([line.prompt.token_ids for line in lines], self.pad), {
            "attention_mask": rows([np.ones(len(line.prompt.token_ids)) for line in lines]),
            "position_ids": rows(positions),
            "past_key_values": cache,
        }

    def places(self, lines: Sequence[Line]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the places that `behind_prefixes` lays out hold image features, and which are tokens behind the
        prefixes: bool [B, L] each."""
        masks = [line.prompt.image_mask for line in lines]
        image = [padded_left([mask[: line.prefix] for mask, line in zip(masks, lines, strict=True)])]
        image.append(padded_left([mask[line.prefix :] for mask, line in zip(masks, lines, strict=True)]))
        behind = padded_left([np.ones(len(line.prompt.token_ids) - line.prefix) for line in lines])
        after = [np.zeros_like(image[0]), behind]
        image_BL, after_BL = (self._to_device(np.concatenate(each, axis=-1)).bool() for each in (image, after))
        return image_BL, after_BL

    def _prefixes(self, lines: Sequence[Line], positions: Sequence[npt.NDArray[np.int64]]) -> Any:
        """A cache of these lines' prefixes, a row each."""
        ids_GP = padded_left([line.prompt.token_ids[: line.prefix] for line in lines], self.pad)
        arguments = {
            "input_ids": self._to_device(ids_GP),
            "attention_mask": self._to_device(padded_left([np.ones(line.prefix) for line in lines])),
            "position_ids": self._to_device(
                padded_left([own[..., : line.prefix] for own, line in zip(positions, lines, strict=True)])
            ),
            "past_key_values": cache_of(self.model),
            "use_cache": True,
        }
        if self._types:
            arguments[self._types] = self._to_device(padded_left([ln.prompt.image_mask[: ln.prefix] for ln in lines]))
        images = [image for line in lines for image in line.prompt.images]
        return self.model.model(**arguments, **self._vision(images, ids_GP.size)).past_key_values

    def _positions(self, prompts: Sequence[Prompt]) -> list[npt.NDArray[np.int64]]:
        """Each prompt's position ids, [L], or [3, L] of all where those of one are."""
        own = [position_ids(self.model, prompt).numpy() for prompt in prompts]
        if all(each.ndim == 1 for each in own):
            return own
        return [each if each.ndim > 1 else np.repeat(each[None], 3, axis=0) for each in own]

    def _vision(self, images: Sequence[PromptImage], tokens: int) -> dict[str, Any]:
        return self.features.arguments(images, at_once=max(1, len(images))) if tokens else {}

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Without what a processor gives for others than the model."""
        return {name: value for name, value in arguments.items() if name in self._accepts}

    def _to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return on_device(array, self._device)
