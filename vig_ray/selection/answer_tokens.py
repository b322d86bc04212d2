"""The answer tokens of a sample, told again from its conversation: their turns, their characters, their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.prompt import Formatter, PromptError, PromptImage


class AnswerTokens(NamedTuple):
    """All T answer tokens of a sample, of which the first `scored` have a weight; those behind a length limit have 0.

    `ids`, `weights`, `turns` [T]; `chars` [T, 2]: first and past the last character of the turn's text.
    """

    ids: list[int]
    weights: list[float]
    turns: list[int]
    chars: list[list[int]]
    scored: int

    @property
    def active(self) -> int:
        """How many are trained on."""
        return sum(weight > 0 for weight in self.weights)

    def spans(self) -> list[dict[str, int]]:
        """The characters of the active tokens, by assistant turn, in as few spans as they make."""
        spans: list[dict[str, int]] = []
        for weight, turn, (first, past) in zip(self.weights, self.turns, self.chars, strict=True):
            if weight <= 0 or first == past:
                continue
            if spans and spans[-1]["turn"] == turn and spans[-1]["end"] >= first:
                spans[-1]["end"] = max(spans[-1]["end"], past)
            else:
                spans.append({"turn": turn, "start": first, "end": past})
        return spans

    def of_turns(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """Each assistant turn that has answer tokens: its number, their ids and weights."""
        for turn in sorted(set(self.turns)):
            at = [index for index, each in enumerate(self.turns) if each == turn]
            yield turn, [self.ids[index] for index in at], [self.weights[index] for index in at]


def answer_tokens(
    row: Mapping[str, Any], ids: list[int], weights: list[float] | None, formatter: Formatter
) -> AnswerTokens:
    """A row of samples/ with its selection's tokens and weights (None: 1 each).

    Raises StageError where the tokens aren't those that were scored.
    """
    conversation = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
    # The characters of answers don't depend on what the images show.
    blank = PromptImage("blank", _blank, formatter.preprocess)
    try:
        prompt = formatter.prompt(conversation, [blank] * len(row["images"] or ()))
    except PromptError as error:
        raise StageError(f"{row['sample_key']}: {error}") from error
    every = prompt.answer_ids.tolist()
    if every[: len(ids)] != ids:  # more of them, where a length limit cut the scored ones
        raise StageError(f"{row['sample_key']}: its tokens aren't those that were scored; score the dataset again")
    given = [1.0] * len(ids) if weights is None else weights
    return AnswerTokens(
        every,
        [*given, *[0.0] * (len(every) - len(given))],
        prompt.turns.tolist(),
        prompt.answer_chars.tolist(),
        len(ids),
    )


def _blank() -> npt.NDArray[np.uint8]:
    return np.zeros((64, 64, 3), np.uint8)
