"""From samples to the tensors of one forward and backward pass: packed as a tree, or padded.

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
from vig_ray.model.packing import ImageNumbers, branch, tree
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import ImageInputs, Prompt
from vig_ray.model.row import Row, row_of
from vig_ray.training.next_token import NextToken
from vig_ray.training.objective import Mode, Objective, Part, Places, Predictions, Weights

Collate = Callable[[Sequence[ImageInputs], Any, Any], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """A sample ready to be trained on: its place in the order, its prompt, and the weight of each answer token.

    `weights_T`: float32 [T], T = len(prompt.answer_positions). `mode`: what it is trained on.
    """

    position: int
    key: str
    prompt: Prompt
    weights_T: Weights
    mode: Mode = "text"

    @property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.prompt.token_ids)


def weights_of(objective: Objective, sample: TrainingSample) -> Weights:
    """The weights of what an objective predicts of a sample."""
    return objective.predictions(sample.prompt, sample.weights_T, sample.mode).weight_N


def trimmed(sample: TrainingSample, objectives: Sequence[Objective] = (NextToken(),)) -> TrainingSample | None:
    """The sample up to the last token that is predicted with a weight, which no later token can change; None where
    there is none.

    Images stay, all of them. With VIG's masks a good part of many conversations is never computed.
    """
    prompt = sample.prompt
    asked = [objective.predictions(prompt, sample.weights_T, sample.mode) for objective in objectives]
    last = [int(each.predicted_N[each.weight_N != 0].max()) for each in asked if each.weight_N.any()]
    if not last:
        return None
    end = max(last) + 1
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
    """A microbatch. `inputs`: the model's keyword arguments. `parts`: what each objective predicts with a weight.
    `unique_state_index_K`: the flat indices of all last states that they predict from, each once: samples that share a
    prefix may share one.

    `tokens` that the model computes, padding included; `images` among them.
    """

    inputs: dict[str, Any]
    parts: tuple[Part, ...]
    unique_state_index_K: torch.Tensor
    tokens: int
    images: int

    def of(self, objective: int) -> Batch:
        """The same with no part in the loss for any other objective."""
        parts = [
            part if number == objective else part._replace(coefficient_N=torch.zeros_like(part.coefficient_N))
            for number, part in enumerate(self.parts)
        ]
        return replace(self, parts=tuple(parts))


def _active(predictions: Predictions, coefficient_N: Weights) -> Predictions:
    """Those with a coefficient other than 0, which takes the weight's place."""
    active = coefficient_N != 0
    return Predictions(predictions.state_N[active], predictions.predicted_N[active], coefficient_N[active])


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


