"""What answers: a generator that writes, and an engine for log-probs, over one and the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.generation import Generator, Sampling, Written
from vig_ray.model.load import Prompts, load_formatter, load_model
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
