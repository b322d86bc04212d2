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


class Refusing(Engine):
    """Refuses some prompts whose images are hidden, and some others; else a function of the ids and the first image."""

    def logprobs(self, prompts: Any) -> list[Any]:
        from vig_ray.model.prompt import PromptError

        def of(prompt: Any) -> Any:
            number = int(prompt.token_ids.sum())
            if number % 2 == 0 and prompt.hide_images:
                return PromptError("Odd", "can't hide these")
            if number % 5 == 0 and not prompt.hide_images:
                return PromptError("Torn", "can't see these")
            brightness = 0.0 if prompt.hide_images else float(prompt.images[0].inputs["pixel_values"].mean())
            ids = prompt.token_ids[prompt.answer_positions]
            return (-0.01 * (1 + ids % 100) * (2 + brightness)).astype(np.float32)

        return [of(prompt) for prompt in prompts]


def refusing(**_: Any) -> Refusing:
    return Refusing()