class Batcher:
    """Makes batches for one model. `packed`: samples in one row, as a tree (`vig_ray.model.packing`): what several
    begin with alike, a system prompt or that and an image, is there only once; else padded rows.

    `collate` turns a formatter's image inputs into the model's vision arguments. `objectives`: those that batches are
    made for.
    """

    def __init__(
        self,
        model: Any,
        collate: Collate,
        *,
        device: Any,
        dtype: torch.dtype,
        packed: bool,
        objectives: Sequence[Objective] = (NextToken(),),
    ) -> None:
        self._model, self._collate, self._objectives = model, collate, objectives
        self._device, self._dtype, self.packed = device, dtype, packed
        self._type_ids = token_types_argument(model)
        self._accepted = forward_arguments(model)
        self._image_token = getattr(model.config, "image_token_id", None)  # None: a language model alone

    def __call__(self, samples: Sequence[TrainingSample], *coefficients: Sequence[Weights]) -> Batch:
        """A microbatch of `samples`, all of one kind (`plan_by_kind`).

        `coefficients`: of each objective, `coefficients[k][i]` for what objective k predicts of `samples[i]`, float32;
        not all of a sample's are 0. Objectives for which there are none have no part in the batch.
        """
        prompts = [sample.prompt for sample in samples]
        asked = [
            [
                _active(objective.predictions(sample.prompt, sample.weights_T, sample.mode), of_sample)
                for sample, of_sample in zip(samples, of_objective, strict=True)
            ]
            for objective, of_objective in zip(self._objectives, coefficients, strict=False)
        ]
        if self.packed and prompts[0].whole is None:
            return self._as_tree(prompts, asked)
        return self._padded(prompts, asked)

    def _as_tree(self, prompts: Sequence[Prompt], asked: Sequence[Sequence[Predictions]]) -> Batch:
        numbers = ImageNumbers()
        packed = tree(
            [
                branch(prompt, position_ids(self._model, prompt).numpy(), numbers, end=self._end(prompt, of_prompt))
                for prompt, *of_prompt in zip(prompts, *asked, strict=True)
            ]
        )
        inputs: dict[str, Any] = {
            "input_ids": self._put(packed.token_ids[None]),
            "position_ids": self._put(packed.position_ids[..., None, :]),
            "row": row_of(packed, 0, len(packed)),
            "use_cache": False,
        }
        if self._type_ids:
            inputs[self._type_ids] = self._put((packed.token_ids == self._image_token).astype(np.int64)[None])
        images = [image for _, _, image in packed.images]
        if images:
            inputs |= self._collate([image.inputs for image in images], self._device, self._dtype)
        return self._batch(inputs, prompts, asked, packed.places, len(packed), len(images))

    def _padded(self, prompts: Sequence[Prompt], asked: Sequence[Sequence[Predictions]]) -> Batch:
        width = max(len(prompt.token_ids) for prompt in prompts)
        ids_BL = np.zeros((len(prompts), width), dtype=np.int64)
        is_image_BL = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids_BL[row, : len(prompt.token_ids)] = prompt.token_ids
            is_image_BL[row, : len(prompt.token_ids)] = prompt.image_mask
        inputs: dict[str, Any] = {"input_ids": self._put(ids_BL), "use_cache": False}
        if self._type_ids:
            inputs[self._type_ids] = self._put(is_image_BL)
        images = [image for prompt in prompts for image in prompt.images]
        if prompts[0].whole is not None:  # positions are the model's own, by its arrays
            arrays = of_whole(prompts, self._device, self._dtype)
            inputs |= {name: array for name, array in arrays.items() if name in self._accepted}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        else:
            inputs["position_ids"] = self._positions(prompts, width)
            if images:
                inputs |= self._collate([image.inputs for image in images], self._device, self._dtype)
        index_of = [row * width + np.arange(len(prompt.token_ids)) for row, prompt in enumerate(prompts)]
        return self._batch(inputs, prompts, asked, index_of, ids_BL.size, len(images))

    def _end(self, prompt: Prompt, of_prompt: Sequence[Predictions]) -> int:
        """How many of a prompt's tokens must be computed: the last answer token predicts nothing, but an embedding that
        is predicted has to be there."""
        embedded = [
            int(each.predicted_N.max()) + 1
            for objective, each in zip(self._objectives, of_prompt, strict=False)
            if objective.embeddings and len(each.predicted_N)
        ]
        answered = prompt.answer_positions[-1:] if not embedded or len(of_prompt[0].state_N) else ()
        return max([*embedded, *map(int, answered)])

    def _batch(
        self,
        inputs: dict[str, Any],
        prompts: Sequence[Prompt],
        asked: Sequence[Sequence[Predictions]],
        index_of: Sequence[Places],
        tokens: int,
        images: int,
    ) -> Batch:
        """`asked[k][i]`: what objective k predicts of prompt i. `index_of[i]`: the flat index of each of its tokens."""
        parts = []
        last: list[Places] = []
        for objective, of_objective in zip(self._objectives, asked, strict=False):
            state_N = np.concatenate([at[each.state_N] for at, each in zip(index_of, of_objective, strict=True)])
            targets = index_of if objective.embeddings else [prompt.token_ids.astype(np.int64) for prompt in prompts]
            target_N = np.concatenate([of[each.predicted_N] for of, each in zip(targets, of_objective, strict=True)])
            coefficient_N = np.concatenate([each.weight_N for each in of_objective])
            parts.append(Part(self._put(state_N), self._put(target_N), self._put(coefficient_N)))
            last += [state_N] if objective.layer is None else []
        return Batch(inputs, tuple(parts), self._put(np.unique(np.concatenate(last))), tokens, images)

    def empty(self) -> Batch:
        """One without samples, for a rank that has fewer than others: ranks must call the model equally often."""
        inputs: dict[str, Any] = {"input_ids": self._put(np.zeros((1, 1), np.int64)), "use_cache": False}
        if self.packed:
            inputs |= {"row": Row([0, 1], []), "position_ids": inputs["input_ids"]}
        if self._type_ids:
            inputs[self._type_ids] = inputs["input_ids"]
        none = self._put(np.zeros(0, np.int64))
        return Batch(inputs, tuple(Part(none, none, none.float()) for _ in self._objectives), none, 0, 0)

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)

    def _positions(self, prompts: Sequence[Prompt], width: int) -> torch.Tensor:
        """int64 [B, L] or [3, B, L]."""
        each = [position_ids(self._model, prompt) for prompt in prompts]
        if any(ids.ndim == 2 for ids in each):
            each = [ids if ids.ndim == 2 else ids.expand(3, -1) for ids in each]
        padded = [torch.nn.functional.pad(ids, (0, width - ids.shape[-1])) for ids in each]
        return torch.stack(padded, dim=-2).to(self._device)
