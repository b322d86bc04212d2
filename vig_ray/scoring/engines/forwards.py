"""Prompts through the model's own forward and attention: in batches filled by tokens, or one by one.

In a batch prompts are right-padded: a causal model never looks right, so padding needs no mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from vig_ray.model.arrays import of_whole, on_device
from vig_ray.model.head import forward_arguments, token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.engines.features import Collate
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs

Kind = Literal["by parts", "whole", "hidden"]
VisionArguments = Callable[[Sequence[PromptImage], int], dict[str, Any]]


def kind(prompt: Prompt) -> Kind:
    """Where a prompt's images are: apart from it, in arrays of the whole sample, or hidden."""
    if prompt.hide_images:
        return "hidden"
    return "by parts" if prompt.whole is None else "whole"


def together(prompt: Prompt) -> tuple[Kind, int, tuple[str, ...]]:
    """What prompts of one batch have in common. Whole samples have as many images: a model may not expect an image that
    is nothing but padding (Mllama)."""
    if prompt.whole is None or prompt.hide_images:
        return kind(prompt), 0, ()
    return "whole", len(prompt.images), tuple(sorted(prompt.whole.arrays))


def plan_batches(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches whose padded size, count x longest, stays within `max_tokens`; one prompt at least.

    `order` lists the indices with equal or falling lengths, so the first of a batch is its longest.
    """
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Forwards:
    """The forward of a loaded model. Whatever the model raises is raised."""

    def __init__(self, model: Any, collate: Collate, target_logprobs: TargetLogProbs) -> None:
        self._model, self._collate, self._target_logprobs = model, collate, target_logprobs
        self._device, self._dtype = next(model.parameters()).device, next(model.parameters()).dtype
        self._accepts = forward_arguments(model)
        self._type_ids = token_types_argument(model)
        # Llama 4 has no part without its head: what its head is given is caught on the way.
        self.has_base = hasattr(model, "model")
        # Leaving positions out is exact where attention knows positions by their ids alone; a sliding window counts
        # places, and a recurrent layer reads every one.
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
        self._leaves_out = kinds == {"full_attention"} and "token_type_ids" not in self._accepts

    def ask(self, target_logprobs: TargetLogProbs) -> None:
        """What is made of states from now on."""
        self._target_logprobs = target_logprobs

    def length(self, prompt: Prompt) -> int:
        """How many tokens of a prompt a batch computes."""
        return prompt.length if self._leaves_out else len(prompt.token_ids)

    @torch.inference_mode()
    def batch(self, prompts: Sequence[Prompt], vision_arguments: VisionArguments) -> list[LogProbs]:
        """Prompts that go together, right-padded. `vision_arguments`: of images in order, of about so many tokens."""
        hidden = prompts[0].hide_images
        rows = [_Row(prompt, leave_out=hidden and self._leaves_out) for prompt in prompts]
        longest = max(len(row.ids) for row in rows)
        ids_BL = np.zeros((len(rows), longest), dtype=np.int64)
        is_image_BL = np.zeros((len(rows), longest), dtype=np.int64)
        for index, row in enumerate(rows):
            ids_BL[index, : len(row.ids)] = row.ids
            is_image_BL[index, : len(row.ids)] = row.is_image
        inputs: dict[str, Any] = {"input_ids": self._to_device(ids_BL), "use_cache": False}
        # All ones, padding too: nothing is masked and, with position ids of our own, nothing is packed.
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if hidden and not self._leaves_out:
            inputs["attention_mask"] -= self._to_device(is_image_BL)
        if self._type_ids:
            inputs[self._type_ids] = self._to_device(is_image_BL)
        if hidden:
            inputs["position_ids"] = self._positions_of_text(prompts, longest)
        elif prompts[0].whole is not None:
            inputs.update(self._accepted(of_whole(prompts, self._device, self._dtype)))
        else:
            images = [image for prompt in prompts for image in prompt.images]
            inputs.update(vision_arguments(images, int(prompts[0].image_mask.sum())))
        hidden_BLD = self._model.model(**inputs).last_hidden_state
        flat = np.concatenate([index * longest + row.answers - 1 for index, row in enumerate(rows)])
        targets = np.concatenate([row.ids[row.answers] for row in rows])
        hidden_ND = hidden_BLD.flatten(0, 1)[self._to_device(flat)]
        logp_N = self._target_logprobs(hidden_ND, self._to_device(targets.astype(np.int64))).cpu().numpy()
        return np.split(logp_N, np.cumsum([len(row.answers) for row in rows])[:-1])

    @torch.inference_mode()
    def plainly(self, prompt: Prompt) -> LogProbs:
        """One sample as its family's own forward takes it, images hidden by the attention mask. Raises PromptError."""
        targets = self._to_device(prompt.answer_ids.astype(np.int64))
        return np.asarray(self._target_logprobs(self.states_plainly(prompt), targets).cpu())

    @torch.inference_mode()
    def states_plainly(self, prompt: Prompt) -> torch.Tensor:
        """The states that predict the answer tokens, [T, D], of one sample run so. Raises PromptError."""
        ids_1L = self._to_device(prompt.token_ids.astype(np.int64)[None])
        mask_1L = torch.ones_like(ids_1L)
        arguments: dict[str, Any] = {}
        if prompt.whole is not None:
            arguments = self._accepted(of_whole([prompt], self._device, self._dtype))
        elif prompt.images:
            arguments = self._collate([image.inputs for image in prompt.images], self._device, self._dtype)
        if self._type_ids and self._type_ids not in arguments:
            arguments[self._type_ids] = self._to_device(prompt.image_mask.astype(np.int64)[None])
        if prompt.hide_images:
            if "cross_attention_mask" in arguments:
                raise PromptError("Blind", "this model reads images beside the text, where no position can be hidden")
            mask_1L -= self._to_device(prompt.image_mask.astype(np.int64)[None])
            arguments["position_ids"] = self._positions_plainly(ids_1L, arguments)
        arguments |= {"input_ids": ids_1L, "attention_mask": mask_1L, "use_cache": False}
        places = self._to_device(prompt.answer_positions.astype(np.int64) - 1)
        return self._last_states(self._accepted(arguments))[0, places]

    def _last_states(self, arguments: dict[str, Any]) -> torch.Tensor:
        """What the head is given, [1, L, D]."""
        if self.has_base:
            hidden_1LD: torch.Tensor = self._model.model(**arguments).last_hidden_state
            return hidden_1LD
        given: list[torch.Tensor] = []
        head = self._model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            self._model(**arguments)
        finally:
            hook.remove()
        return given[0]

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Without what a processor gives for others than the model."""
        outer = inspect.signature(self._model.forward).parameters
        for name in arguments.keys() - self._accepts:
            if name in outer:
                raise RuntimeError(f"{name} is for the model around the one that is asked")
        return {name: value for name, value in arguments.items() if name in self._accepts}

    def _positions_plainly(self, ids_1L: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Position ids of the clean run: int64 [1, L], or [3, 1, L] for M-RoPE."""
        if not self.has_base or not hasattr(self._model.model, "get_rope_index") or "image_grid_thw" not in arguments:
            return torch.arange(ids_1L.shape[1], device=self._device)[None]
        types = (ids_1L == int(self._model.config.image_token_id)).long()
        positions: torch.Tensor = self._model.model.get_rope_index(
            input_ids=ids_1L, mm_token_type_ids=types, image_grid_thw=arguments["image_grid_thw"],
            attention_mask=torch.ones_like(ids_1L),
        )[0]  # fmt: skip
        return positions

    def _positions_of_text(self, prompts: Sequence[Prompt], longest: int) -> torch.Tensor:
        """Position ids as if the images were there: int64 [B, L], or [3, B, L] for M-RoPE."""
        positions = [position_ids(self._model, prompt) for prompt in prompts]
        if self._leaves_out:
            positions = [one[..., ~prompt.image_mask] for one, prompt in zip(positions, prompts, strict=True)]
        return torch.stack(
            [torch.nn.functional.pad(one, (0, longest - one.shape[-1])) for one in positions], dim=-2
        ).to(self._device)

    def _to_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return on_device(array, self._device)


class _Row:
    """One prompt as the model sees it: hidden images left out, answer positions moved accordingly."""

    def __init__(self, prompt: Prompt, *, leave_out: bool) -> None:
        if leave_out:
            keep = ~prompt.image_mask
            moved = np.cumsum(keep) - 1
            self.ids = prompt.token_ids[keep]
            self.answers = moved[prompt.answer_positions]
            self.is_image = np.zeros(len(self.ids), dtype=bool)
        else:
            self.ids = prompt.token_ids
            self.answers = prompt.answer_positions.astype(np.int64)
            self.is_image = prompt.image_mask
