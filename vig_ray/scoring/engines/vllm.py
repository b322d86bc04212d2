"""The vLLM engine: log-probs of answer tokens as vLLM's prompt log-probs. `vllm_start.py` starts the vLLM in it.

vLLM gets what the CPU stage made, as it is: the token ids with every image token in place, and each image's arrays
for the model. So nothing is preprocessed twice, vLLM's own serial image processing is never run, and both engines
see the same numbers.

There are two ways to ask, by what the vLLM at hand can do:

    AnswerRowsRequest    V2 model runner (GPUs): the head runs from the first answer token on, the answer is a float32
                         array, and samples of one image start from its cached prefix
    WholePromptRequest   V1 model runner (CPUs, some models): log-probs of the whole prompt, images too, in flat lists
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import vllm
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError

from vig_ray.compat.vllm import Placed, engine_input, image_item_maker, means_death, uses_v2_runner
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage
from vig_ray.model.text_only import TextOnly
from vig_ray.scoring.engines import NO_BLIND, EngineDiedError, LogProbs
from vig_ray.scoring.engines.prefixes import PrefixUse, order_by_prefix
from vig_ray.scoring.engines.vllm_faults import cause_of, wake_when_dead
from vig_ray.storage import one_line

log = logging.getLogger(__name__)
R = TypeVar("R")

MAX_IN_FLIGHT = 256
"""Requests that vLLM holds at a time: several steps' worth, so that it never waits for the next one."""


class LogprobRequest(Protocol):
    """How to ask for a prompt's answer tokens, and how to read the answer."""

    words: str

    def ask(self, prompt: Prompt, *, from_cache: bool) -> SamplingParams:
        """What to send with a prompt; `from_cache`: it may start from a cached prefix, where the request can."""

    def read(self, prompt: Prompt, output: Any) -> LogProbs | None:
        """The answer tokens' log-probs, float32 [T]; None where they have to be asked for again, not from the cache."""


class AnswerRowsRequest:
    """Rows of the head from the one that predicts the first answer token: `prompt_logprob_start` and its ids."""

    words = "answer rows only, an image's prefix computed once (V2 model runner)"

    def ask(self, prompt: Prompt, *, from_cache: bool) -> SamplingParams:
        """Row i, i >= start, predicts token i + 1; every row asks for the token that is really there."""
        start = int(prompt.answer_positions[0]) - 1
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            prompt_logprob_start=start,
            prompt_logprob_token_ids=prompt.token_ids[start + 1 :, None].astype(np.int64),
            # vLLM's default is True, since rows before the end of a cached prefix are never computed.
            skip_reading_prefix_cache=not from_cache,
        )

    def read(self, prompt: Prompt, output: Any) -> LogProbs | None:
        """None where the cached prefix reached past the first row: same image, same question, same first words."""
        rows = output.prompt_token_id_logprobs
        if rows is None:
            return None
        start = int(prompt.answer_positions[0]) - 1
        expected = (len(prompt.token_ids) - 1 - start, 1)
        if rows.shape != expected:
            raise RuntimeError(f"vLLM gave log-probs of shape {rows.shape} where {expected} were asked for")
        return np.asarray(rows[prompt.answer_positions - 1 - start, 0], dtype=np.float32)


class WholePromptRequest:
    """Every token of the prompt: `prompt_logprobs=0`, the actual token only, in vLLM's flat lists."""

    words = "log-probs of whole prompts, prefixes not shared (V1 model runner)"

    def ask(self, prompt: Prompt, *, from_cache: bool) -> SamplingParams:  # noqa: ARG002
        """With a cached prefix the list would be short, or hold uninitialised rows: reads are always off."""
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            prompt_logprobs=0,
            flat_logprobs=True,
            skip_reading_prefix_cache=True,
        )

    def read(self, prompt: Prompt, output: Any) -> LogProbs | None:
        """Position p's entry is log q(token p | before it); position 0 has none."""
        flat = output.prompt_logprobs
        if flat is None or len(flat.start_indices) != len(prompt.token_ids):
            count = "none" if flat is None else len(flat.start_indices)
            raise RuntimeError(f"vLLM gave {count} prompt log-probs for {len(prompt.token_ids)} tokens")
        entries = np.asarray(flat.start_indices)[prompt.answer_positions]
        if (np.asarray(flat.token_ids)[entries] != prompt.answer_ids).any():
            raise RuntimeError("vLLM gave the log-probs of other tokens than the prompt's")
        logp_T: LogProbs = np.asarray(flat.logprobs, dtype=np.float32)[entries]
        return logp_T


