"""Answers by any transformers image-text-to-text model or causal language model, on a CPU or a GPU.

The tokens are those of `model.generate` for each prompt alone, but for rounding where two tokens are equally likely.
What makes it faster:

    - prompts are written on in batches, those that are as long and as far allowed together
    - an image's features are made once for all questions about it, and where attention knows positions by their ids
      alone, so are the keys and values of everything up to the image's end (`vig_ray.evaluation.rows`)
    - rows whose answers have ended are left out once they are half of a batch

Not every model stands this; `generator_check.py` holds each way against one prompt alone, and where none is right,
prompts are run one by one. Keys and values are in a cache that grows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from vig_ray.compat.generation import Choose, write
from vig_ray.evaluation.choosing import Choosing
from vig_ray.evaluation.decoding import Acting, Decoding
from vig_ray.evaluation.generation import Sampling, Written, check_sampling, longest_answer, overflow
from vig_ray.evaluation.rows import Line, Row, Rows, aligned
from vig_ray.model.attention import can_pack
from vig_ray.model.prompt import Formatter, Prompt, PromptError
from vig_ray.scoring.engines import EngineDiedError
from vig_ray.scoring.engines.forwards import Kind, kind, together
from vig_ray.scoring.engines.tree import out_of_memory
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

Way = Literal["behind prefixes", "padded", "alone"]
_OUT_OF_MEMORY = "OutOfMemory"
_FEWEST_TOKENS = 64


def default_batch_tokens(device: str) -> int:
    """Tokens that a batch's cache holds, prompts and answers: on a GPU so many that reading the weights is shared by
    dozens of answers, on a CPU a few answers at a time."""
    return 32768 if device.startswith("cuda") else 8192


@dataclass(frozen=True, eq=False)
class _Asked:
    """A prompt with what its answer may be, and the lines that it is run as."""

    index: int
    prompt: Prompt
    sampling: Sampling
    lines: tuple[Line, ...]
    way: Way

    @property
    def together(self) -> tuple[Any, ...]:
        """What those of one batch have in common."""
        length = len(self.prompt.token_ids) if self.way == "padded" and aligned(self.prompt) else 0
        return self.way, len(self.lines), *together(self.prompt), length

    @property
    def longest(self) -> int:
        """Tokens of its longest line, answer included."""
        return max(len(line.prompt.token_ids) for line in self.lines) + self.sampling.max_new_tokens


class TorchGenerator:
    """A `Generator` over a loaded transformers model.

    `stop_ids`: tokens at which the model stops, beside those of `formatter`. `max_batch_tokens` bounds the tokens of a
    batch, padding and answers included; it is halved, and stays so, when the device runs out of memory. `decoding`: a
    method that the next token is chosen by. Raises StageError where the model can't be run by it.
    """

    def __init__(
        self,
        model: Any,
        formatter: Formatter,
        *,
        stop_ids: Collection[int] = (),
        max_batch_tokens: int | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self.model, self.formatter = model, formatter
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(str(self.device))
        self.stop_ids = frozenset((*formatter.stop_ids, *stop_ids))
        self.decoding = decoding or Decoding()
        self.decoding.check(model)
        self.room: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.rows = Rows(model, formatter.collate, self._pad())
        # How prompts are run: behind shared prefixes, padded in batches by their kinds, or one by one.
        self.shares = can_pack(model)
        self.padded: set[Kind] = {"by parts", "whole", "hidden"}
        self.name = type(model).__name__
        self.description = f"torch {torch.__version__}, {self.name} on {self.device} in {self.dtype}"
        if decoding is not None and decoding.name != Decoding.name:
            self.description += f", decoding {decoding.spec}"
        self._worked = False

    def _pad(self) -> int:
        """A token that fills up: any but an image's."""
        tokenizer, image = self.formatter.tokenizer, getattr(self.model.config, "image_token_id", None)
        tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0, 1)
        return int(next(token for token in tokens if token is not None and token != image))

    def generate(self, prompts: Sequence[Prompt], sampling: Sequence[Sampling]) -> list[Written | PromptError]:
        """See `Generator.generate`. Prompts are reordered inside; the answers are in the order given.

        Raises ValueError for a sampling that can't be.
        """
        results: list[Written | PromptError | None] = [None] * len(prompts)
        waiting: list[_Asked] = []
        for index, (prompt, each) in enumerate(zip(prompts, sampling, strict=True)):
            check_sampling(each)
            try:
                waiting.append(self._asked(index, prompt, each))
            except PromptError as error:
                results[index] = error
        failed: Exception | None = None
        alone: set[int] = set()  # the prompts of a batch that failed: each is tried by itself
        waiting.sort(key=_order)
        while waiting:
            batch = self._next_batch(waiting, alone)
            outcome = self._attempt(batch)
            self.rows.features.forget()
            if isinstance(outcome, PromptError) and len(batch) > 1:
                if outcome.kind != _OUT_OF_MEMORY or not self._halve(batch):
                    alone.update(asked.index for asked in batch)
                continue
            if isinstance(outcome, PromptError):
                results[batch[0].index] = outcome
                failed = outcome.__cause__ if isinstance(outcome.__cause__, Exception) else failed
            else:
                self._worked = True
                for asked, written in zip(batch, outcome, strict=True):
                    results[asked.index] = written
            done = {asked.index for asked in batch}
            waiting = [asked for asked in waiting if asked.index not in done]
        if failed is not None and not self._worked:
            raise failed  # nothing has ever worked: it is the model or the set-up, not the data
        return [result for result in results if result is not None]

    def _asked(self, index: int, prompt: Prompt, sampling: Sampling) -> _Asked:
        """Raises PromptError where the prompt can't be run."""
        sampling = longest_answer(prompt, sampling, limit=self.formatter.max_length, room=self.room)
        if prompt.hide_images and not self.rows.can_hide:
            raise PromptError("Blind", "this model's attention counts places, so that an image can't be left out")
        if prompt.hide_images and prompt.whole is not None:
            raise PromptError("Blind", "where a sample goes through its processor as a whole, no image can be left out")
        plain = not prompt.images or prompt.hide_images
        lines = (Decoding() if plain else self.decoding).lines_of(prompt, self.formatter)
        way = self.way(prompt, lines)
        if not plain and self.decoding.acts and way != "behind prefixes":
            raise PromptError("Decoding", f"{self.decoding.name} needs the images before the question, by themselves")
        if len(lines) > 1 and way == "alone":
            raise PromptError("Decoding", f"{self.decoding.name} runs two lines together, which this model can't")
        return _Asked(index, prompt, sampling, lines, way)

    def way(self, prompt: Prompt, lines: Sequence[Line]) -> Way:
        """How a prompt is run."""
        which = kind(prompt)
        if which == "by parts" and self.shares and all(line.prefix for line in lines):
            return "behind prefixes"
        return "padded" if which in self.padded else "alone"

    def _next_batch(self, waiting: Sequence[_Asked], alone: Collection[int]) -> list[_Asked]:
        """As many as go together with the first and fit."""
        first = waiting[0]
        batch = [first]
        if first.way == "alone" or first.index in alone:
            return batch
        longest = first.longest
        for asked in waiting[1:]:
            if asked.together != first.together or asked.index in alone:
                break
            longest = max(longest, asked.longest)
            if (len(batch) + 1) * len(first.lines) * longest > self.max_batch_tokens:
                break
            batch.append(asked)
        return batch

    def _attempt(self, batch: Sequence[_Asked]) -> Sequence[Written | PromptError] | PromptError:
        """Run a batch; a PromptError where it fails, whose cause is what was raised (none for want of memory).

        Raises EngineDiedError where the device is unusable from now on.
        """
        try:
            return self._run(batch)
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
        tokens = max(asked.longest for asked in batch)
        return PromptError(_OUT_OF_MEMORY, f"{tokens} tokens don't fit by themselves; lower --max-new-tokens")

    def _halve(self, batch: Sequence[_Asked]) -> bool:
        """Bound batches by half of what this one takes; False where that is too few to help."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = min(self.max_batch_tokens, len(batch) * len(batch[0].lines) * max(asked.longest for asked in batch))
        if tokens // 2 < _FEWEST_TOKENS:
            return False
        self.max_batch_tokens = tokens // 2
        log.warning("out of memory: going on with at most %d tokens a batch", self.max_batch_tokens)
        return True

    def _run(self, batch: Sequence[_Asked]) -> list[Written | PromptError]:
        """Whatever the model raises is raised."""
        prompts, sampling = [asked.prompt for asked in batch], [asked.sampling for asked in batch]
        count = len(batch[0].lines)
        lines = [asked.lines[number] for number in range(count) for asked in batch]
        acts = self.decoding.acts and bool(prompts[0].images)
        combine = self.decoding.combine if count > 1 else None
        choosing = Choosing(prompts, sampling, self.stop_ids, lines=count, combine=combine)
        most = max(each.max_new_tokens for each in sampling)
        self.write(lines, batch[0].way, choosing, most=most, acts=acts, choosing=choosing)
        answers = zip(choosing.written, choosing.finished, choosing.overflowed, strict=True)
        return [overflow() if overflowed else self._written(ids, done) for ids, done, overflowed in answers]

    def write(
        self,
        lines: Sequence[Line],
        way: Way,
        choose: Choose,
        *,
        most: int,
        acts: bool = False,
        choosing: Choosing | None = None,
    ) -> None:
        """Let `choose` write on these lines together, `most` tokens at most. `acts`: as the decoding method has it."""
        with ExitStack() as stack:
            acting = stack.enter_context(self.decoding.acting(self.model)) if acts else None
            ids, arguments = self._laid_out(lines, way, acting)
            if acting is not None:
                image, after = self.rows.places(lines)
                acting.begins(image, after)
                assert choosing is not None, "a method that acts is told which rows are left"
                choosing.followers.append(acting.rows)
            write(self.model, ids, choose, most=most, pad=self.rows.pad, **arguments)

    def _laid_out(self, lines: Sequence[Line], way: Way, acting: Acting | None) -> Row:
        prompts = [line.prompt for line in lines]
        if way == "alone":
            return self.rows.plainly(prompts[0])
        shared = len({line.key for line in lines}) < len(lines)
        if way == "behind prefixes" and (acting or shared or "by parts" not in self.padded):
            return self.rows.behind_prefixes(lines, acting.rows if acting else None)
        return self.rows.padded(prompts)

    def _written(self, ids: Sequence[int], finished: bool) -> Written:
        text = self.formatter.tokenizer.decode(ids, skip_special_tokens=True)
        return Written(np.array(ids, dtype=np.int32), str(text).strip(), finished)


def _order(asked: _Asked) -> tuple[Any, ...]:
    """Those that go together side by side, the longest first, and those of one image one after the other."""
    return (*asked.together, -asked.sampling.max_new_tokens, -asked.lines[0].prefix, asked.lines[0].key, -asked.longest)
