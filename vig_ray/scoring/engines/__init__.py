"""Engines: prompts in, log-probs of their answer tokens out. An engine knows nothing of VIG or of Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptError

LogProbs = npt.NDArray[np.float32]

NO_BLIND = (
    "vLLM gives every token the position of its place, so it can't hide an image and leave the text where it was, "
    "as the blind reference needs"
)
"""Why the blind reference needs the torch engine."""


class EngineDiedError(RuntimeError):
    """The engine is beyond use; its process has to be replaced, and what it was given has to be given again.

    Its text, one line, is the cause as far as it is known, with the option to change where there is one.
    """


class Engine(Protocol):
    """What every engine offers; one test suite runs against all of them.

    `description`: one line for the log and the record, what computes the log-probs and how. One with a prefix cache
    may have a `prefix_use`, too, a `vig_ray.scoring.engines.prefixes.PrefixUse`, which the stage reports.
    """

    description: str

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """For each prompt, log q(a_t | before) of its answer tokens: float32 [T], natural log, in order.

        A prompt that this engine can't run (too large for its memory alone, say) gives a PromptError in its place;
        the others are not affected. Raises EngineDiedError where the engine can't go on, and anything else only where
        the model or the set-up is at fault.
        """
