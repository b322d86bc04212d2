"""What a selection strategy says; strategies/ has one a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vig_ray.selection.weights import Lengths, Weights

Ranking = Literal["vig", "reference_loss", "clean_loss", "chance"]


@dataclass(frozen=True)
class Tokens:
    """The answer tokens of the kept samples of a block, end to end: N in all.

    `lengths` [rows]: tokens a sample. `clean`, `reference` [N]: log-probs. `threshold` [rows]: each sample's tau.
    """

    lengths: Lengths
    clean: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64]
    threshold: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strategy:
    """How one strategy ranks samples, how many it keeps, and what their tokens weigh.

    `ranking`: the column that samples are ranked by, greatest first; `chance` ranks by a hash of key and seed, None
    keeps every sample. `share`: the option with the percentage to keep. `positive`: samples whose score is 0 or less
    are left out first, unless --keep-negative. `clustered`: samples are ranked within clusters of questions. `weigh`:
    the weights of the kept samples' tokens, float32 [N], from these and --alpha; None where all weigh 1. `scored`: the
    column that a sample has a value in where it can be used; with `reference_loss`, clean log-probs aren't read.
    """

    name: str
    words: str
    ranking: Ranking | None
    share: Literal["p", "r"] | None
    positive: bool = False
    clustered: bool = False
    weigh: Callable[[Tokens, float], Weights] | None = None
    scored: Literal["vig", "reference_loss"] = "vig"
