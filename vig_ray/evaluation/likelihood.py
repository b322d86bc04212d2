"""Answers by log-probs, nothing being written: the likeliest of several choices, and the tokens of a known answer.

A choice's log-prob is that of the tokens of its text after the question's prompt, without the end of the turn, as
lm-evaluation-harness and its kin have it. Of choices of different lengths the longer ones are the less likely for that
alone; so they are compared by token or by character as well (acc and acc_norm there are "sum" and "character").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.model.prompt import Prompt, PromptError

By = Literal["sum", "token", "character", "first"]
"""What choices are compared by."""


class Choice(NamedTuple):
    """A choice that a model was given. `logprob`: over its tokens; `first`: of its first token; both in nats."""

    text: str
    logprob: float
    first: float
    tokens: int

    def worth(self, by: By) -> float:
        """What it is compared by: its log-prob as a whole, by token or character, or its first token's."""
        if by == "first":
            return self.first
        return self.logprob / {"sum": 1, "token": self.tokens, "character": max(1, len(self.text))}[by]


def compared_by(task: object) -> By:
    """What a task compares choices by. Raises StageError where it says something else."""
    by = getattr(task, "by", "sum")
    if by not in get_args(By):
        raise StageError(
            f"{getattr(task, 'name', task)}: choices are compared by {', '.join(get_args(By))}, not {by!r}"
        )
    return cast(By, by)


def likeliest(choices: Sequence[Choice], by: By) -> int:
    """The place of the likeliest choice, the first of several that are equal."""
    return int(np.argmax([choice.worth(by) for choice in choices]))


def of_choice(prompt: Prompt) -> Prompt:
    """The prompt of a question with a choice as its answer, the tokens of the choice's text alone marked; and one
    before it, where the tokenizer splits off the space there. Raises PromptError where there is none."""
    marked = prompt.turns == prompt.turns.max(initial=-1)
    ends = prompt.answer_chars[marked, 1].max(initial=0)
    marked &= prompt.answer_chars[:, 0] < ends  # what is trained after an answer covers none of its characters
    if not marked.any():
        raise PromptError("NoAnswer", "a choice has no token")
    return replace(
        prompt,
        answer_positions=prompt.answer_positions[marked],
        turns=prompt.turns[marked],
        answer_chars=prompt.answer_chars[marked],
    )


def measured(text: str, prompt: Prompt, logprobs_T: npt.NDArray[np.float32]) -> Choice:
    """A choice by the log-probs of its tokens, which are those that `of_choice` has marked in `prompt`."""
    summed = np.cumsum(logprobs_T, dtype=np.float64)
    first = int(np.argmax(prompt.answer_chars[:, 1] > 0))
    return Choice(text, float(summed[-1]), float(summed[first]), len(summed))


class Known(NamedTuple):
    """The tokens of a known answer, int32 [T], and how many answer tokens come before them."""

    token_ids: npt.NDArray[np.int32]
    before: int


def known_answer(prompt: Prompt) -> Known:
    """The last answer of a prompt. Raises PromptError where it has no token."""
    last = prompt.turns == prompt.turns.max(initial=-1)
    if not last.any():
        raise PromptError("NoAnswer", "no answer token")
    return Known(prompt.answer_ids[last], int((~last).sum()))
