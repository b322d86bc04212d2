"""The k-th greatest of more values than fit in memory, exactly, whatever blocks they come in.

A value's bits, turned so that they sort like the value, are counted 16 at a time: the counts tell in which of 65,536
ranges the k-th greatest lies, the next scan counts inside that range, and after four scans all 64 bits of the value
are known. Counts add up, so neither the number of blocks nor their order matters; each scan keeps one histogram for
every threshold that is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

Sparse = tuple[npt.NDArray[np.int64], Counts]
"""A histogram without its zeros: which digits, and how many of each."""

_BITS = 16
SCANS = 64 // _BITS
_SIGN = np.uint64(1 << 63)


def sortable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Unsigned integers that sort like the values, -0.0 as 0.0. No value may be NaN."""
    bits = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def value_of(bits: int) -> float:
    """The value that `sortable` made `bits` of."""
    word = np.uint64(bits)
    return float((word ^ _SIGN if word & _SIGN else ~word).view(np.float64))


@dataclass(frozen=True)
class Search:
    """A search for a k-th greatest value: the `rank`-th greatest of the values whose leading bits are `prefix`.

    `rank` counts from 1; `depth`: how many 16-bit digits of the value are known.
    """

    rank: int
    prefix: int = 0
    depth: int = 0

    def digits(self, bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The next digit of each value that begins with the prefix."""
        if self.depth:
            bits = bits[bits >> np.uint64(64 - _BITS * self.depth) == np.uint64(self.prefix)]
        digits = (bits >> np.uint64(64 - _BITS * (self.depth + 1))) & np.uint64((1 << _BITS) - 1)
        return digits.astype(np.int64)

    def count(self, bits: npt.NDArray[np.uint64]) -> Counts:
        """How many values have each next digit, int64 [65536]."""
        return np.bincount(self.digits(bits), minlength=1 << _BITS)

    def narrowed(self, counts: Counts) -> Search:
        """The search with one more digit known. `counts`: of all blocks. Raises ValueError for under `rank` values."""
        from_top = np.cumsum(counts[::-1])
        if from_top[-1] < self.rank:
            raise ValueError(f"the {self.rank}-th greatest of {from_top[-1]} values was asked for")
        index = int(np.searchsorted(from_top, self.rank))
        above = int(from_top[index - 1]) if index else 0
        digit = len(counts) - 1 - index
        return Search(self.rank - above, self.prefix << _BITS | digit, self.depth + 1)

    @property
    def bits(self) -> int:
        """The bits of the value, after all scans."""
        if self.depth < SCANS:
            raise ValueError(f"{SCANS - self.depth} scans are missing")
        return self.prefix


def add_up(parts: Iterable[Mapping[Any, Sparse]], whole: dict[Any, Counts] | None = None) -> dict[Any, Counts]:
    """The histograms of all blocks added to `whole`, int64 [65536] each."""
    whole = {} if whole is None else whole
    for part in parts:
        for name, (digits, counts) in part.items():
            if name not in whole:
                whole[name] = np.zeros(1 << 16, dtype=np.int64)
            whole[name][digits] += counts
    return whole


def quota_of(eligible: int, share: float) -> int:
    """How many of the eligible samples a percentage keeps: rounded down, but at least one. 70 means 70, not 69.99."""
    return max(1, int(Fraction(str(share)) * eligible / 100)) if eligible else 0
