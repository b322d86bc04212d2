"""A benchmark's question, what a model answers to it, and what the answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import Image, Turn


@dataclass(frozen=True)
class Question:
    """One question of a task.

    `id`: the benchmark's own, unique in its task. `prompt`: the user's turn, with an `<image>` mark for each of
    `images`. `expected`: what the answer is compared with, any JSON value. `choices`: texts of which the likeliest is
    the answer where a task compares likelihoods; empty where the model writes its answer. `answer`: the right answer as
    an assistant would write it, for samples made of the task (`vig import --task`); None where there is none. `group`:
    a category of the benchmark, for breakdowns. `unit`: questions of one unit are drawn together by the bootstrap, as
    the circular options of one question; by default each is a unit of its own. `more`: what else its score needs, JSON.

    `before`: turns of the conversation before the prompt, whose `<image>` marks count among those of `images`.
    `passes`: under which passes, "clean" or a reference as `vig score` names it, the log-probs of `answer` are asked
    for, beside what is written or chosen. `writes`: False where they alone are asked for.

    When answers are marked, `images` have their URIs, but not the bytes of those that came as bytes.
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
    before: tuple[Turn, ...] = ()
    passes: tuple[str, ...] = ()
    writes: bool = True


class Answer(NamedTuple):
    """What a model answered: `text`, as it was written or the likeliest of the choices; `logprobs`, of each choice the
    sum over its tokens in nats, and `num_tokens` of each; both empty where the model wrote. `finished`: whether it
    stopped by itself, and not at the most new tokens.

    `first`: of each choice the log-prob of its first token. A choice's tokens are those of its text, without the end of
    the turn.

    Of the question's own `answer`, where it has `passes`: `token_ids` int32 [T], its tokens and what is trained after
    them; `passes`, by pass their log-probs, float32 [T]; a question without an image has the clean one alone.
    `tokens_before`: how many answer tokens the turns before have.
    """

    text: str
    logprobs: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    finished: bool = True
    first: tuple[float, ...] = ()
    token_ids: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)
    passes: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({})
    tokens_before: int = 0


Marks = Mapping[str, float]
"""What one answer is worth, as numbers by name; `score`, from 0 to 1 where that makes sense, is always among them. NaN:
doesn't apply to this answer. Metrics are computed of these numbers alone."""

Columns = Mapping[str, npt.NDArray[np.float64]]
"""The marks of a task's N answers, float64 [N] each."""
