"""The torch engine: any transformers image-text-to-text model, on a CPU or a GPU.

What makes it faster than one forward a sample, with the same numbers:

    - prompts are a tree (`vig_ray.model.packing`): a prefix that several share, a system prompt or that and an image,
      is computed once; no token is padding, and none behind the last answer is computed
    - a prefix that prompts keep beginning with is kept from one call to the next
    - the last layer's MLP and the head run on predicting positions only, the head in slices, its product and the
      log-softmax in float32
    - one vision pass an image
    - hidden images (the blind reference) are left out, and the text keeps its position ids: what attention can't
      see needs no computing

Not every model stands all of this (a sliding window counts places, a recurrent layer reads every one). The others
are run in batches filled by tokens, prompts of like length together, right-padded: a causal model never looks right, so
padding needs no mask. `check.py` holds both ways against one plain forward a sample, and where neither is right,
samples are run plainly, one by one.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from vig_ray.compat.transformers import spare_last_mlp
from vig_ray.model.arrays import of_whole, on_device
from vig_ray.model.attention import NAME, can_pack
from vig_ray.model.head import applied_softcap, capped, forward_arguments, token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.features import Collate, ImageFeatures
from vig_ray.scoring.engines.tree import FEWEST_TOKENS, TreeRunner, out_of_memory
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 1 << 26  # elements: 256 MB of float32
_OUT_OF_MEMORY = "OutOfMemory"


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
    the tokens of a forward, padding included; it is halved, and stays so, when the device runs out of memory.
    `share_prefixes` False: every prompt is computed by itself, to measure what sharing saves.
    """

    def __init__(
        self, model: Any, collate: Collate, *, max_batch_tokens: int | None = None, share_prefixes: bool = True
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(str(self.device))
        self._collate = collate
        self.image_token = int(model.config.image_token_id)
        self.name = type(model).__name__
        self._arguments = accepted = forward_arguments(model)
        self._features = ImageFeatures(model, collate)
        self.type_ids = token_types_argument(model)
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
        # Which prompts are run as a tree; which one by one, in the model's own way; others in padded batches.
        self.packed: set[Kind] = {"by parts", "hidden"} if can_pack(model) else set()
        self.plainly: set[Kind] = set() if self._has_base else {"by parts", "whole", "hidden"}
        self.no_blind: PromptError | None = None  # why images can't be hidden
        self.description = f"torch {torch.__version__}, {type(model).__name__} on {self.device} in {self.dtype}"
        self._own_attention = getattr(text, "_attn_implementation", None) or "sdpa"
        self._tree = TreeRunner(self, share=share_prefixes)
        self.spares_last_mlp = bool(self.packed) and spare_last_mlp(model.get_decoder().layers[-1])

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """See `Engine.logprobs`. Prompts are reordered inside; the answer is in the order given."""
        results: list[LogProbs | PromptError | None] = [None] * len(prompts)
        waiting, packed = [], []
        for index, prompt in enumerate(prompts):
            if len(prompt.answer_positions) == 0:
                results[index] = np.zeros(0, dtype=np.float32)
            elif prompt.hide_images and prompt.image_mask[prompt.answer_positions - 1].any():
                results[index] = PromptError(
                    "Blind", "an answer token directly follows an image, and nothing predicts it"
                )
            elif prompt.hide_images and self.no_blind is not None:
                results[index] = self.no_blind
            elif self._way(prompt) == "packed":
                packed.append(index)
            else:
                waiting.append(index)
        failures = [*self._run_packed(prompts, packed, results), *self._run_batches(prompts, waiting, results)]
        self._features.forget()
        if failures and not self._worked:
            raise failures[-1]  # nothing has ever worked: it is the model or the set-up, not the data
        return [result for result in results if result is not None]

    def _way(self, prompt: Prompt) -> Literal["packed", "padded", "plainly"]:
        which = kind(prompt)
        if which in self.plainly:
            return "plainly"
        return "packed" if which in self.packed else "padded"

    def _run_packed(
        self, prompts: Sequence[Prompt], indices: Sequence[int], results: list[LogProbs | PromptError | None]
    ) -> Iterator[Exception]:
        """Run these prompts as a tree, and fill in their results; where it fails, by halves, to find which one fails.

        Gives what was raised over single prompts.
        """
        groups = [list(indices)] if indices else []
        while groups:
            group = groups.pop()
            outcome = self._attempt([prompts[index] for index in group], self._run_tree)
            if isinstance(outcome, PromptError) and len(group) > 1:
                groups += [group[len(group) // 2 :], group[: len(group) // 2]]
            else:
                yield from self._fill_in(results, group, outcome)

    def _fill_in(
        self,
        results: list[LogProbs | PromptError | None],
        indices: Sequence[int],
        outcome: list[LogProbs] | PromptError,
    ) -> Iterator[Exception]:
        """Write down what came of these prompts, or of one that failed, and give what was raised over it."""
        if isinstance(outcome, PromptError):
            results[indices[0]] = outcome
            if isinstance(outcome.__cause__, Exception):
                yield outcome.__cause__
            return
        self._worked = True
        for index, logp_T in zip(indices, outcome, strict=True):
            results[index] = logp_T

    def _run_tree(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        """These prompts as a tree; whatever the model raises is raised."""
        self.model.set_attn_implementation({"text_config": NAME})
        try:
            return self._tree.run(prompts)
        finally:  # the model's own forward, with its masks, is others' too
            self.model.set_attn_implementation({"text_config": self._own_attention})

    def halve_batches(self, tokens: int) -> bool:
        """Bound forwards by half of `tokens`, for which memory was too short, or, where those are few anyway, by half
        of what they are bound by; False where that is too few to help."""
        self._features.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = min(self.max_batch_tokens, tokens if 2 * tokens > self.max_batch_tokens else self.max_batch_tokens)
        if tokens // 2 < FEWEST_TOKENS:
            return False
        self.max_batch_tokens = tokens // 2
        log.warning("out of memory: going on with at most %d tokens a batch", self.max_batch_tokens)
        return True

    def _run_batches(
        self, prompts: Sequence[Prompt], waiting: Sequence[int], results: list[LogProbs | PromptError | None]
    ) -> Iterator[Exception]:
        """Run these prompts in padded batches or one by one, and fill in their results.

        Gives what was raised over single prompts.
        """
        lengths = [prompt.length if self._leaves_out else len(prompt.token_ids) for prompt in prompts]
        waiting = sorted(waiting, key=lambda index: (*together(prompts[index]), -lengths[index]))
        needed = Counter(image.key for i in waiting if not prompts[i].hide_images for image in prompts[i].images)
        alone: set[int] = set()  # the prompts of a batch that failed: each is tried by itself
        while waiting:
            alike = [i for i in waiting if together(prompts[i]) == together(prompts[waiting[0]])]
            plainly = kind(prompts[waiting[0]]) in self.plainly
            budget = 1 if plainly or waiting[0] in alone else self.max_batch_tokens
            batch = next(plan_batches(lengths, alike, budget))
            outcome = self._attempt([prompts[index] for index in batch], self._run_batch)
            if isinstance(outcome, PromptError) and len(batch) > 1:
                # Out of memory at this size, or one prompt spoils the batch: nothing is settled yet.
                if outcome.kind != _OUT_OF_MEMORY or not self.halve_batches(len(batch) * lengths[batch[0]]):
                    alone.update(batch)
                continue
            yield from self._fill_in(results, batch, outcome)
            for image in (image for i in batch if not prompts[i].hide_images for image in prompts[i].images):
                needed[image.key] -= 1
                if not needed[image.key]:
                    self._features.forget([image.key])
            done = set(batch)
            waiting = [index for index in waiting if index not in done]

    def _attempt(
        self, prompts: Sequence[Prompt], run: Callable[[Sequence[Prompt]], list[LogProbs]]
    ) -> list[LogProbs] | PromptError:
        """Run these prompts; a PromptError where it fails, whose cause is what was raised (none for want of memory).

        Raises EngineDiedError where the device is unusable from now on.
        """
        try:
            return run(prompts)
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
        self._features.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = max(len(prompt.token_ids) for prompt in prompts)
        return PromptError(_OUT_OF_MEMORY, f"{tokens} tokens don't fit by themselves; lower --max-length")

    def run_batch(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        """Prompts of one kind, together, in the way that is set for it. Whatever the model raises is raised."""
        return self._run_tree(prompts) if self._way(prompts[0]) == "packed" else self._run_batch(prompts)

    @torch.inference_mode()
    def _run_batch(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        """One padded batch: all prompts with visible images, or all with hidden ones; or each by itself."""
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
        inputs: dict[str, Any] = {"input_ids": self.to_device(ids_BL), "use_cache": False}
        # All ones, padding too: nothing is masked and, with position ids of our own, nothing is packed.
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if hidden and not self._leaves_out:
            inputs["attention_mask"] -= self.to_device(is_image_BL)
        if self.type_ids:
            inputs[self.type_ids] = self.to_device(is_image_BL)
        if hidden:
            inputs["position_ids"] = self._positions_of_text(prompts, longest)
        elif prompts[0].whole is not None:
            inputs.update(self._accepted(of_whole(prompts, self.device, self.dtype)))
        else:
            images = [image for prompt in prompts for image in prompt.images]
            inputs.update(self.vision_arguments(images, int(prompts[0].image_mask.sum())))
        hidden_BLD = self.model.model(**inputs).last_hidden_state
        flat = np.concatenate([index * longest + row.answers - 1 for index, row in enumerate(rows)])
        targets = np.concatenate([row.ids[row.answers] for row in rows])
        hidden_ND = hidden_BLD.flatten(0, 1)[self.to_device(flat)]
        logp_N = self.head_logprobs(hidden_ND, self.to_device(targets.astype(np.int64))).cpu().numpy()
        return np.split(logp_N, np.cumsum([len(row.answers) for row in rows])[:-1])

    @torch.inference_mode()
    def run_plainly(self, prompt: Prompt) -> LogProbs:
        """One sample as its family's own forward takes it, images hidden by the attention mask. Raises PromptError."""
        ids_1L = self.to_device(prompt.token_ids.astype(np.int64)[None])
        mask_1L = torch.ones_like(ids_1L)
        arguments: dict[str, Any] = {}
        if prompt.whole is not None:
            arguments = self._accepted(of_whole([prompt], self.device, self.dtype))
        elif prompt.images:
            arguments = self._collate([image.inputs for image in prompt.images], self.device, self.dtype)
        if self.type_ids and self.type_ids not in arguments:
            arguments[self.type_ids] = self.to_device(prompt.image_mask.astype(np.int64)[None])
        if prompt.hide_images:
            if "cross_attention_mask" in arguments:
                raise PromptError("Blind", "this model reads images beside the text, where no position can be hidden")
            mask_1L -= self.to_device(prompt.image_mask.astype(np.int64)[None])
            arguments["position_ids"] = self._positions_plainly(ids_1L, arguments)
        arguments |= {"input_ids": ids_1L, "attention_mask": mask_1L, "use_cache": False}
        places = self.to_device(prompt.answer_positions.astype(np.int64) - 1)
        targets = self.to_device(prompt.answer_ids.astype(np.int64))
        hidden_1LD = self._last_states(self._accepted(arguments))
        return np.asarray(self.head_logprobs(hidden_1LD[0, places], targets).cpu())

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
        types = (ids_1L == self.image_token).long()
        positions: torch.Tensor = self.model.model.get_rope_index(
            input_ids=ids_1L, mm_token_type_ids=types, image_grid_thw=arguments["image_grid_thw"],
            attention_mask=torch.ones_like(ids_1L),
        )[0]  # fmt: skip
        return positions

    def to_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """An array as a tensor on the engine's device."""
        return on_device(array, self.device)

    def vision_arguments(
        self, images: Sequence[PromptImage], tokens: int, ahead: Iterable[PromptImage] = ()
    ) -> dict[str, Any]:
        """The forward's arguments for images, of about `tokens` each, in order. `ahead`: those that come next."""
        return self._features.arguments(images, ahead=ahead, at_once=max(1, self.max_batch_tokens // max(1, tokens)))

    def forget_images(self, keys: Iterable[str] | None = None) -> None:
        """Forget the features of images that no prompt needs any more; of all by default."""
        self._features.forget(keys)

    def _positions_of_text(self, prompts: Sequence[Prompt], longest: int) -> torch.Tensor:
        """Position ids as if the images were there: int64 [B, L], or [3, B, L] for M-RoPE."""
        positions = [position_ids(self.model, prompt) for prompt in prompts]
        if self._leaves_out:
            positions = [one[..., ~prompt.image_mask] for one, prompt in zip(positions, prompts, strict=True)]
        return torch.stack(
            [torch.nn.functional.pad(one, (0, longest - one.shape[-1])) for one in positions], dim=-2
        ).to(self.device)

    def head_logprobs(
        self, hidden_KD: torch.Tensor, target_N: torch.Tensor, state_N: np.ndarray[Any, Any] | None = None
    ) -> torch.Tensor:
        """log q of each target, float32 [N], by the state with its number (None: by the one in its place).

        `state_N`: rising. Logits exist for a slice of states at a time.
        """
        vocabulary = self.model.config.get_text_config().vocab_size
        state_N = np.arange(len(hidden_KD)) if state_N is None else state_N
        states = max(1, _LOGITS_AT_ONCE // vocabulary)
        slices = [torch.zeros(0, device=hidden_KD.device)]
        for start in range(0, len(hidden_KD), states):
            logits_KV = capped(self._uncapped_logits(hidden_KD[start : start + states]), self._softcap)
            first, past = np.searchsorted(state_N, (start, start + states)).tolist()
            state = self.to_device(state_N[first:past] - start)
            slices.append(logits_KV[state, target_N[first:past]] - logits_KV.logsumexp(dim=1)[state])
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
