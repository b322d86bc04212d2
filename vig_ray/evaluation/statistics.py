"""How sure a number is, and a difference of two models: the paired bootstrap; and relative performance.

The bootstrap draws units of a task (a question, or all questions of one unit) with replacement, as many as there are,
and computes every number anew of what was drawn (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters
6 and 13). Whatever is compared is computed of the same draws, so that questions that are hard for all models cancel
out. An interval is from the 2.5 to the 97.5 percentile of the draws.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.evaluation.task import Metric

Floats = npt.NDArray[np.float64]
Numbers = Mapping[str, float]
Statistic = Callable[[Floats], Numbers]
"""Of the weights of U units, float64 [U], numbers by name."""

PERCENTILES = (2.5, 97.5)
_AT_ONCE = 1 << 22  # weights in memory
_LEAST_KNOWN = 0.95  # of the draws: a number that has no value in more of them than the rest has no interval


class Estimate(NamedTuple):
    """A number, and its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether its interval has no 0 in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def json(self) -> dict[str, float | None]:
        """As JSON has it: null for what isn't a number."""
        return {
            name: None if value is None or not math.isfinite(value) else value for name, value in self._asdict().items()
        }


def generator_of(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of a seed and of what they are for, so that those of two tasks have nothing in common."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest))


def unit_weights(units: int, draws: int, random: np.random.Generator) -> Iterator[Floats]:
    """How often each of U units is drawn, float64 [some draws, U] at a time, `draws` in all."""
    done = 0
    while done < draws:
        some = min(draws - done, max(1, _AT_ONCE // max(1, units)))
        drawn = random.integers(0, units, size=(some, units)) + np.arange(some)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=some * units).reshape(some, units).astype(np.float64)
        done += some


def resampled(
    statistics: Sequence[Statistic], units: int, draws: int, random: np.random.Generator
) -> list[dict[str, Floats]]:
    """The numbers of each statistic in every draw of U units, float64 [draws]; the draws are the same for all."""
    found: list[dict[str, list[float]]] = [{} for _ in statistics]
    for weights_DU in unit_weights(units, draws, random):
        for weights_U in weights_DU:
            for statistic, values in zip(statistics, found, strict=True):
                for name, value in statistic(weights_U).items():
                    values.setdefault(name, []).append(value)
    return [{name: np.asarray(numbers, dtype=np.float64) for name, numbers in values.items()} for values in found]


def estimate(value: float, drawn: Floats | None) -> Estimate:
    """A number with the interval that its draws give; without one where most draws have no value, or none was made."""
    if drawn is None or not len(drawn) or not math.isfinite(value):
        return Estimate(value)
    known = drawn[np.isfinite(drawn)]
    if len(known) < _LEAST_KNOWN * len(drawn):
        return Estimate(value)
    low, high = np.percentile(known, PERCENTILES)
    return Estimate(value, float(low), float(high))


def relative(metric: Metric, value: float, baseline: float) -> float:
    """A model's performance on one benchmark relative to a baseline's, 1 where they are equal.

    value / baseline (VisNec, section 4.1; VIG's Figure 6 normalises by the model of all data alike). Where
    less is better, baseline / value: VisNec has no such metric, and VIG doesn't say what it did. So above 1 is better
    in all of them, and they can be averaged. NaN where neither more nor less is better, where one is no number, where
    the baseline's isn't above 0, and where less is better and the model's isn't.
    """
    if not (math.isfinite(value) and math.isfinite(baseline) and baseline > 0):
        return math.nan
    if metric.higher_is_better is None:
        return math.nan
    if metric.higher_is_better:
        return value / baseline
    return baseline / value if value > 0 else math.nan


def relatives(metric: Metric, values: Floats, baselines: Floats) -> Floats:
    """`relative` of every draw."""
    pairs = zip(values.tolist(), baselines.tolist(), strict=True)
    return np.asarray([relative(metric, *pair) for pair in pairs], dtype=np.float64)
