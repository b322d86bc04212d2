"""The audit's numbers against loops written out, scipy, and draws of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vig_ray.audit.signal import Beaten, signal_of
from vig_ray.selection.calibrate import Floats


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
    h = [[1.0 if c < s else 0.5 if c == s else 0.0 for s in row] for c, row in zip(clean, swapped, strict=True)]
    found = signal_of(Beaten.of(clean, swapped))
    assert found.auroc == pytest.approx(np.mean(h))
    assert found.above == np.mean([all(x == 1 for x in row) for row in h])
    assert found.chance == 1 / 6
    # Two-way analysis of variance: samples are blocks, own or other the one factor. Its F by a paired t-test of own
    # against the mean of the others doesn't see how others differ, so it is done as sums.
    losses = np.concatenate([clean[:, None], swapped], axis=1)
    within = losses - losses.mean(1, keepdims=True)
    is_own = np.arange(6) == 0
    of_own = sum(len(part) * np.mean(part) ** 2 for part in (within[:, is_own].ravel(), within[:, ~is_own].ravel()))
    design = np.stack([np.tile(is_own, 40).astype(float), np.ones(240)], axis=1)
    left = np.linalg.lstsq(design, within.ravel())[1][0]  # what own or other doesn't explain
    assert np.square(within).sum() - of_own == pytest.approx(left)
    by_chance = left / (40 * 5 - 1)
    assert found.signal == pytest.approx((of_own - by_chance) / (np.square(within).sum() + by_chance))


def test_the_signal_is_a_share_of_variance() -> None:
    """Of losses that are 1 less with their own image, and vary by s otherwise, the own image makes 1 / K of it."""
    rng = np.random.default_rng(6)
    for k, s in ((8, 0.5), (8, 3.0), (1, 1.0), (8, 0.0)):
        clean, swapped = rng.normal(0, s, 20_000) - 1, rng.normal(0, s, (20_000, k))
        of_own = k / (k + 1)
        truth = of_own / (of_own + k * s**2)
        assert signal_of(Beaten.of(clean, swapped)).signal == pytest.approx(truth, abs=0.01)
    nothing = [signal_of(Beaten.of(*leaning(rng, 200, 8))).signal for _ in range(50)]
    assert np.mean(nothing) < 0.03


def test_parts_add_up() -> None:
    clean, swapped = leaning(np.random.default_rng(1), 100, 8, 0.3)
    whole = signal_of(Beaten.of(clean, swapped))
    sums = Beaten(np.zeros(8))
    for part in (slice(0, 7), slice(7, 60), slice(60, 100)):
        sums += Beaten.of(clean[part], swapped[part])
    np.testing.assert_allclose(list(whole), list(signal_of(sums)))


def test_one_swapped_image_is_a_mean_of_signs() -> None:
    """With K = 1 there is no telling how images differ: Student's interval over samples, as scipy has it."""
    clean, swapped = leaning(np.random.default_rng(2), 300, 1, 0.4)
    found = signal_of(Beaten.of(clean, swapped))
    h = (clean < swapped[:, 0]).astype(float)
    low, high = stats.t.interval(0.95, 299, h.mean(), stats.sem(h))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("n", [30, 1000])
def test_where_nothing_is_seen_a_signal_is_found_in_five_per_cent(n: int) -> None:
    """However many samples there are: a test over samples alone would find one nearly everywhere."""
    rng = np.random.default_rng(3)
    seen, alone = [], []
    for _ in range(1000):
        clean, swapped = leaning(rng, n, 8)
        found = signal_of(Beaten.of(clean, swapped))
        seen.append((found.low > 0.5) or (found.high < 0.5))
        means = (clean[:, None] < swapped).mean(1)
        alone.append(stats.ttest_1samp(means, 0.5).pvalue < 0.05)
    assert np.mean(seen) < 0.065
    if n == 1000:
        assert np.mean(alone) > 2 * np.mean(seen)


def test_a_signal_that_is_there_is_found() -> None:
    rng = np.random.default_rng(4)
    found = [signal_of(Beaten.of(*leaning(rng, 200, 8, 3.0))) for _ in range(50)]
    assert all(each.seen for each in found)


def test_the_interval_holds_the_truth() -> None:
    """The AUROC over all samples and images there could be, by a large draw, in 95 % of the intervals or so."""
    rng = np.random.default_rng(5)
    clean, swapped = leaning(rng, 20_000, 400, 0.7)
    truth = float((clean[:, None] < swapped).mean())
    inside = []
    for _ in range(600):
        found = signal_of(Beaten.of(*leaning(rng, 150, 8, 0.7)))
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) > 0.93


def test_groups_too_small_or_all_alike() -> None:
    none = signal_of(Beaten(np.zeros(4)))
    one = signal_of(Beaten.of(np.array([1.0]), np.array([[2.0, 3.0]])))
    assert none.samples == 0
    assert not none.seen
    assert np.isnan(one.low)
    assert not one.seen
    every = signal_of(Beaten.of(np.ones(50), np.full((50, 4), 2.0)))
    exact = stats.binomtest(50, 50).proportion_ci(method="exact").low
    assert every.auroc == 1
    assert every.low == pytest.approx(exact, abs=2e-3)
    same = signal_of(Beaten.of(np.ones(50), np.ones((50, 4))))
    assert (same.auroc, same.seen) == (0.5, False)
