"""The exact k-th greatest, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vig_ray.tables.threshold import SCANS, Search, quota_of, sortable, value_of

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def kth(blocks: list[np.ndarray], k: int) -> float:
    search = Search(k)
    for _ in range(SCANS):
        search = search.narrowed(sum(search.count(sortable(block)) for block in blocks))
    return value_of(search.bits)


@given(arrays(np.float64, st.integers(1, 60), elements=finite), st.data())
@settings(max_examples=200)
def test_kth_greatest_is_exact_however_it_is_cut(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    assert kth(np.split(values, cuts), k) == np.sort(values)[::-1][k - 1]


@given(finite, finite)
def test_bits_sort_like_the_values(a: float, b: float) -> None:
    first, second = sortable(np.array([a, b]))
    assert (first < second) == (a < b)
    assert (first == second) == (a == b)
    assert value_of(int(first)) == a


def test_neighbouring_floats_are_told_apart() -> None:
    values = np.array([0.1, np.nextafter(0.1, 1), np.nextafter(0.1, 0), -0.0, 0.0, -5e-324, 5e-324])
    for k in range(1, len(values) + 1):
        assert kth([values], k) == np.sort(values)[::-1][k - 1]


def test_too_few_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="3-th greatest of 2"):
        Search(3).narrowed(Search(3).count(sortable(np.array([1.0, 2.0]))))


@pytest.mark.parametrize(
    ("eligible", "share", "kept"),
    [(10, 70, 7), (625_000, 70, 437_500), (10, 0.1, 1), (1000, 28.7, 287), (3, 100, 3), (0, 70, 0), (7, 50, 3)],
)
def test_a_percentage_of_samples(eligible: int, share: float, kept: int) -> None:
    assert quota_of(eligible, share) == kept
