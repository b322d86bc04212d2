"""Answers by vLLM, which gets what the CPU stage made, as scoring's engine does: token ids and each image's arrays.

Questions about one image follow each other, and start from its cached prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vig_ray.evaluation.generation import Sampling, Written, check_sampling, longest_answer, overflow, seed_of
from vig_ray.model.checkpoint import config_of, local_folder
from vig_ray.model.prompt import Formatter, Prompt, PromptError
from vig_ray.scoring.engines import NO_BLIND


class VllmGenerator:
    """A `Generator` over scoring's `VllmEngine`, which holds a running vLLM.

    `stop_ids`: the tokens at which an answer is at its end.
    """

    def __init__(self, engine: Any, formatter: Formatter, stop_ids: Sequence[int]) -> None:
        self.engine, self.formatter = engine, formatter
        self.stop_ids = list(stop_ids)
        self.description: str = engine.running

    def generate(self, prompts: Sequence[Prompt], sampling: Sequence[Sampling]) -> list[Written | PromptError]:
        """See `Generator.generate`. Raises ValueError for a sampling that can't be."""
        from vllm import SamplingParams

        results: list[Written | PromptError | None] = [None] * len(prompts)
        fitting = list(sampling)
        for index, (prompt, each) in enumerate(zip(prompts, sampling, strict=True)):
            check_sampling(each)
            try:
                fitting[index] = self._fitting(prompt, each)
            except PromptError as error:
                results[index] = error

        def ask(index: int, from_cache: bool) -> Any:
            each = fitting[index]
            return SamplingParams(
                max_tokens=each.max_new_tokens,
                temperature=each.temperature,
                top_p=each.top_p if each.temperature else 1.0,
                seed=seed_of(prompts[index], each.seed) if each.temperature else None,
                stop_token_ids=self.stop_ids,
                ignore_eos=True,  # the stop tokens have it where it is one
                detokenize=False,
                logprobs=0,  # of the tokens written, which tell whether logits were numbers
                flat_logprobs=True,
                skip_reading_prefix_cache=not from_cache,
            )

        self.engine.exchange(prompts, results, ask, lambda _, output: self._written(output.outputs[0]))
        return [result for result in results if result is not None]

    def _fitting(self, prompt: Prompt, sampling: Sampling) -> Sampling:
        if prompt.hide_images:
            raise PromptError("Blind", f"{NO_BLIND}; --engine torch can")
        if prompt.whole is not None:
            raise PromptError("Processor", "a sample made as a whole by its processor is for --engine torch")
        return longest_answer(prompt, sampling, limit=self.formatter.max_length, room=self.engine.max_length)

    def _written(self, output: Any) -> Written | PromptError:
        # vLLM goes on with some token where a logit is NaN or infinite; then the log-prob of what it took is NaN.
        if not math.isfinite(output.cumulative_logprob):
            return overflow()
        ids = list(output.token_ids)
        finished = bool(ids) and ids[-1] in self.stop_ids
        ids = ids[:-1] if finished else ids
        text = self.formatter.tokenizer.decode(ids, skip_special_tokens=True)
        return Written(np.array(ids, dtype=np.int32), str(text).strip(), finished)


def start(
    model: str,
    formatter: Formatter,
    stop_ids: Sequence[int],
    *,
    dtype: str,
    device: str,
    batch_tokens: int | None,
    threads: int | None,
    options: Mapping[str, Any],
    max_new_tokens: int,
) -> VllmGenerator:
    """Start vLLM with checkpoint `model` and room for prompts of any length with such answers, as far as the model has
    it: an answer ends where the context does, as the torch generator's do.

    `options` go to vLLM's EngineArgs and win over what is set here. Raises StageError as
    `vig_ray.scoring.engines.vllm_start.start` does.
    """
    from vig_ray.scoring.engines import vllm_start

    longest = getattr(config_of(local_folder(model, weights=False)).get_text_config(), "max_position_embeddings", None)
    wanted = formatter.max_length + max_new_tokens
    room = min(wanted, longest or wanted)
    engine = vllm_start.start(
        model, formatter, dtype=dtype, device=device, batch_tokens=batch_tokens, threads=threads,
        options={"max_model_len": room, **options},
    )  # fmt: skip
    return VllmGenerator(engine, formatter, stop_ids)
