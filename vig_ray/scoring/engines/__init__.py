"""Engines: prompts in, log-probs of their answer tokens out. An engine knows nothing of VIG or of Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptError

LogProbs = npt.NDArray[np.float32]


class Engine(Protocol):
    """What every engine offers; one test suite runs against all of them."""

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs | PromptError]:
        """For each prompt, log q(a_t | before) of its answer tokens: float32 [T], natural log, in order.

        A prompt that this engine can't run (too large for its memory alone, say) gives a PromptError in its place;
        the others are not affected. Raises only where the engine itself is broken.
        """
