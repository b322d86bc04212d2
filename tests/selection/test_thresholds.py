"""The k-th greatest of many groups against pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vig_ray.tables.threshold import SCANS, sortable, value_of
from vig_ray.tables.thresholds import Searches, merged


@pytest.mark.parametrize(("rows", "groups", "digits"), [(1, 1, 3), (500, 7, 1), (20_000, 3000, 2), (20_000, 40, 12)])
def test_the_kth_greatest_of_every_group(rows: int, groups: int, digits: int) -> None:
    rng = np.random.default_rng(rows + groups)
    values, group = np.round(rng.normal(size=rows), digits), rng.integers(0, groups, rows)
    table = pd.DataFrame({"value": values, "group": group})
    sizes = np.bincount(group, minlength=groups)
    rank = np.where(sizes > 0, 1 + (rng.random(groups) * np.maximum(sizes - 1, 0)).astype(np.int64), 0)
    rank[rng.random(groups) < 0.1] = 0
    bits, searches = sortable(values), Searches.of(rank)
    for _ in range(SCANS):
        blocks = np.array_split(rng.permutation(rows), 5)
        searches = searches.narrowed(merged(searches.count(bits[block], group[block]) for block in blocks))
    of_group = table.sort_values("value", ascending=False).groupby("group")["value"]
    ordered = {name: values_of.to_numpy() for name, values_of in of_group}
    for number, found in enumerate(searches.bits.tolist()):
        if rank[number]:
            assert value_of(found) == ordered[number][rank[number] - 1]
        else:
            assert found == np.iinfo(np.uint64).max


def test_more_than_there_are_is_refused() -> None:
    searches = Searches.of(np.array([1, 3]))
    pairs = searches.count(sortable(np.array([1.0, 2.0, 3.0])), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="group 1 has fewer values than were asked for"):
        searches.narrowed(pairs)
    with pytest.raises(ValueError, match="4 scans are missing"):
        _ = searches.bits
