"""What answers: a generator that writes, and an engine for log-probs, over one and the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.generation import Generator, Sampling, Written
from vig_ray.evaluation.load import load_generator
from vig_ray.model.load import Prompts
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines import Engine, LogProbs
from vig_ray.scoring.engines.load import load_engine, own_engine


class Answering:
    """An `Engine` and a `Generator` in one; either may be missing, where nothing is asked of it."""

    def __init__(self, engine: Engine | None, generator: Generator | None, description: str) -> None:
        self._engine, self._generator, self.description = engine, generator, description

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """See `Engine.logprobs`."""
        return self._engine.logprobs(prompts) if self._engine is not None and prompts else []

    def generate(self, prompts: Sequence[Prompt], sampling: Sequence[Sampling]) -> list[Written | PromptError]:
        """See `Generator.generate`."""
        return self._generator.generate(prompts, sampling) if self._generator is not None and prompts else []


def load_answering(
    name: str,
    prompts: Prompts,
    *,
    writes: bool,
    scores: bool,
    dtype: str,
    device: str,
    batch_tokens: int | None,
    threads: int | None,
    vllm: Mapping[str, Any] | None = None,
    max_new_tokens: int = 1024,
    decoding: str | None = None,
) -> Answering:
    """What answers with the checkpoint of `prompts`. `name`: torch, vllm or MODULE:NAME.

    `writes`, `scores`: what is asked of it. `max_new_tokens`: the most of any answer. `decoding`: as --decoding has it.
    The rest is `load_engine`'s. Raises StageError where the checkpoint or an option is wrong.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_tokens": batch_tokens, "threads": threads}
    if ":" in name:
        return _own(name, prompts, writes=writes, scores=scores, **options)
    # torch: the generator takes the engine's model. vLLM: the engine is the generator's, which has room for answers.
    engine: Engine | None = None
    if scores and not (writes and name == "vllm"):
        engine = load_engine(name, **prompts._asdict(), **options, vllm=vllm)
    generator: Any = None
    if writes:
        generator = load_generator(
            name,
            **prompts._asdict(),
            **options,
            vllm=vllm,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
            loaded=getattr(engine, "model", None),
        )
        if scores and engine is None:
            engine = generator.engine
    described: Engine | Generator | None = generator or engine
    return Answering(engine, generator, described.description if described else "nothing is asked")


def _own(name: str, prompts: Prompts, *, writes: bool, scores: bool, **options: Any) -> Answering:
    """What "MODULE:NAME" makes: an object that has `logprobs`, `generate` or both."""
    made: Any = own_engine(name)(
        model=prompts.model, template=prompts.template, max_length=prompts.max_length, **options
    )
    for asked, method, what in ((scores, "logprobs", "computes no log-probs"), (writes, "generate", "writes nothing")):
        if asked and not hasattr(made, method):
            raise StageError(f"--engine {name}: it has no {method}(), so it {what}, which these tasks need")
    return Answering(made if scores else None, made if writes else None, made.description)
