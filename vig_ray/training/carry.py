"""Token weights for a model with another tokenizer, template or end of turn: carried over by the characters of answers.

A token of the model that is trained takes the mean of the old tokens' weights over the characters that it covers. Of a
mask it is active where the mean is a half or more, so that a mask stays one; other weights are scaled so that their
mean over the sample stays what it was. A token that covers no character, such as the end of a turn, takes the mean
weight of the old ones of its turn that cover none. What the old length limit cut off has no weight.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import is_local
from vig_ray.model.load import Prompts, load_formatter, template_fingerprint
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.options import Template
from vig_ray.selection.answer_tokens import AnswerTokens, answer_tokens
from vig_ray.selection.strategies import strategies
from vig_ray.storage import absolute
from vig_ray.training.objective import Weights

log = logging.getLogger(__name__)


class Carried(NamedTuple):
    """`weights_T`, float32 [T]. `exact_T`: which of the T tokens begin and end where old tokens do."""

    weights_T: Weights
    exact_T: npt.NDArray[np.bool_]


def carry_weights(old: AnswerTokens, prompt: Prompt) -> Carried:
    """The weights of a sample's old answer tokens on those of `prompt`."""
    old_weights, old_chars, old_turns = np.asarray(old.weights), np.asarray(old.chars), np.asarray(old.turns)
    weights = np.zeros(len(prompt.turns))
    exact = np.zeros(len(prompt.turns), dtype=bool)
    for turn in sorted(set(prompt.turns.tolist())):
        here, there = prompt.turns == turn, old_turns == turn
        if there.any():
            weights[here], exact[here] = _of_turn(old_weights[there], old_chars[there], prompt.answer_chars[here])
    if np.isin(old_weights, (0, 1)).all():
        return Carried((weights >= 0.5).astype(np.float32), exact)
    # Both means are of what was scored: not of what the old length limit cut off.
    was_scored = np.arange(len(old_weights)) < old.scored
    of_scored = np.zeros(len(weights), dtype=bool)
    for turn in sorted(set(prompt.turns.tolist())):
        here, there = prompt.turns == turn, old_turns == turn
        if there.any():
            shares, _ = _of_turn(was_scored[there].astype(np.float64), old_chars[there], prompt.answer_chars[here])
            of_scored[here] = shares >= 0.5
    mean = old_weights[was_scored].mean() if was_scored.any() else 0.0
    carried = weights[of_scored].mean() if of_scored.any() else 0.0
    return Carried((weights * (mean / carried if carried else 0.0)).astype(np.float32), exact)


def _of_turn(
    weights_N: npt.NDArray[np.float64], chars_N: npt.NDArray[np.int64], onto_T: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The weights of T tokens of a turn from its N old ones, and which of them are exact."""
    length = int(max(chars_N.max(), onto_T.max(), 0))
    of_character = np.full(length, np.nan)
    covers = chars_N[:, 0] < chars_N[:, 1]
    for weight, (first, past) in zip(weights_N[covers], chars_N[covers].tolist(), strict=True):
        of_character[first:past] = weight
    # A space that no old token covers goes with what is before it, or, at the beginning, behind it.
    known = np.flatnonzero(np.isfinite(of_character))
    if len(known):
        before = np.maximum(np.searchsorted(known, np.arange(length), side="right") - 1, 0)
        of_character = of_character[known[before]]
    bare = weights_N[~covers].mean() if (~covers).any() else weights_N.mean()
    ends = set(chars_N[covers].ravel().tolist())
    weights, exact = np.zeros(len(onto_T)), np.zeros(len(onto_T), dtype=bool)
    for token, (first, past) in enumerate(onto_T.tolist()):
        covered = first < past and len(known) > 0
        weights[token] = of_character[first:past].mean() if covered else bare
        exact[token] = (first in ends and past in ends) if first < past else bool((~covers).any())
    return weights, exact


class Aligner:
    """Carries the weights of a selection over; `then`: what its prompts were made with. Cheap to pickle.

    Its formatter, which tells the old tokens again, is loaded at first use.
    """

    def __init__(self, then: Prompts) -> None:
        self.then = then
        self._formatter: Formatter | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Aligner, (self.then,)

    def __call__(self, row: Mapping[str, Any], chosen: Mapping[str, Any], prompt: Prompt) -> Carried:
        """The weights of a row of selection/ on the answer tokens of `prompt`, made of the same row of samples/.

        Raises StageError where its tokens aren't those that were scored.
        """
        if chosen["token_ids"] is None:
            raise StageError(f"{row['sample_key']}: its selection holds no token ids, so its weights can't be carried")
        try:
            old = answer_tokens(row, chosen["token_ids"], chosen["token_weights"], self.formatter)
        except StageError:
            raise
        except Exception as error:  # of a processor that fails on one row
            raise StageError(f"{row['sample_key']}: {type(error).__name__}: {error}"[:500]) from error
        return carry_weights(old, prompt)

    @property
    def formatter(self) -> Formatter:
        """The one that the selection's prompts were made by."""
        if self._formatter is None:
            self._formatter = load_formatter(*self.then)
        return self._formatter


def prompts_then(record: Mapping[str, Any], selection: str, trust_remote_code: bool) -> Prompts | None:
    """What a selection's prompts were made with, by its record; None where it has no weights that could be carried.

    Raises StageError where the record doesn't say it.
    """
    strategy = strategies().get(record.get("selection", {}).get("strategy"))
    if strategy is not None and strategy.weigh is None:
        log.info("--align: %s has no token weights, so there is nothing to carry over", selection)
        return None
    named = record.get("prompts", {})
    if not named.get("model"):
        raise StageError(f"--align: {selection} doesn't say by which model it was made; select again")
    model = absolute(named["model"]) if is_local(named["model"]) else named["model"]  # workers may be elsewhere
    template: Template = named.get("template") or "auto"
    return Prompts(model, template, named.get("max_length"), named.get("end_of_turn"), trust_remote_code)


def aligner_of(then: Prompts | None, record: Mapping[str, Any], selection: str | None) -> Aligner | None:
    """What carries a selection's weights over; None where there is nothing to carry. `record`: the selection's.

    It loads the tokenizer of the selection's model. Raises StageError where that makes other prompts by now.
    """
    if then is None:
        return None
    aligner = Aligner(then)
    if template_fingerprint(aligner.formatter) != record.get("template"):
        raise StageError(f"--align: {then.model} isn't the model that {selection} was made with any more")
    return aligner
