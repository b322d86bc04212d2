"""Parts merged as they come are what they are merged at once."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vig_ray.tables.gathered import Gathered

Counts = dict[int, int]


@given(st.lists(st.dictionaries(st.integers(0, 50), st.integers(1, 9), max_size=20), max_size=60))
def test_the_same_as_at_once_and_seldom_merged(parts: list[Counts]) -> None:
    touched = 0

    def merge(some: Sequence[Counts]) -> Counts:
        nonlocal touched
        found: Counts = {}
        for part in some:
            touched += len(part)
            for key, count in part.items():
                found[key] = found.get(key, 0) + count
        return found

    gathered = Gathered(merge, len)
    for part in parts:
        gathered.add(part)
    whole = gathered.whole()
    # Between merges more comes than the whole has, so that the whole is touched once for each entry that came, at most.
    assert touched <= 2 * sum(map(len, parts)) + len(whole)
    assert whole == merge(parts)
