"""The audit's numbers against loops written out, scipy, and draws of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from vig_ray.audit.signal import Beaten, signal_of
from vig_ray.selection.marginal import Floats, gains_of, null_gains_of


def leaning(rng: np.random.Generator, n: int, k: int, seen: float = 0.0) -> tuple[Floats, Floats]:
    """Losses of a model that leans: an image raises all answers of one kind and lowers the other's, and the true image
    is one as any other, but for `seen` nats."""
    kind = rng.choice((-1.0, 1.0), n)
    own, others = rng.normal(size=n), rng.normal(size=k)
    level = rng.gamma(2.0, 1.0, n)
    clean = level + kind * own + 0.3 * rng.normal(size=n) - seen
    swapped = level[:, None] + kind[:, None] * others + 0.3 * rng.normal(size=(n, k))
    return clean, swapped


def test_every_number_by_loops() -> None:
    rng = np.random.default_rng(0)
    clean, swapped = leaning(rng, 40, 5, 0.5)
    swapped[3, 1] = clean[3]
    tokens = rng.integers(1, 9, 40).astype(float)
    h = [[1.0 if c < s else 0.5 if c == s else 0.0 for s in row] for c, row in zip(clean, swapped, strict=True)]
    found = signal_of(Beaten.of(clean, swapped, tokens))
    assert found.auroc == pytest.approx(np.mean(h))
    assert found.above == np.mean([all(x == 1 for x in row) for row in h])
    assert found.chance == 1 / 6
    gains, nulls = [], []
    for c, row, t in zip(clean, swapped, tokens, strict=True):
        gains.append(-special.logsumexp(-row * t, b=1 / 5) / t - c)
        for place in range(5):
            others = np.delete(row, place)
            nulls.append(-special.logsumexp(-others * t, b=1 / 4) / t - row[place])
    np.testing.assert_allclose(gains_of(clean, swapped, tokens), gains)
    np.testing.assert_allclose(null_gains_of(swapped, tokens).ravel(), nulls)
    assert found.signal == pytest.approx(max(0, 1 - np.var(nulls, ddof=1) / np.var(gains, ddof=1)))


def test_parts_add_up() -> None:
    clean, swapped = leaning(np.random.default_rng(1), 100, 8, 0.3)
    tokens = np.full(100, 3.0)
    whole = signal_of(Beaten.of(clean, swapped, tokens))
    sums = Beaten(np.zeros(8))
    for part in (slice(0, 7), slice(7, 60), slice(60, 100)):
        sums += Beaten.of(clean[part], swapped[part], tokens[part])
    np.testing.assert_allclose(list(whole), list(signal_of(sums)))


def test_one_swapped_image_is_a_mean_of_signs() -> None:
    """With K = 1 there is no telling how images differ: Student's interval over samples, as scipy has it."""
    clean, swapped = leaning(np.random.default_rng(2), 300, 1, 0.4)
    found = signal_of(Beaten.of(clean, swapped, np.ones(300)))
    h = (clean < swapped[:, 0]).astype(float)
    low, high = stats.t.interval(0.95, 299, h.mean(), stats.sem(h))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan(found.signal)


@pytest.mark.parametrize("n", [30, 1000])
def test_where_nothing_is_seen_a_signal_is_found_in_five_per_cent(n: int) -> None:
    """However many samples there are: a test over samples alone would find one nearly everywhere."""
    rng = np.random.default_rng(3)
    tokens = np.ones(n)
    seen, alone = [], []
    for _ in range(1000):
        clean, swapped = leaning(rng, n, 8)
        found = signal_of(Beaten.of(clean, swapped, tokens))
        seen.append((found.low > 0.5) or (found.high < 0.5))
        means = (clean[:, None] < swapped).mean(1)
        alone.append(stats.ttest_1samp(means, 0.5).pvalue < 0.05)
    assert np.mean(seen) < 0.065
    if n == 1000:
        assert np.mean(alone) > 2 * np.mean(seen)


def test_a_signal_that_is_there_is_found() -> None:
    rng = np.random.default_rng(4)
    found = [signal_of(Beaten.of(*leaning(rng, 200, 8, 3.0), np.ones(200))) for _ in range(50)]
    assert all(each.seen for each in found)


def test_the_interval_holds_the_truth() -> None:
    """The AUROC over all samples and images there could be, by a large draw, in 95 % of the intervals or so."""
    rng = np.random.default_rng(5)
    clean, swapped = leaning(rng, 20_000, 400, 0.7)
    truth = float((clean[:, None] < swapped).mean())
    inside = []
    for _ in range(600):
        found = signal_of(Beaten.of(*leaning(rng, 150, 8, 0.7), np.ones(150)))
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) > 0.93


def test_groups_too_small_or_all_alike() -> None:
    none = signal_of(Beaten(np.zeros(4)))
    one = signal_of(Beaten.of(np.array([1.0]), np.array([[2.0, 3.0]]), np.ones(1)))
    assert none.samples == 0
    assert not none.seen
    assert np.isnan(one.low)
    assert not one.seen
    every = signal_of(Beaten.of(np.ones(50), np.full((50, 4), 2.0), np.ones(50)))
    exact = stats.binomtest(50, 50).proportion_ci(method="exact").low
    assert every.auroc == 1
    assert every.low == pytest.approx(exact, abs=2e-3)
    same = signal_of(Beaten.of(np.ones(50), np.ones((50, 4)), np.ones(50)))
    assert (same.auroc, same.seen) == (0.5, False)
