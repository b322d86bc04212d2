"""Engines as a user might write them, for `--engine tests.engines.own:NAME`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np


class Engine:
    """-1 for every answer token; -2 where the images are hidden."""

    description = "one of my own"

    def logprobs(self, prompts: Sequence[Any]) -> list[Any]:
        return [np.full(len(prompt.answer_positions), -1.0 - prompt.hide_images, np.float32) for prompt in prompts]


def engine(*, model: str, dtype: str, device: str, batch_tokens: int, **others: Any) -> Engine:
    assert batch_tokens == 7
    assert (dtype, device) == ("float32", "cpu")
    assert os.path.isdir(model)
    return Engine()


class Burning(Engine):
    """Raises, on two lines."""

    def logprobs(self, prompts: Sequence[Any]) -> list[Any]:
        raise RuntimeError("the board is\n  on fire")


def burning(**_: Any) -> Burning:
    return Burning()
