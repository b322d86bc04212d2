"""From samples to the tensors of one forward and backward pass: packed end to end, or padded.

A rank's part of a step is cut into microbatches that fit a token budget. How it is cut changes no result: the loss is a
sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vig_ray.model.arrays import of_whole
from vig_ray.model.head import forward_arguments, token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import ImageInputs, Prompt
from vig_ray.training.attention import Segments
from vig_ray.training.objective import Weights

Collate = Callable[[Sequence[ImageInputs], Any, Any], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """A sample ready to be trained on: its place in the order, its prompt, and the weight of each answer token.

    `weights_T`: float32 [T], T = len(prompt.answer_positions).
    """

    position: int
    key: str
    prompt: Prompt
    weights_T: Weights

    @property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.prompt.token_ids)


def trimmed(sample: TrainingSample) -> TrainingSample | None:
    """The sample up to its last active token, which no later token can change; None where it has none.

    Images stay, all of them. With VIG's masks a good part of many conversations is never computed.
    """
    prompt = sample.prompt
    active = np.flatnonzero(sample.weights_T)
    if not len(active):
        return None
    end = int(prompt.answer_positions[active[-1]]) + 1
    if prompt.whole is not None:
        return sample  # its arrays say something of every token
    if len(prompt.image_spans):
        end = max(end, int(prompt.image_spans[-1][1]))
    kept = prompt.answer_positions < end
    shorter = replace(
        prompt,
        token_ids=prompt.token_ids[:end],
        answer_positions=prompt.answer_positions[kept],
        turns=prompt.turns[kept],
        image_mask=prompt.image_mask[:end],
        answer_chars=prompt.answer_chars[kept],
    )
    return replace(sample, prompt=shorter, weights_T=sample.weights_T[kept])


@dataclass(frozen=True, eq=False)
class Batch:
    """A microbatch. `inputs`: the model's keyword arguments. The N active tokens: `state_index_N`, the flat indices of
    the hidden states that predict them, `target_N`, their ids, and `coefficient_N`, their part in the loss.
    `unique_state_index_K`: those indices, each once: samples that share a prefix may share one.

    `tokens` that the model computes, padding included; `images` among them.
    """

    inputs: dict[str, Any]
    state_index_N: torch.Tensor
    unique_state_index_K: torch.Tensor
    target_N: torch.Tensor
    coefficient_N: torch.Tensor
    tokens: int
    images: int


def plan_microbatches(
    lengths: Sequence[int], *, max_tokens: int, max_samples: int | None = None, packed: bool = True
) -> list[list[int]]:
    """Indices of samples, in microbatches of at most `max_tokens` tokens (`packed`: their sum; else count x longest).

    Longest first, each into the first that has room; a sample longer than the budget gets one of its own.
    """
    microbatches: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        for place, members in enumerate(microbatches):
            # Longest first: the first of a padded microbatch is its longest, which every further one costs.
            cost = length if packed else lengths[members[0]]
            if cost <= room[place] and (max_samples is None or len(members) < max_samples):
                members.append(index)
                room[place] -= cost
                break
        else:
            microbatches.append([index])
            room.append(max_tokens - length)
    return microbatches


def plan_by_kind(
    samples: Sequence[TrainingSample],
    *,
    max_tokens: int,
    max_samples: int | None = None,
    packed: bool,
    whole_together: bool,
) -> list[list[int]]:
    """Indices of samples in microbatches as `plan_microbatches` makes them, of one kind each.

    Samples that went through their processor as a whole are padded, with as many images each; one by one unless
    `whole_together`.
    """
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        whole = sample.prompt.whole
        alike = () if whole is None else (len(sample.prompt.images), *sorted(whole.arrays))
        kinds.setdefault(alike, []).append(index)
    plan = []
    for alike, members in kinds.items():
        most = 1 if alike and not whole_together else max_samples
        lengths = [samples[index].length for index in members]
        microbatches = plan_microbatches(lengths, max_tokens=max_tokens, max_samples=most, packed=packed and not alike)
        plan += [[members[at] for at in microbatch] for microbatch in microbatches]
    return plan


def common_prefix(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts begin with alike, before any image; each keeps a token of its own. 0 for one."""
    if len(prompts) == 1:
        return 0
    first = prompts[0].token_ids
    shared = min(len(prompt.token_ids) - 1 for prompt in prompts)
    for prompt in prompts:
        if len(prompt.image_spans):
            shared = min(shared, int(prompt.image_spans[0][0]))
        different = np.flatnonzero(prompt.token_ids[:shared] != first[:shared])
        shared = int(different[0]) if len(different) else shared
    return shared


