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
from vig_ray.tables.kept import KINDS, Pairs, Values
from vig_ray.tables.order import hashes
from vig_ray.tables.scan import BATCH_ROWS, Files

Json = dict[str, Any]
Drawn = npt.NDArray[np.bool_]

SAMPLED = 1 << 17
"""The most samples of which a column's values are held in memory, and about how many of larger ones."""
GAIN_BINS, NUMBER_BINS = 1024, 256
_ROWS = 1 << 15  # of a batch here, several of which are in memory; a task of Ray's returns its counts, so it has more


@dataclass(frozen=True)
class Column:
    """The values of a column and the gains of their samples; `kinds`: how many there are of each kind in all rows."""

    values: Values
    vig: Floats
    kinds: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, names: Iterable[str], drawn: Mapping[str, Drawn] | None = None) -> dict[str, Column]:
        """The scored samples of a block that have a value of each of these columns.

        The table has the columns kept and vig. `drawn`: of some columns, which rows are taken; all are counted.
        """
        vig = table["vig"].to_numpy().astype(np.float64)
        pairs = Pairs.of(table[KEPT.name])
        found = {}
        for name in names:
            texts = pairs.texts(name)
            rows = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False) & ~np.isnan(vig))
            values = Values.of(texts.take(pa.array(rows)))
            kinds = values.counts()
            if drawn is not None and name in drawn:
                mine = np.flatnonzero(drawn[name][rows])
                values, rows = values.take(mine), rows[mine]
            found[name] = cls(values, vig[rows], kinds)
        return found

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
    rows_at_once = BATCH_ROWS if files.on_ray else _ROWS
    needed = [KEPT.name, "vig", *(["sample_key"] if some else [])]
    parts: dict[str, list[Column]] = {name: [] for name in columns}
    for block in files.scan(needed, _Sample(cutoffs, seed), batch_rows=rows_at_once):
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
        counted = _merged(files.scan([KEPT.name, "vig"], count, batch_rows=rows_at_once, fold=_folded))
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
        drawn: dict[str, Drawn] = {}
        if "sample_key" in table.column_names:
            # Another seed than those of what is drawn for the gallery.
            of_keys = hashes(table["sample_key"], f"kept {self.seed}")
            drawn = {name: of_keys < np.uint64(cut) for name, cut in self.cutoffs.items() if cut is not None}
        return Column.of(table, self.cutoffs, drawn)


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
        for name, column in Column.of(table, self.bins).items():
            bins, column = self.bins[name], column.full()
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
