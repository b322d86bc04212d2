"""Weights against their equations, written out one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vig_ray.selection.weights import attention, mask, prior, rare, relevance, sums_of

logprob = st.floats(-30, 0, width=32)
samples = st.lists(st.lists(logprob, max_size=8), min_size=1, max_size=6)


def laid_out(found: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x for sample in found for x in sample]), np.array([len(sample) for sample in found])


@given(samples, st.floats(0, 4))
def test_prior_follows_its_equations_and_sums_to_the_tokens(found: list[list[float]], alpha: float) -> None:
    values, lengths = laid_out(found)
    weights = prior(values, lengths, alpha)
    assert weights.dtype == np.float32
    start = 0
    for sample in found:
        own = weights[start : start + len(sample)]
        start += len(sample)
        w = [(-math.expm1(logp)) ** alpha for logp in sample]
        expected = [len(sample) * each / sum(w) for each in w] if sum(w) > 0 else [1.0] * len(sample)
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-30)
        assert own.sum() == pytest.approx(len(sample), rel=1e-5)


def test_prior_of_tokens_that_are_all_but_sure_keeps_its_precision() -> None:
    sure = np.array([-1e-12, -3e-12, -1e-30])
    np.testing.assert_allclose(prior(sure, np.array([3]), 1.0), [0.75, 2.25, 0.0], atol=1e-6)


def test_prior_with_alpha_0_weighs_all_alike() -> None:
    np.testing.assert_array_equal(prior(np.array([-1.0, -2.0, 0.0]), np.array([2, 1]), 0.0), [1, 1, 1])


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        prior(np.array([-1.0]), np.array([1]), -1.0)


@given(samples)
def test_sums_of_samples(found: list[list[float]]) -> None:
    values, lengths = laid_out(found)
    np.testing.assert_allclose(sums_of(values, lengths), [sum(sample) for sample in found], atol=1e-9)


def test_the_mask_takes_the_threshold_in() -> None:
    np.testing.assert_array_equal(mask(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.2, 0.2])), [0, 1, 1])


@given(samples, st.floats(0, 3), st.data())
def test_rare_tokens_weigh_by_their_inverse_frequency(
    found: list[list[float]], alpha: float, data: st.DataObject
) -> None:
    counts = [data.draw(st.lists(st.integers(1, 10**6), min_size=len(s), max_size=len(s))) for s in found]
    values, lengths = laid_out(counts)  # type: ignore[arg-type]
    weights = rare(values.astype(np.int64), lengths, alpha)
    start = 0
    for sample in counts:
        w = [1 / count**alpha for count in sample]
        expected = [len(sample) * each / sum(w) for each in w]
        np.testing.assert_allclose(weights[start : start + len(sample)], expected, rtol=1e-5)
        start += len(sample)


def test_shares_of_attention_sum_to_the_tokens_and_none_at_all_is_even() -> None:
    shares = np.array([0.1, 0.3, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(attention(shares, np.array([3, 2]), 1.0), [0.75, 2.25, 0.0, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(attention(shares, np.array([3, 2]), 2.0), [0.3, 2.7, 0.0, 1.0, 1.0], rtol=1e-6)


def test_relevance_is_a_softmax_over_the_tokens_that_have_some() -> None:
    from scipy.special import softmax

    logits, lengths = np.array([20.0, 25.0, np.nan, 300.0, 299.0, np.nan]), np.array([3, 2, 1])
    for alpha in (0.0, 0.1, 1.0):
        expected = [*2 * softmax(alpha * logits[:2]), 1.0, *2 * softmax(alpha * logits[3:5]), 1.0]
        np.testing.assert_allclose(relevance(logits, lengths, alpha), expected, rtol=1e-5)
