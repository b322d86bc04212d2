"""Equations 1, 2, 3, 6 and 7 of the paper as properties, computed a second way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vig_ray.scoring.gain import loss, perplexity, sample_gain, token_gain

pairs = st.integers(1, 60).flatmap(
    lambda t: st.tuples(*[arrays(np.float32, t, elements=st.floats(-50, 0, width=32)) for _ in range(2)])
)


@given(pairs)
def test_vig_is_the_log_ratio_of_perplexities(pair) -> None:
    clean, reference = pair
    # PPL as its definition: the inverse geometric mean of the probabilities, here in extended precision.
    ppl = [np.exp(-np.sum(x.astype(np.longdouble)) / len(x)) for x in (clean, reference)]
    assert sample_gain(clean, reference) == pytest.approx(float(np.log(ppl[1] / ppl[0])), abs=1e-6)
    assert np.isclose(perplexity(clean), float(ppl[0]), rtol=1e-9)


@given(pairs)
def test_vig_is_the_mean_of_token_gains(pair) -> None:
    clean, reference = pair
    gains = token_gain(clean, reference)
    assert sample_gain(clean, reference) == pytest.approx(sum(map(float, gains)) / len(gains), abs=1e-6)
    assert sample_gain(clean, reference) == pytest.approx(
        sum(float(c) - float(r) for c, r in zip(clean, reference, strict=True)) / len(clean), abs=1e-6
    )


@given(pairs)
def test_swapping_the_passes_changes_the_sign(pair) -> None:
    clean, reference = pair
    assert sample_gain(clean, reference) == -sample_gain(reference, clean)
    np.testing.assert_array_equal(token_gain(clean, reference), -token_gain(reference, clean))


def test_by_hand() -> None:
    clean, reference = np.log(np.array([0.5, 0.25])), np.log(np.array([0.25, 0.25]))
    assert loss(clean) == pytest.approx(1.5 * np.log(2))
    assert perplexity(reference) == pytest.approx(4.0)
    assert sample_gain(clean, reference) == pytest.approx(0.5 * np.log(2))
    np.testing.assert_allclose(token_gain(clean, reference), [np.log(2), 0.0])


def test_no_tokens_or_unequal_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss"):
        loss(np.zeros(0))
    with pytest.raises(ValueError, match="differ in shape"):
        token_gain(np.zeros(3), np.zeros(2))
