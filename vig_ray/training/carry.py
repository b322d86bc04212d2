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
from vig_ray.model.by_characters import means
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
    old_weights = np.asarray(old.weights)
    weights, exact = _of_turns(old_weights, old, prompt)
    if np.isin(old_weights, (0, 1)).all():
        return Carried((weights >= 0.5).astype(np.float32), exact)
    # Both means are of what was scored: not of what the old length limit cut off.
    was_scored = np.arange(len(old_weights)) < old.scored
    of_scored = _of_turns(was_scored.astype(np.float64), old, prompt)[0] >= 0.5
    mean = old_weights[was_scored].mean() if was_scored.any() else 0.0
    carried = weights[of_scored].mean() if of_scored.any() else 0.0
    return Carried((weights * (mean / carried if carried else 0.0)).astype(np.float32), exact)


def _of_turns(
    values_U: npt.NDArray[np.float64], old: AnswerTokens, prompt: Prompt
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The values of the U old tokens on those of `prompt`, [T], and which of these are exact.

    Where a turn has nothing to make a token's of, it takes the mean of the turn; of a turn that isn't there, 0.
    """
    turns_U = np.asarray(old.turns, dtype=np.int64)
    chars_U = np.asarray(old.chars, dtype=np.int64).reshape(-1, 2)
    values_T, exact_T = means(values_U, chars_U, prompt.answer_chars, turns_U=turns_U, turns_T=prompt.turns, gaps=True)
    for turn in np.unique(prompt.turns[np.isnan(values_T)]).tolist():
        of_turn = values_U[turns_U == turn]
        values_T[np.isnan(values_T) & (prompt.turns == turn)] = of_turn.mean() if len(of_turn) else 0.0
    return values_T, exact_T


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
