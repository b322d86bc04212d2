"""The torch engine: any transformers image-text-to-text model, on a CPU or a GPU.

What makes it faster than one forward a sample, with the same numbers:

    - batches filled by tokens, prompts of like length together, right-padded: a causal model never looks right, so
      padding needs no mask and the attention kernel stays the plain causal one
    - the head runs on answer positions only, in slices, its product and the log-softmax in float32
    - one vision pass an image: prompts that share an image share its features
    - hidden images (the blind reference) are left out, and the text keeps its position ids: what attention can't
      see needs no computing (models with a sliding window or recurrent layers get a mask instead)

Not every model stands all of this. `check.py` holds it against one plain forward a sample, and where they differ,
samples are run plainly, one by one.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vig_ray.model.arrays import of_whole
from vig_ray.model.head import applied_softcap, capped, forward_arguments, token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import ImageInputs, Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 1 << 26  # elements: 256 MB of float32
_OUT_OF_MEMORY = "OutOfMemory"
Collate = Callable[[Sequence[ImageInputs], Any, Any], dict[str, Any]]


def default_batch_tokens(device: str) -> int:
    """Tokens a batch: enough to fill a large GPU's matrix units, small enough for a CPU's caches."""
    return 16384 if device.startswith("cuda") else 1024


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


Kind = Literal["by parts", "whole", "hidden"]


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


class TorchEngine:
    """An `Engine` over a loaded transformers model.

    `collate` turns the image inputs of a formatter into the model's vision arguments. `max_batch_tokens` bounds
    a batch's padded tokens; it is halved, and stays so, when the device runs out of memory.
    """

    def __init__(self, model: Any, collate: Collate, *, max_batch_tokens: int | None = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(str(self.device))
        self._collate = collate
        self._image_token = int(model.config.image_token_id)
        self.name = type(model).__name__
        self._arguments = accepted = forward_arguments(model)
        self._shares_images = "mm_encoder_outputs" in accepted
        self._makes_features = model if hasattr(model, "get_image_features") else getattr(model, "model", model)
        self._stacked = False  # whether the model's features of several images are one tensor
        self._type_ids = token_types_argument(model)
        text = model.config.get_text_config()
        self._head = model.get_output_embeddings()
        self._head_weight: torch.Tensor | None = None
        self._worked = False
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        # Leaving positions out is exact where attention knows positions by their ids alone; a sliding window counts
        # places, and a recurrent layer reads every one.
        self._leaves_out = kinds == {"full_attention"} and "token_type_ids" not in accepted
        # Llama 4 has no part without its head: what its head is given is caught on the way.
        self._has_base = hasattr(model, "model")
        self._softcap = applied_softcap(model, self._uncapped_logits) if self._has_base else None
        # Which prompts are run one by one, in the model's own way.
        self.plainly: set[Kind] = set() if self._has_base else {"by parts", "whole", "hidden"}
        self.no_blind: PromptError | None = None  # why images can't be hidden
        self.description = f"torch {torch.__version__}, {type(model).__name__} on {self.device} in {self.dtype}"

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """See `Engine.logprobs`. Prompts are reordered inside; the answer is in the order given."""
        results: list[LogProbs | PromptError | None] = [None] * len(prompts)
        lengths = [prompt.length if self._leaves_out else len(prompt.token_ids) for prompt in prompts]
        waiting = []
        for index, prompt in enumerate(prompts):
            if len(prompt.answer_positions) == 0:
                results[index] = np.zeros(0, dtype=np.float32)
            elif prompt.hide_images and prompt.image_mask[prompt.answer_positions - 1].any():
                results[index] = PromptError(
                    "Blind", "an answer token directly follows an image, and nothing predicts it"
                )
            elif prompt.hide_images and self.no_blind is not None:
                results[index] = self.no_blind
            else:
                waiting.append(index)
        waiting.sort(key=lambda index: (*together(prompts[index]), -lengths[index]))
        needed = Counter(image.key for i in waiting if not prompts[i].hide_images for image in prompts[i].images)
        features: dict[str, torch.Tensor] = {}
        alone: set[int] = set()  # the prompts of a batch that failed: each is tried by itself
        failure: Exception | None = None
        while waiting:
            alike = [i for i in waiting if together(prompts[i]) == together(prompts[waiting[0]])]
            plainly = kind(prompts[waiting[0]]) in self.plainly
            budget = 1 if plainly or waiting[0] in alone else self.max_batch_tokens
            batch = next(plan_batches(lengths, alike, budget))
            outcome = self._attempt([prompts[index] for index in batch], features)
            if isinstance(outcome, PromptError) and len(batch) > 1:
                # Out of memory at this size, or one prompt spoils the batch: nothing is settled yet.
                if outcome.kind == _OUT_OF_MEMORY:
                    self.max_batch_tokens = max(1, len(batch) * lengths[batch[0]] // 2)
                    log.warning("out of memory: going on with at most %d tokens a batch", self.max_batch_tokens)
                else:
                    alone.update(batch)
                continue
            if isinstance(outcome, PromptError):
                results[batch[0]] = outcome
                failure = outcome.__cause__ if isinstance(outcome.__cause__, Exception) else failure
            else:
                self._worked = True
                for index, logp_T in zip(batch, outcome, strict=True):
                    results[index] = logp_T
            for image in (image for i in batch if not prompts[i].hide_images for image in prompts[i].images):
                needed[image.key] -= 1
                if not needed[image.key]:
                    features.pop(image.key, None)
            done = set(batch)
            waiting = [index for index in waiting if index not in done]
        if failure is not None and not self._worked:
            raise failure  # nothing has ever worked: it is the model or the set-up, not the data
        return [result for result in results if result is not None]

    def _attempt(self, prompts: Sequence[Prompt], features: dict[str, torch.Tensor]) -> list[LogProbs] | PromptError:
        """Run one batch; a PromptError where it fails, whose cause is what was raised (none for want of memory).

        Raises EngineDiedError where the device is unusable from now on.
        """
        try:
            return self.run_batch(prompts, features)
        except PromptError as error:
            return error
        except Exception as error:
            if "CUDA error" in str(error):
                raise EngineDiedError(f"the GPU failed: {one_line(error)[:300]}") from error
            failed = error.with_traceback(None)  # its frames hold the batch's tensors
        if not out_of_memory(failed):
            refusal = PromptError(type(failed).__name__, one_line(failed)[:300])
            refusal.__cause__ = failed
            return refusal
        features.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = max(len(prompt.token_ids) for prompt in prompts)
        return PromptError(_OUT_OF_MEMORY, f"{tokens} tokens don't fit by themselves; lower --max-length")

    @torch.inference_mode()
    def run_batch(self, prompts: Sequence[Prompt], features: dict[str, torch.Tensor]) -> list[LogProbs]:
        """One batch: all prompts with visible images, or all with hidden ones. Whatever the model raises is raised.

        `features`: those of images that earlier batches had, by key, to which this one's are added.
        """
        if kind(prompts[0]) in self.plainly:
            return [self.run_plainly(prompt) for prompt in prompts]
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
            inputs.update(self._accepted(of_whole(prompts, self.device, self.dtype)))
        else:
            inputs.update(self._vision_inputs(prompts, features))
        hidden_BLD = self.model.model(**inputs).last_hidden_state
        flat = np.concatenate([index * longest + row.answers - 1 for index, row in enumerate(rows)])
        targets = np.concatenate([row.ids[row.answers] for row in rows])
        hidden_ND = hidden_BLD.flatten(0, 1)[self._to_device(flat)]
        logp_N = self._head_logprobs(hidden_ND, self._to_device(targets.astype(np.int64))).cpu().numpy()
        return np.split(logp_N, np.cumsum([len(row.answers) for row in rows])[:-1])

    @torch.inference_mode()
    def run_plainly(self, prompt: Prompt) -> LogProbs:
        """One sample as its family's own forward takes it, images hidden by the attention mask. Raises PromptError."""
        ids_1L = self._to_device(prompt.token_ids.astype(np.int64)[None])
        mask_1L = torch.ones_like(ids_1L)
        arguments: dict[str, Any] = {}
        if prompt.whole is not None:
            arguments = self._accepted(of_whole([prompt], self.device, self.dtype))
        elif prompt.images:
            arguments = self._collate([image.inputs for image in prompt.images], self.device, self.dtype)
        if self._type_ids and self._type_ids not in arguments:
            arguments[self._type_ids] = self._to_device(prompt.image_mask.astype(np.int64)[None])
        if prompt.hide_images:
            if "cross_attention_mask" in arguments:
                raise PromptError("Blind", "this model reads images beside the text, where no position can be hidden")
            mask_1L -= self._to_device(prompt.image_mask.astype(np.int64)[None])
            arguments["position_ids"] = self._positions_plainly(ids_1L, arguments)
        arguments |= {"input_ids": ids_1L, "attention_mask": mask_1L, "use_cache": False}
        places = self._to_device(prompt.answer_positions.astype(np.int64) - 1)
        targets = self._to_device(prompt.answer_ids.astype(np.int64))
        hidden_1LD = self._last_states(self._accepted(arguments))
        return np.asarray(self._head_logprobs(hidden_1LD[0, places], targets).cpu())

    def _last_states(self, arguments: dict[str, Any]) -> torch.Tensor:
        """What the head is given, [1, L, D]."""
        if self._has_base:
            hidden_1LD: torch.Tensor = self.model.model(**arguments).last_hidden_state
            return hidden_1LD
        given: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            self.model(**arguments)
        finally:
            hook.remove()
        return given[0]

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Without what a processor gives for others than the model."""
        outer = inspect.signature(self.model.forward).parameters
        for name in arguments.keys() - self._arguments:
            if name in outer:
                raise RuntimeError(f"{name} is for the model around the one that is asked")
        return {name: value for name, value in arguments.items() if name in self._arguments}

    def _positions_plainly(self, ids_1L: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Position ids of the clean run: int64 [1, L], or [3, 1, L] for M-RoPE."""
        if not self._has_base or not hasattr(self.model.model, "get_rope_index") or "image_grid_thw" not in arguments:
            return torch.arange(ids_1L.shape[1], device=self.device)[None]
        types = (ids_1L == self._image_token).long()
        positions: torch.Tensor = self.model.model.get_rope_index(
            input_ids=ids_1L, mm_token_type_ids=types, image_grid_thw=arguments["image_grid_thw"],
            attention_mask=torch.ones_like(ids_1L),
        )[0]  # fmt: skip
        return positions

    def _to_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _vision_inputs(self, prompts: Sequence[Prompt], features: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The forward's image arguments: features where the model takes them, each image's made once; else pixels."""
        images = [image for prompt in prompts for image in prompt.images]
        if not images:
            return {}
        if not self._shares_images:
            return self._collate([image.inputs for image in images], self.device, self.dtype)
        missing = {image.key: image for image in images if image.key not in features}
        most = max(1, self.max_batch_tokens // max(1, int(prompts[0].image_mask.sum())))
        for part in _alike(list(missing.values()), most):
            arguments = self._collate([image.inputs for image in part], self.device, self.dtype)
            output = self._makes_features.get_image_features(**arguments, return_dict=True)
            pooled = output.pooler_output
            self._stacked = isinstance(pooled, torch.Tensor)
            if getattr(output, "deepstack_features", None) is not None or len(pooled) != len(part):
                # Features that can't be told apart by image: let the model take the pixels of every prompt.
                self._shares_images = False
                return self._vision_inputs(prompts, features)
            features.update({image.key: feature for image, feature in zip(part, pooled, strict=True)})
        each = [features[image.key] for image in images]
        shared = BaseModelOutputWithPooling(pooler_output=torch.stack(each) if self._stacked else each)
        arguments = {"mm_encoder_outputs": {"image": shared}}
        grids = [image.inputs["image_grid_thw"] for image in images if "image_grid_thw" in image.inputs]
        if grids:
            arguments["image_grid_thw"] = self._to_device(np.concatenate(grids))
        return arguments

    def _positions_of_text(self, prompts: Sequence[Prompt], longest: int) -> torch.Tensor:
        """Position ids as if the images were there: int64 [B, L], or [3, B, L] for M-RoPE."""
        positions = [position_ids(self.model, prompt) for prompt in prompts]
        if self._leaves_out:
            positions = [one[..., ~prompt.image_mask] for one, prompt in zip(positions, prompts, strict=True)]
        return torch.stack(
            [torch.nn.functional.pad(one, (0, longest - one.shape[-1])) for one in positions], dim=-2
        ).to(self.device)

    def _head_logprobs(self, hidden_ND: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """log q of each target, float32 [N]; logits exist for a slice of rows at a time."""
        vocabulary = self.model.config.get_text_config().vocab_size
        rows = max(1, _LOGITS_AT_ONCE // vocabulary)
        slices = []
        for start in range(0, len(hidden_ND), rows):
            logits_NV = capped(self._uncapped_logits(hidden_ND[start : start + rows]), self._softcap)
            target = target_N[start : start + rows, None]
            slices.append(logits_NV.gather(1, target)[:, 0] - logits_NV.logsumexp(dim=1))
        return torch.cat(slices)

    def _uncapped_logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits in float32 whatever the dtype: bfloat16 logits near 16 lie 0.06 apart, as much as a small gain."""
        head = self._head
        if self.dtype == torch.float32 or type(head) is not torch.nn.Linear:
            logits = head(hidden_ND).float()
        elif self.device.type == "cuda":
            logits = torch.mm(hidden_ND, head.weight.T, out_dtype=torch.float32)
        else:
            if self._head_weight is None:
                self._head_weight = head.weight.float()
            logits = hidden_ND.float() @ self._head_weight.T
        if type(head) is torch.nn.Linear and head.bias is not None and self.dtype != torch.float32:
            logits = logits + head.bias.float()
        return torch.as_tensor(logits)


def _alike(images: Sequence[PromptImage], most: int) -> Iterator[list[PromptImage]]:
    """Images in groups of at most `most` whose arrays can be joined: equal but for their first dimension."""
    groups: dict[Any, list[PromptImage]] = {}
    for image in images:
        shape = tuple((name, array.shape[1:]) for name, array in sorted(image.inputs.items()))
        groups.setdefault(shape, []).append(image)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def out_of_memory(error: Exception) -> bool:
    """Whether a device or the host ran out of memory; some of PyTorch's allocators raise a plain RuntimeError."""
    phrases = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in phrases)


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
