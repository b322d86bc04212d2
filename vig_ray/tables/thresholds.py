"""The k-th greatest of each of many groups, exactly, in four scans: `threshold.py` for all of them at once.

A group's values are counted by their next 16 bits, as there; here a pair of group and digit is one number, so that a
block's counts are one sort of its rows, however many groups there are, and memory goes by the pairs that occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vig_ray.tables.gathered import Gathered
from vig_ray.tables.threshold import SCANS

_BITS = 16
Bits = npt.NDArray[np.uint64]
Groups = npt.NDArray[np.int64]
Pairs = tuple[Bits, npt.NDArray[np.int64]]
"""Rising pairs of group and digit, group << 16 | digit, and how many rows have each."""


def merged(parts: Sequence[Pairs]) -> Pairs:
    """The counts of all parts together."""
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    codes, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
    every, place = np.unique(codes, return_inverse=True)
    summed = np.zeros(len(every), np.int64)
    np.add.at(summed, place, counts)
    return every, summed


def gathered(parts: Iterable[Pairs]) -> Pairs:
    """The counts of all parts, as they come."""
    whole = gathering()
    for part in parts:
        whole.add(part)
    return whole.whole()


def gathering() -> Gathered[Pairs]:
    """Counts that parts are added to."""
    return Gathered(merged, lambda pairs: len(pairs[0]))


@dataclass(frozen=True, eq=False)
class Searches:
    """A search for the `rank`-th greatest value of each group, `rank` and `prefix` [groups]; `depth` digits are known.
    A rank of 0: of this group nothing is looked for."""

    rank: npt.NDArray[np.int64]
    prefix: Bits
    depth: int = 0

    @classmethod
    def of(cls, rank: npt.NDArray[np.int64]) -> Searches:
        """At their beginning."""
        return cls(rank, np.zeros(len(rank), np.uint64))

    def count(self, bits: Bits, group: Groups) -> Pairs:
        """The next digits of a block's values, as far as they begin with their group's prefix."""
        if self.depth:
            fits = bits >> np.uint64(64 - _BITS * self.depth) == self.prefix[group]
            bits, group = bits[fits], group[fits]
        digits = bits >> np.uint64(64 - _BITS * (self.depth + 1)) & np.uint64((1 << _BITS) - 1)
        codes, counts = np.unique(group.astype(np.uint64) << np.uint64(_BITS) | digits, return_counts=True)
        return codes, counts.astype(np.int64)

    def narrowed(self, pairs: Pairs) -> Searches:
        """The searches with one more digit known. `pairs`: of all blocks. Raises ValueError for under `rank` values."""
        codes, counts = pairs
        group = (codes >> np.uint64(_BITS)).astype(np.int64)
        from_top = np.cumsum(counts[::-1])[::-1]  # of this pair and all behind it, those of later groups among them
        ends = np.searchsorted(group, np.arange(len(self.rank)), side="right")
        behind = np.concatenate([from_top, [0]])[ends]  # what later groups have of it
        here = from_top - behind[group]
        reached = here >= self.rank[group]  # falls within a group: the last one that reaches the rank is wanted
        rank, prefix = self.rank.copy(), self.prefix.copy()
        last = np.full(len(self.rank), -1)
        last[group[reached]] = np.flatnonzero(reached)  # the last one written is the last one
        wanted = self.rank > 0
        (short,) = np.nonzero(wanted & (last < 0))
        if len(short):
            raise ValueError(f"group {int(short[0])} has fewer values than were asked for")
        place = last[wanted]
        rank[wanted] = self.rank[wanted] - (here[place] - counts[place])
        digit = codes[place] & np.uint64((1 << _BITS) - 1)
        prefix[wanted] = self.prefix[wanted] << np.uint64(_BITS) | digit
        return Searches(rank, prefix, self.depth + 1)

    @property
    def bits(self) -> Bits:
        """The bits of the values, after all scans; of groups of which nothing is looked for the greatest there are."""
        if self.depth < SCANS:
            raise ValueError(f"{SCANS - self.depth} scans are missing")
        return np.where(self.rank > 0, self.prefix, np.iinfo(np.uint64).max)
