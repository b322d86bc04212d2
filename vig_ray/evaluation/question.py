"""A benchmark's question, what a model answers to it, and what the answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import Image


@dataclass(frozen=True)
class Question:
    """One question of a task.

    `id`: the benchmark's own, unique in its task. `prompt`: the user's turn, with an `<image>` mark for each of
    `images`. `expected`: what the answer is compared with, any JSON value. `choices`: texts of which the likeliest is
    the answer where a task compares likelihoods; empty where the model writes its answer. `answer`: the right answer as
    an assistant would write it, for samples made of the task (`vig import --task`); None where there is none. `group`:
    a category of the benchmark, for breakdowns. `unit`: questions of one unit are drawn together by the bootstrap, as
    the circular options of one question; by default each is a unit of its own. `more`: what else its score needs, JSON.
    """

    id: str
    prompt: str
    images: tuple[Image, ...]
    expected: Any
    choices: tuple[str, ...] = ()
    answer: str | None = None
    group: str | None = None
    unit: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """What a model answered: `text`, as it was written or the likeliest of the choices; `logprobs`, of each choice the
    sum over its tokens in nats, and `num_tokens` of each; both empty where the model wrote. `finished`: whether it
    stopped by itself, and not at the most new tokens."""

    text: str
    logprobs: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    finished: bool = True


Marks = Mapping[str, float]
"""What one answer is worth, as numbers by name; `score`, from 0 to 1 where that makes sense, is always among them. NaN:
doesn't apply to this answer. Metrics are computed of these numbers alone."""

Columns = Mapping[str, npt.NDArray[np.float64]]
"""The marks of a task's N answers, float64 [N] each."""