class VllmEngine:
    """An `Engine` over a running vLLM `LLMEngine`.

    `formatter`: the one that the prompts come from; its `collate` makes an image's tensors. `prefix_use` counts what
    the prefix cache had. `running`: what computes, in words.
    """

    def __init__(self, engine: Any, formatter: Formatter, *, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self.engine = engine
        self.max_in_flight = max_in_flight
        self.max_length = int(engine.model_config.max_model_len)
        self.logprob_request: LogprobRequest = AnswerRowsRequest() if uses_v2_runner(engine) else WholePromptRequest()
        config = engine.vllm_config
        where = f"{config.device_config.device_type} in {engine.model_config.dtype}"
        self.running = f"vLLM {vllm.__version__}, {engine.model_config.architecture} on {where}"
        self.description = f"{self.running}: {self.logprob_request.words}"
        self.prefix_use = PrefixUse()
        self._formatter = formatter
        self._make_item = None if isinstance(formatter, TextOnly) else image_item_maker(engine)
        self._numbers = itertools.count()
        wake_when_dead(engine.engine_core)

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """See `Engine.logprobs`. Prompts that begin alike are sent in succession; the answer is in the order given."""
        results: list[LogProbs | PromptError | None] = [None] * len(prompts)
        for index, prompt in enumerate(prompts):
            if len(prompt.answer_positions) == 0:
                results[index] = np.zeros(0, dtype=np.float32)
            else:
                results[index] = self._refused(prompt)
        self.exchange(
            prompts,
            results,
            lambda index, from_cache: self.logprob_request.ask(prompts[index], from_cache=from_cache),
            lambda index, output: self.logprob_request.read(prompts[index], output),
        )
        return [result for result in results if result is not None]

    def exchange(
        self,
        prompts: Sequence[Prompt],
        results: list[R | PromptError | None],
        ask: Callable[[int, bool], SamplingParams],
        read: Callable[[int, Any], R | PromptError | None],
    ) -> None:
        """Send the prompts that have no result yet, and fill in what comes of each.

        `ask`: what to send with a prompt, by its index and whether it may start from a cached prefix. `read`: what a
        finished output says; None where it has to be asked for again, not from the cache.
        """
        waiting = deque((index, True) for index in order_by_prefix(prompts) if results[index] is None)
        flying: dict[str, tuple[int, bool]] = {}
        items: dict[str, Any] = {}  # the last prompt's images, as vLLM takes them: the next one often has the same
        try:
            while waiting or flying:
                while waiting and len(flying) < self.max_in_flight:
                    index, from_cache = waiting.popleft()
                    prompt = prompts[index]
                    name = str(next(self._numbers))
                    try:
                        items = {image.key: items.get(image.key) or self.item(image) for image in prompt.images}
                        self._send(name, prompt, items, ask(index, from_cache))
                    except EngineDiedError:
                        raise
                    except (VLLMClientError, ValueError, KeyError, RuntimeError) as error:
                        results[index] = PromptError(type(error).__name__, one_line(error)[:300])
                    else:
                        flying[name] = index, from_cache
                for output in self._step() if flying else ():
                    if not output.finished:
                        continue
                    index, from_cache = flying.pop(output.request_id)
                    self.prefix_use.add(len(prompts[index].token_ids), output.num_cached_tokens or 0)
                    found = self._refusal(output) or read(index, output)
                    if found is not None:
                        results[index] = found
                    elif from_cache:
                        waiting.append((index, False))
                    else:
                        results[index] = PromptError("Vllm", "no log-probs came back")
        except EngineDiedError:
            raise
        except BaseException:
            self.engine.abort_request(list(flying))  # or they would turn up in the next call
            raise

    def item(self, image: PromptImage) -> Any:
        """An image as vLLM's model takes it: the formatter's tensors, in vLLM's wrapping."""
        tensors = self._formatter.collate([image.inputs], "cpu", self.engine.model_config.dtype)
        # Models that cut an image into a number of tiles want that number; others leave it out.
        tiles = torch.tensor([len(tensors["pixel_values"])]) if "pixel_values" in tensors else torch.tensor([1])
        assert self._make_item is not None, "a language model takes no images"
        return self._make_item({"num_patches": tiles, **tensors})

    def _refused(self, prompt: Prompt) -> PromptError | None:
        """Why this engine can't run a prompt, where it can't."""
        if prompt.hide_images:
            return PromptError("Blind", f"{NO_BLIND}; --engine torch can")
        if len(prompt.token_ids) >= self.max_length:
            return PromptError(
                "TooLong",
                f"{len(prompt.token_ids)} tokens, and vLLM's max_model_len must be one more at least; "
                f"it is {self.max_length}",
            )
        return None

    def _send(self, name: str, prompt: Prompt, items: Mapping[str, Any], params: SamplingParams) -> None:
        """Queue one request; raises what vLLM raises where it refuses it."""
        request = engine_input(prompt.token_ids.tolist(), _placed(prompt, items))
        try:
            self.engine.add_request(name, request, params)
        except Exception as error:
            if means_death(error, self.engine.engine_core):
                raise EngineDiedError(cause_of(error)) from error
            raise

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self.engine.step()
        except Exception as error:  # whatever it is, vLLM's scheduler and its requests don't fit together any more
            raise EngineDiedError(cause_of(error)) from error
        return outputs

    def _refusal(self, output: Any) -> PromptError | None:
        """Why a request gave nothing, where it didn't."""
        reason = output.outputs[0].finish_reason if output.outputs else None
        return None if reason in ("length", "stop") else PromptError("Vllm", f"the request ended with {reason!r}")


def _placed(prompt: Prompt, items: Mapping[str, Any]) -> list[Placed]:
    """A prompt's images at their places. Their keys are what vLLM's caches know them by: clean and blurred differ.

    With a mask where the processor put text of its own between an image's features.
    """
    placed = []
    for image, (start, past) in zip(prompt.images, prompt.image_spans.tolist(), strict=True):
        features = prompt.image_mask[start:past]
        mask = None if features.all() else torch.from_numpy(features.copy())
        placed.append(Placed(items[image.key], image.key, start, past - start, mask))
    return placed
