"""Which samples are kept: groups, ranks and thresholds, over blocks of scores of any number and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.selection.calibrate import Nulls
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.strategy import Strategy
from vig_ray.selection.within import Within
from vig_ray.tables.order import hashes
from vig_ray.tables.passes import CLEAN, TEXT, loss_column
from vig_ray.tables.threshold import Search, Sparse, sortable

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
EVERYTHING = 0
"""The threshold that keeps every sample."""


@dataclass(frozen=True)
class Groups:
    """Samples that are ranked together: those of a source with a quota, or all others, within each cluster.

    `sources`: those with a quota. `clusters`: how many there are. `keys`, `of_key`: the sorted key hashes of samples
    with an image and the cluster of each, where there are several clusters. `within`: other groups, in place of these.
    `nulls`: what is subtracted from gains before they are ranked.
    """

    sources: tuple[str, ...] = ()
    clusters: int = 1
    keys: Bits | None = None
    of_key: npt.NDArray[np.int32] | None = None
    within: Within | None = None
    nulls: Nulls | None = None

    def __len__(self) -> int:
        return (len(self.sources) + 1) * self.clusters if self.within is None else len(self.within)

    def of(self, table: pa.Table, seed: int) -> npt.NDArray[np.int64]:
        """The number of each row's group, int64 [rows]."""
        if self.within is not None:
            return self.within.of(table, seed)
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
    `unmeasured`: scored rows that lack the measure that the strategy needs, where it needs one.
    """

    bits: Bits
    scored: Mask
    eligible: Mask
    group: npt.NDArray[np.int64]
    unmeasured: Mask | None = None

    def kept(self, thresholds: npt.NDArray[np.uint64]) -> Mask:
        """The rows that reach the threshold of their group, so that every tie is kept."""
        kept: Mask = self.eligible & (self.bits >= thresholds[self.group])
        return kept


def columns(strategy: Strategy, groups: Groups) -> list[str]:
    """The columns that `ranks` reads."""
    needed = {strategy.scored, *ranking_columns(strategy)}
    if strategy.measure is not None:
        needed.add("measured_tokens")
    if strategy.ranking == "chance" or groups.keys is not None:
        needed.add("sample_key")
    if groups.sources:
        needed.add("source")
    for each in (groups.within, groups.nulls):
        needed |= each.columns() if each is not None else set()
    return sorted(needed)


def ranking_columns(strategy: Strategy) -> tuple[str, ...]:
    """The columns that a strategy's ranking is made of."""
    if strategy.ranking == "ifd":
        return (loss_column(CLEAN), loss_column(TEXT))
    return () if strategy.ranking in (None, "chance") else (strategy.ranking,)


def ranks(table: pa.Table, strategy: Strategy, groups: Groups, config: SelectConfig) -> Ranks:
    """Rank the rows of a block."""
    # Whatever the row's error: it may be another pass's.
    scored = _valid(table[strategy.scored])
    # What the strategy needs beside that: a sample may lack it.
    beside = "measured_tokens" if strategy.measure else loss_column(TEXT) if strategy.ranking == "ifd" else None
    unmeasured = None if beside is None else scored & ~_valid(table[beside])
    eligible = scored if unmeasured is None else scored & ~unmeasured
    if strategy.ranking == "chance":
        bits = hashes(table["sample_key"], config.seed)
    else:
        values = [_filled(table[name]) for name in ranking_columns(strategy)]
        value = np.zeros(table.num_rows)
        if strategy.ranking == "ifd":
            value = difficulty(*values, of=config.ifd_of)
        elif values:
            (value,) = values
            value = value if groups.nulls is None else value - groups.nulls.of_samples(table, config.seed)
        if strategy.positive and not config.keep_negative:
            eligible = eligible & (value <= 1 if strategy.ranking == "ifd" else value > 0)
        bits = sortable(value)
    return Ranks(bits, scored, eligible, groups.of(table, config.seed), unmeasured)


def difficulty(
    clean_loss_N: npt.NDArray[np.float64],
    text_loss_N: npt.NDArray[np.float64],
    *,
    of: Literal["losses", "perplexities"],
) -> npt.NDArray[np.float64]:
    """IFD, [N]: the ratio of an answer's loss with its instruction to that without, or of its perplexities.

    1 where both losses are 0.
    """
    ratio: npt.NDArray[np.float64]
    if of == "perplexities":
        ratio = np.exp(np.minimum(clean_loss_N - text_loss_N, 700.0))
    else:
        alike = np.where(clean_loss_N > 0, np.inf, 1.0)
        ratio = np.divide(clean_loss_N, text_loss_N, out=alike, where=text_loss_N > 0)
    return ratio


def _valid(column: pa.ChunkedArray) -> Mask:
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _filled(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)
    return values


def count(ranked: Ranks, searches: Mapping[Any, tuple[int, Search]]) -> dict[Any, Sparse]:
    """A block's histogram of the next digit for each search. `searches`: by any name, the group and the search."""
    histograms: dict[Any, Sparse] = {}
    for name, (group, search) in searches.items():
        counts = search.count(ranked.bits[ranked.eligible & (ranked.group == group)])
        (digits,) = np.nonzero(counts)
        histograms[name] = digits, counts[digits]
    return histograms
