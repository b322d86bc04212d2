"""Intervals, tests, power and fits of a study against scipy and numpy by other ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from vig_ray.study.statistics import difference, mean_of, power, scaling_law, seeds_needed


def test_means_have_students_interval() -> None:
    values = [0.61, 0.64, 0.59, 0.7, 0.66]
    found = mean_of(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), abs=1e-12)
    assert mean_of([0.5]) == (0.5, None, None, 1)
    assert math.isnan(mean_of([]).value)


def test_differences_are_paired_by_seed() -> None:
    pairs = [(0.7, 0.66), (0.72, 0.7), (0.69, 0.66)]
    expected = stats.ttest_rel(*zip(*pairs, strict=True))
    for confidence in (0.95, 0.975):
        found = difference(pairs, confidence)
        interval = expected.confidence_interval(confidence)
        assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
        assert (found.mean.low, found.mean.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert found.mean.n == 3
        assert found.settled == (expected.pvalue < 1 - confidence)


def test_what_can_not_be_told() -> None:
    assert difference([(1.0, 0.5)]).p is None
    assert difference([]).mean.n == 0
    # No spread says nothing of the next seed's.
    assert difference([(1.0, 0.5), (2.0, 1.5)]) == ((0.5, None, None, 2), None, None)
    assert not difference([(1.0, 0.5), (2.0, 1.5)]).settled


@pytest.mark.parametrize(("effect", "spread"), [(0.02, 0.03), (0.05, 0.02), (-0.01, 0.04)])
def test_power_is_how_often_the_test_finds_it(effect: float, spread: float) -> None:
    random = np.random.default_rng(0)
    n = seeds_needed(effect, spread)
    assert n is not None
    for seeds in (n, max(2, n // 2)):
        drawn = random.normal(effect, spread, (40_000, seeds))
        found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
        assert power(effect, spread, seeds) == pytest.approx(found, abs=0.01)
    assert power(effect, spread, n) >= 0.8
    assert n == 2 or power(effect, spread, n - 1) < 0.8


def test_seeds_that_no_one_has() -> None:
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1000.0, 1e-9) == 2


def test_a_scaling_law_by_another_fit() -> None:
    random = np.random.default_rng(1)
    sizes = np.array([250, 500, 1000, 2000, 4000])
    losses = (sizes / 5e9) ** -0.095 * np.exp(random.normal(0, 0.01, len(sizes)))
    law = scaling_law(list(sizes), list(losses))
    line = stats.linregress(np.log(sizes), np.log(losses))
    assert law.exponent == pytest.approx(line.slope, rel=1e-9)

    def apart(logs: np.ndarray) -> np.ndarray:
        return logs[1] * (np.log(sizes) - logs[0]) - np.log(losses)

    by_search = optimize.least_squares(apart, x0=[20.0, -0.1], xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    assert np.log(law.scale) == pytest.approx(by_search[0], rel=1e-4)
    assert law.at(8000) == pytest.approx(np.exp(line.intercept + line.slope * np.log(8000)), rel=1e-9)


@pytest.mark.parametrize(("sizes", "losses"), [([1, 1], [1, 2]), ([1, 2], [0, 1]), ([0, 2], [1, 1]), ([1, 2], [3, 3])])
def test_what_has_no_law(sizes: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"scaling law|same for all"):
        scaling_law(sizes, losses)
