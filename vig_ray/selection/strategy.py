"""What a selection strategy says; strategies/ has one a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vig_ray.selection.frequency import TokenCounts
from vig_ray.selection.weights import Lengths, Weights

Ranking = Literal["vig", "reference_loss", "clean_loss", "chance", "ifd", "clip_score", "el2n"]
TokenColumn = Literal["clean_logprobs", "reference_logprobs", "token_ids", "attention", "clip"]


@dataclass(frozen=True)
class Tokens:
    """The answer tokens of the kept samples of a block, end to end: N in all.

    `lengths` [rows]: tokens a sample. `columns`: those that the strategy reads, [N] each. `threshold` [rows]: each
    sample's tau.
    """

    lengths: Lengths
    columns: Mapping[TokenColumn, npt.NDArray[Any]]
    threshold: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What the user says of weights: `alpha`; `counts` of tokens, for strategies that ask for them."""

    alpha: float = 1.0
    counts: TokenCounts | None = None


@dataclass(frozen=True)
class Strategy:
    """How one strategy ranks samples, how many it keeps, and what their tokens weigh.

    `ranking`: what samples are ranked by, greatest first; `chance` ranks by a hash of key and seed, None keeps every
    sample. `share`: the option with the percentage to keep. `positive`: samples whose score is 0 or less are left out
    first, unless --keep-negative; for `ifd` those whose score is above 1. `clustered`: samples are ranked within
    clusters of questions. `weigh`: the weights of the kept samples' tokens, float32 [N], from these and the settings;
    None where all weigh 1. `reads`: the token columns that it is given. `shares`: its weights are parts of a sample's
    sum, to which --alpha and --weights-sum apply. `measure`: the one of `vig measure` that the strategy needs.
    `counts`: it needs counts of tokens. `scored`: the column that a sample has a value in where it can be used.
    """

    name: str
    words: str
    ranking: Ranking | None
    share: Literal["p", "r"] | None
    positive: bool = False
    clustered: bool = False
    weigh: Callable[[Tokens, Settings], Weights] | None = None
    reads: tuple[TokenColumn, ...] = ()
    shares: bool = False
    measure: Literal["attention", "clip", "clip-score", "el2n"] | None = None
    counts: bool = False
    scored: Literal["vig", "clean_loss", "reference_loss"] = "vig"

    @property
    def measure_columns(self) -> tuple[str, ...]:
        """Of measures/: what the strategy needs of it."""
        if self.measure is None:
            return ()
        return ("measured_tokens", self.measure.replace("-", "_"), *(("answer_ids",) if self.weigh else ()))
