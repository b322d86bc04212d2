"""How sure a number over seeds is, a difference, an order, and a scaling law.

Intervals over n seeds are Student's, mean +- t(n - 1, 0.975) s / sqrt(n); differences are of pairs with the same seed,
so that what all arms share in a seed cancels out. Tests hold them against scipy.stats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_POWER = 0.8
_MOST_SEEDS = 1000


class Mean(NamedTuple):
    """A mean over `n` seeds and its interval, which one seed doesn't give, nor several without a spread."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval has no 0 in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_of(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """The mean of finite numbers with Student's interval; NaN of none.

    Numbers that are all the same have no interval: a spread of 0 says nothing of the next seed's.
    """
    n = len(values)
    if not n:
        return Mean(math.nan, None, None, 0)
    middle = float(np.mean(values))
    if n == 1 or max(values) == min(values):
        return Mean(middle, None, None, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(middle, middle - half, middle + half, n)


class Difference(NamedTuple):
    """A paired difference. `p`: of the two-sided paired t-test, None of fewer than two pairs; `seeds_needed`: how many
    seeds would find it with a probability of 80 %, if it and its spread are as they came out; None where there is no
    telling (fewer than two pairs, no spread, no difference, or more than a thousand)."""

    mean: Mean
    p: float | None
    seeds_needed: int | None

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0."""
        return self.mean.excludes_zero


def difference(pairs: Sequence[tuple[float, float]], confidence: float = CONFIDENCE) -> Difference:
    """Of two arms' numbers in pairs of one seed, ours and theirs."""
    apart = [ours - theirs for ours, theirs in pairs]
    found = mean_of(apart, confidence)
    if found.low is None:
        return Difference(found, None, None)
    spread = float(np.std(apart, ddof=1))
    t = found.value / (spread / math.sqrt(found.n))
    p = float(2 * stats.t.sf(abs(t), found.n - 1))
    return Difference(found, p, seeds_needed(found.value, spread))


def power(effect: float, spread: float, n: int) -> float:
    """The probability that n pairs find a difference `effect` between arms whose pairs differ with a standard deviation
    `spread`: of the two-sided paired t-test at 5 %, by the noncentral t distribution."""
    degrees, moved = n - 1, abs(effect) / spread * math.sqrt(n)
    bound = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
    found = float(stats.nct.sf(bound, degrees, moved) + stats.nct.cdf(-bound, degrees, moved))
    return found if math.isfinite(found) else 1.0  # far out, where scipy's series gives up


def seeds_needed(effect: float, spread: float) -> int | None:
    """The fewest seeds whose `power` is at least 0.8; None for more than a thousand, or no effect."""
    if not effect:
        return None
    low, high = 1, 2
    while high < _MOST_SEEDS and power(effect, spread, high) < _POWER:
        low, high = high, 2 * high
    if power(effect, spread, min(high, _MOST_SEEDS)) < _POWER:
        return None
    high = min(high, _MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, spread, middle) >= _POWER else (middle, high)
    return high


class ScalingLaw(NamedTuple):
    """L(D) = (D / `scale`) ** `exponent` (PRIOR, section 4: D_c and alpha), which falls where `exponent` < 0."""

    scale: float
    exponent: float

    def at(self, size: float) -> float:
        """L(D)."""
        return float((size / self.scale) ** self.exponent)


def scaling_law(sizes: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """The law that fits best by least squares of log L over log D. Raises ValueError for fewer than two sizes, or for
    what has no logarithm, or a loss that doesn't depend on the size."""
    if len(set(sizes)) < 2:
        raise ValueError("a scaling law needs runs of at least two sizes")
    if min(sizes) <= 0 or min(losses) <= 0:
        raise ValueError("a scaling law is of sizes and losses above 0")
    if min(losses) == max(losses):
        raise ValueError("the loss is the same for all sizes")
    exponent, constant = np.polyfit(np.log(sizes), np.log(losses), 1)
    return ScalingLaw(float(np.exp(-constant / exponent)), float(exponent))
