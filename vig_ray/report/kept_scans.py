"""The scans of scores/ that hold kept columns against VIG, in bounded memory.

sample     of each column all samples, or about SAMPLED of them by the hash of their keys; kinds of values, counted
count      of columns with more: all samples, in bins that lie between samples of the first scan

A column with more than SAMPLED values is told in GAIN_BINS bins of gain and NUMBER_BINS of its numbers, each of about
equal counts: its quantiles are off by a rank of at most about 1 / GAIN_BINS, its correlation by some 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vig_ray.dataset.schema import KEPT
from vig_ray.report.kept import Bins, Cells, describe
from vig_ray.report.tally import Floats, Moments
from vig_ray.tables.kept import KINDS, Values, texts_of
from vig_ray.tables.order import hashes
from vig_ray.tables.scan import Files

Json = dict[str, Any]

SAMPLED = 1 << 17
"""The most samples of which a column's values are held in memory, and about how many of larger ones."""
GAIN_BINS, NUMBER_BINS = 1024, 256


@dataclass(frozen=True)
class Column:
    """The values of a column and the gains of their samples; `kinds`: how many there are of each kind in all rows."""

    values: Values
    vig: Floats
    kinds: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, name: str) -> Column:
        """The scored samples of a block that have a value; the table has the columns kept and vig."""
        texts = texts_of(table[KEPT.name], name)
        there = texts.is_valid()
        vig = table["vig"].combine_chunks().filter(there).to_numpy(zero_copy_only=False).astype(np.float64)
        scored = np.flatnonzero(~np.isnan(vig))
        values = Values.of(texts.filter(there)).take(scored)
        return cls(values, vig[scored], values.counts())

    @classmethod
    def joined(cls, parts: Sequence[Column]) -> Column:
        """Several blocks together."""
        kinds = np.sum([part.kinds for part in parts], axis=0) if parts else np.zeros(len(KINDS), np.int64)
        if not parts:
            return cls(Values.of(pa.array([], pa.string())), np.zeros(0), kinds)
        return cls(Values.joined([part.values for part in parts]), np.concatenate([part.vig for part in parts]), kinds)

    def full(self) -> Column:
        """Without the samples whose list is empty, which have no value to be counted by."""
        rows = np.flatnonzero(self.values.kind != KINDS.index("empty"))
        return Column(self.values.take(rows), self.vig[rows], self.kinds)


def describe_all(name: str, column: Column) -> Json:
    """What is told of a column of which all samples are at hand."""
    full = column.full()
    bins = Bins.of(full.values, full.vig)
    return describe(name, bins, Cells.of(bins, full.values, full.vig), column.kinds, exact=True)


def scan_kept(files: Files, columns: Mapping[str, int], seed: int) -> list[Json]:
    """What is told of each of these kept columns. `columns`: in how many rows each has a value, at most."""
    cutoffs = {name: int(SAMPLED / rows * 2**64) if rows > SAMPLED else None for name, rows in columns.items()}
    some = any(cutoff is not None for cutoff in cutoffs.values())
    needed = [KEPT.name, "vig", *(["sample_key"] if some else [])]
    parts: dict[str, list[Column]] = {name: [] for name in columns}
    for block in files.scan(needed, _Sample(cutoffs, seed)):
        for name, part in block.items():
            parts[name].append(part)
    sampled = {name: Column.joined(found) for name, found in parts.items()}
    bins = {}
    for name, cutoff in cutoffs.items():
        if cutoff is not None:
            full = sampled[name].full()
            bins[name] = Bins.of(full.values, full.vig, most_numbers=NUMBER_BINS, most_gains=GAIN_BINS)
    counted: dict[str, _Counts] = {}
    if bins:
        count = _Count(bins)
        counted = _merged(files.scan([KEPT.name, "vig"], count, fold=_folded))
    return [
        describe(name, bins[name], counted[name].cells(), sampled[name].kinds, exact=False)
        if name in counted
        else describe_all(name, sampled[name])
        for name in columns
    ]


@dataclass(frozen=True)
class _Sample:
    """The values of a block's columns; of those with a cutoff, the samples whose keys hash below it."""

    cutoffs: Mapping[str, int | None]
    seed: int

    def __call__(self, table: pa.Table) -> dict[str, Column]:
        below: npt.NDArray[np.uint64] | None = None
        if "sample_key" in table.column_names:
            # Another seed than those of what is drawn for the gallery.
            below = hashes(table["sample_key"], f"kept {self.seed}")
        found = {}
        for name, cutoff in self.cutoffs.items():
            column = Column.of(table, name)
            if cutoff is not None and below is not None:
                drawn = table.filter(pa.array(below < np.uint64(cutoff)))
                some = Column.of(drawn, name)
                column = Column(some.values, some.vig, column.kinds)
            found[name] = column
        return found


@dataclass
class _Counts:
    """Samples of one column by value and gain, int64 [values, gains], and the moments of the gain by value."""

    count: npt.NDArray[np.int64]
    moments: Moments

    def cells(self) -> Cells:
        """The cells that hold samples."""
        value, gain = np.nonzero(self.count)
        return Cells(value, gain, self.count[value, gain], self.moments)


@dataclass(frozen=True)
class _Count:
    bins: Mapping[str, Bins]

    def __call__(self, table: pa.Table) -> dict[str, _Counts]:
        found = {}
        for name, bins in self.bins.items():
            column = Column.of(table, name).full()
            value, gain = bins.value_of(column.values), bins.gain_of(column.vig)
            shape = bins.size, len(bins.gains)
            cell = np.ravel_multi_index((value, gain), shape)
            count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
            found[name] = _Counts(count, Moments.of(column.vig, value, bins.size))
        return found


def _folded(one: dict[str, _Counts], other: dict[str, _Counts]) -> dict[str, _Counts]:
    return {
        name: _Counts(counts.count + other[name].count, counts.moments + other[name].moments)
        for name, counts in one.items()
    }


def _merged(blocks: Iterable[dict[str, _Counts]]) -> dict[str, _Counts]:
    whole: dict[str, _Counts] = {}
    for block in blocks:
        whole = _folded(whole, block) if whole else block
    return whole