class Batcher:
    """Makes batches for one model. `packed`: samples end to end in one row, for `packed_attention`, what they all begin
    with only once; else padded rows.

    `collate` turns a formatter's image inputs into the model's vision arguments.
    """

    def __init__(self, model: Any, collate: Collate, *, device: Any, dtype: torch.dtype, packed: bool) -> None:
        self._model, self._collate = model, collate
        self._device, self._dtype, self.packed = device, dtype, packed
        self._type_ids = token_types_argument(model)
        self._accepted = forward_arguments(model)

    def __call__(self, samples: Sequence[TrainingSample], coefficients: Sequence[Weights]) -> Batch:
        """A microbatch of `samples`, all of one kind (`plan_by_kind`); `coefficients[i]` is float32 [T] of
        `samples[i]`."""
        prompts = [sample.prompt for sample in samples]
        whole = prompts[0].whole is not None
        packed = self.packed and not whole
        lengths = [len(prompt.token_ids) for prompt in prompts]
        prefix = common_prefix(prompts) if packed else 0
        suffix_lengths = [length - prefix for length in lengths]
        width = prefix + sum(suffix_lengths) if packed else max(lengths)
        # Where each sample's tokens lie, those behind the prefix, in the row or rows laid end to end.
        starts = np.cumsum([0, *suffix_lengths[:-1]]) if packed else np.arange(len(samples)) * width
        rows = 1 if packed else len(samples)
        ids = np.zeros(rows * width, dtype=np.int64)
        is_image = np.zeros(rows * width, dtype=np.int64)
        for start, length, prompt in zip(starts.tolist(), lengths, prompts, strict=True):
            first = prefix if start else 0
            ids[start + first : start + length] = prompt.token_ids[first:]
            is_image[start + first : start + length] = prompt.image_mask[first:]
        inputs: dict[str, Any] = {"input_ids": self._put(ids.reshape(rows, width)), "use_cache": False}
        if packed:
            inputs["segments"] = Segments(suffix_lengths, self._device, prefix=prefix)
        if self._type_ids:
            inputs[self._type_ids] = self._put(is_image.reshape(rows, width))
        images = [image for prompt in prompts for image in prompt.images]
        if whole:  # positions are the model's own, by its arrays
            arrays = of_whole(prompts, self._device, self._dtype)
            inputs |= {name: array for name, array in arrays.items() if name in self._accepted}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        else:
            inputs["position_ids"] = self._positions(prompts, width, prefix)
            if images:
                inputs |= self._collate([image.inputs for image in images], self._device, self._dtype)
        before, target, share = [], [], []
        for start, prompt, each in zip(starts.tolist(), prompts, coefficients, strict=True):
            active = prompt.answer_positions[each != 0].astype(np.int64)
            before.append(np.where(active > prefix, start + active - 1, active - 1))
            target.append(prompt.token_ids[active].astype(np.int64))
            share.append(each[each != 0])
        places = np.concatenate(before)
        return Batch(
            inputs,
            self._put(places),
            self._put(np.unique(places)),
            self._put(np.concatenate(target)),
            self._put(np.concatenate(share)),
            rows * width,
            len(images),
        )

    def empty(self) -> Batch:
        """One without samples, for a rank that has fewer than others: ranks must call the model equally often."""
        inputs: dict[str, Any] = {"input_ids": self._put(np.zeros((1, 1), np.int64)), "use_cache": False}
        if self.packed:
            inputs |= {"segments": Segments([1], self._device), "position_ids": inputs["input_ids"]}
        if self._type_ids:
            inputs[self._type_ids] = inputs["input_ids"]
        none = self._put(np.zeros(0, np.int64))
        return Batch(inputs, none, none, none, none.float(), 0, 0)

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)

    def _positions(self, prompts: Sequence[Prompt], width: int, prefix: int) -> torch.Tensor:
        """int64 [1, N] or [3, 1, N] packed; [B, L] or [3, B, L] padded."""
        each = [position_ids(self._model, prompt) for prompt in prompts]
        if any(ids.ndim == 2 for ids in each):
            each = [ids if ids.ndim == 2 else ids.expand(3, -1) for ids in each]
        if self.packed:
            each = [each[0][..., :prefix], *(ids[..., prefix:] for ids in each)]
            return torch.cat(each, dim=-1).unsqueeze(-2).to(self._device)
        padded = [torch.nn.functional.pad(ids, (0, width - ids.shape[-1])) for ids in each]
        return torch.stack(padded, dim=-2).to(self._device)
