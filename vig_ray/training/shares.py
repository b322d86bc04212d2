"""Shares of a run's steps after which --export-at writes the model so far: their steps, and their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

AT = "at"
"""The folder in OUT that holds one for each share."""


def in_order(shares: Sequence[float]) -> tuple[float, ...]:
    """The shares, rising. Raises ValueError for one that is none, and for one that is there twice."""
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"{share:g}: takes shares of the steps, above 0 and at most 1")
    if len({name_of(share) for share in shares}) < len(shares):
        raise ValueError("has a share twice")
    return tuple(sorted(shares))


def name_of(share: float) -> str:
    """The name of a share's folder in OUT/at: 0.25, and 1 for 1.0."""
    return f"{share:.12g}"


def step_of(share: float, steps: int) -> int:
    """How many of a run's steps are at least this share of them, as 0.25 is written and not as a float has it."""
    return math.ceil(Fraction(name_of(share)) * steps)
