"""The torch engine: any transformers image-text-to-text model or causal language model, on a CPU or a GPU.

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

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from vig_ray.compat.transformers import spare_last_mlp
from vig_ray.model.arrays import on_device
from vig_ray.model.attention import NAME, can_pack
from vig_ray.model.head import token_types_argument
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.features import Collate, ImageFeatures
from vig_ray.scoring.engines.forwards import Forwards, Kind, kind, plan_batches, together
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs
from vig_ray.scoring.engines.tree import FEWEST_TOKENS, TreeRunner, out_of_memory
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = "OutOfMemory"
_NO_TOKEN = -1  # the image token of a language model


def default_batch_tokens(device: str) -> int:
    """Tokens a batch: enough to fill a large GPU's matrix units, small enough for a CPU's caches."""
    return 16384 if device.startswith("cuda") else 1024


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
        self.image_token = int(getattr(model.config, "image_token_id", _NO_TOKEN))
        self.name = type(model).__name__
        self.type_ids = token_types_argument(model)
        self.head_logprobs = TargetLogProbs(model)
        self._features = ImageFeatures(model, collate)
        self._forwards = Forwards(model, collate, self.head_logprobs)
        self._worked = False
        # Which prompts are run as a tree; which one by one, in the model's own way; others in padded batches.
        self.packed: set[Kind] = {"by parts", "hidden"} if can_pack(model) else set()
        self.plainly: set[Kind] = set() if self._forwards.has_base else {"by parts", "whole", "hidden"}
        self.no_blind: PromptError | None = None  # why images can't be hidden
        self.description = f"torch {torch.__version__}, {type(model).__name__} on {self.device} in {self.dtype}"
        self._own_attention = getattr(model.config.get_text_config(), "_attn_implementation", None) or "sdpa"
        # By what name transformers is told the attention of the part that reads the text: all of a language model.
        self._text_part = "" if self.image_token == _NO_TOKEN else "text_config"
        self._tree = TreeRunner(self, share=share_prefixes)
        self.spares_last_mlp = bool(self.packed) and spare_last_mlp(model.get_decoder().layers[-1])

    def ask(self, head: TargetLogProbs) -> None:
        """From now on `logprobs` gives what `head` makes of the states and the answer tokens that they predict."""
        self.head_logprobs = head
        self._forwards.ask(head)

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
        self.model.set_attn_implementation({self._text_part: NAME})
        try:
            return self._tree.run(prompts)
        finally:  # the model's own forward, with its masks, is others' too
            self.model.set_attn_implementation({self._text_part: self._own_attention})

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
        lengths = [self._forwards.length(prompt) for prompt in prompts]
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

    def _run_batch(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        if kind(prompts[0]) in self.plainly:
            return [self.run_plainly(prompt) for prompt in prompts]
        return self._forwards.batch(prompts, self.vision_arguments)

    def run_plainly(self, prompt: Prompt) -> LogProbs:
        """One sample as its family's own forward takes it, images hidden by the attention mask. Raises PromptError."""
        return self._forwards.plainly(prompt)

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
