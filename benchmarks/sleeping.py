"""An engine that sleeps for as long as a GPU would compute: `--engine sleeping:engine`, with benchmarks/ on PYTHONPATH.

`VIG_SLEEP_MS`: milliseconds a sample, both passes; by default none. Its log-probs are made from the token ids.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vig_ray.model.prompt import Prompt
from vig_ray.scoring.engines import LogProbs


class Sleeping:
    """See the module."""

    description = "sleeping"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def logprobs(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        """Made-up log-probs, different with and without the image."""
        time.sleep(self._seconds * len(prompts) / 2)
        return [made_up(prompt, blurred=bool(number % 2)) for number, prompt in enumerate(prompts)]


def made_up(prompt: Prompt, *, blurred: bool) -> LogProbs:
    """-0.01 a unit of the token id modulo 100, twice that without the image."""
    ids = prompt.token_ids[prompt.answer_positions]
    return (-0.01 * (1 + blurred) * (ids % 100)).astype(np.float32)


def engine(**_: Any) -> Sleeping:
    """What `--engine` names."""
    return Sleeping(float(os.environ.get("VIG_SLEEP_MS", "0")) / 1000)
