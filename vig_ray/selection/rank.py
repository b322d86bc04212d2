"""Which samples are kept: groups, ranks and thresholds, over blocks of scores of any number and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.selection.strategy import Strategy
from vig_ray.tables.order import hashes
from vig_ray.tables.threshold import Search, Sparse, sortable

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
EVERYTHING = 0
"""The threshold that keeps every sample."""


@dataclass(frozen=True)
class Groups:
    """Samples that are ranked together: those of a source with a quota, or all others, within each cluster.

    `sources`: those with a quota. `clusters`: how many there are. `keys`, `of_key`: the sorted key hashes of samples
    with an image and the cluster of each, where there are several clusters.
    """

    sources: tuple[str, ...] = ()
    clusters: int = 1
    keys: Bits | None = None
    of_key: npt.NDArray[np.int32] | None = None

    def of(self, table: pa.Table, seed: int) -> npt.NDArray[np.int64]:
        """The number of each row's group, int64 [rows]."""
        group = np.zeros(table.num_rows, dtype=np.int64)
        if self.sources:
            index = pc.index_in(table["source"], value_set=pa.array(self.sources, pa.string()))
            group += pc.fill_null(pc.add(index, 1), 0).to_numpy(zero_copy_only=False).astype(np.int64) * self.clusters
        if self.keys is not None and self.of_key is not None:
            key_hashes = hashes(table["sample_key"], seed)
            nearest = np.minimum(np.searchsorted(self.keys, key_hashes), len(self.keys) - 1)
            clustered = self.keys[nearest] == key_hashes
            group += np.where(clustered, self.of_key[nearest], 0)
        return group

    def share_of(self, group: int, shares: Mapping[str, float], by_default: float) -> float:
        """The percentage of a group that is kept."""
        source = group // self.clusters
        return shares[self.sources[source - 1]] if source else by_default


@dataclass(frozen=True)
class Ranks:
    """How a block's rows are ranked.

    `bits` sort like the score. `scored`: rows that have one. `eligible`: rows that may be kept. `group`: each row's.
    """

    bits: Bits
    scored: Mask
    eligible: Mask
    group: npt.NDArray[np.int64]

    def kept(self, thresholds: npt.NDArray[np.uint64]) -> Mask:
        """The rows that reach the threshold of their group, so that every tie is kept."""
        kept: Mask = self.eligible & (self.bits >= thresholds[self.group])
        return kept


def columns(strategy: Strategy, groups: Groups) -> list[str]:
    """The columns that `ranks` reads."""
    needed: set[str] = {strategy.scored} if strategy.scored == "vig" else {strategy.scored, "error"}
    if strategy.ranking == "chance" or groups.keys is not None:
        needed.add("sample_key")
    if strategy.ranking in ("reference_loss", "clean_loss"):
        needed.add(strategy.ranking)
    if groups.sources:
        needed.add("source")
    return sorted(needed)


def ranks(table: pa.Table, strategy: Strategy, groups: Groups, *, seed: int, keep_negative: bool) -> Ranks:
    """Rank the rows of a block."""
    score = table[strategy.scored]
    scored = score.is_valid().to_numpy(zero_copy_only=False)
    if strategy.scored != "vig":
        scored = scored & table["error"].is_null().to_numpy(zero_copy_only=False)
    values = pc.fill_null(score, 0.0).to_numpy(zero_copy_only=False)
    eligible = scored & (values > 0) if strategy.positive and not keep_negative else scored
    if strategy.ranking == "chance":
        bits = hashes(table["sample_key"], seed)
    else:
        if strategy.ranking not in (None, "vig"):
            values = pc.fill_null(table[strategy.ranking], 0.0).to_numpy(zero_copy_only=False)
        bits = sortable(values)
    return Ranks(bits, scored, eligible, groups.of(table, seed))


def count(ranked: Ranks, searches: Mapping[Any, tuple[int, Search]]) -> dict[Any, Sparse]:
    """A block's histogram of the next digit for each search. `searches`: by any name, the group and the search."""
    histograms: dict[Any, Sparse] = {}
    for name, (group, search) in searches.items():
        counts = search.count(ranked.bits[ranked.eligible & (ranked.group == group)])
        (digits,) = np.nonzero(counts)
        histograms[name] = digits, counts[digits]
    return histograms
