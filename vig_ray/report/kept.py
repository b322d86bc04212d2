"""A kept column against VIG: their rank correlation, and the gain of the samples by value, as JSON values.

Both are made of counts of samples by value and gain. Where all samples are at hand, each value and each gain has a
number of its own and what is told is exact; else they are told apart in bins (`vig_ray.report.kept_scans`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.report.numbers import mean_row
from vig_ray.report.tally import Floats, Ints, Moments
from vig_ray.tables.kept import KINDS, Values

Json = dict[str, Any]

VALUES = 12
"""The most different numbers, and texts, that are shown one by one."""
RANGES = 10
"""Ranges of about equal counts that more numbers are shown in."""
QUANTILES = (("q05", 0.05), ("q1", 0.25), ("median", 0.5), ("q3", 0.75), ("q95", 0.95))


@dataclass(frozen=True)
class Bins:
    """What is told apart in counting: values are numbered numbers first, then texts, then all others together.

    `numbers`: ascending, the least of each bin; with `by_value` no other number belongs to it. `texts`: JSON texts.
    `gains`: ascending, the least of each bin.
    """

    numbers: Floats
    by_value: bool
    texts: tuple[str, ...]
    gains: Floats

    @classmethod
    def of(cls, values: Values, vig: Floats, *, most_numbers: int | None = None, most_gains: int | None = None) -> Bins:
        """Bins for these samples: one for each number and gain, or at most so many of about equal counts."""
        numbers = np.sort(values.numbers[~np.isnan(values.numbers)])
        different = np.unique(numbers)
        texts = pc.value_counts(values.texts.drop_null()).to_pylist()
        texts.sort(key=lambda each: (-each["counts"], each["values"]))
        return cls(
            different if most_numbers is None or len(different) <= VALUES else _edges(numbers, most_numbers),
            len(different) <= VALUES,
            tuple(each["values"] for each in texts[:VALUES]),
            np.unique(vig) if most_gains is None else _edges(np.sort(vig), most_gains),
        )

    @property
    def size(self) -> int:
        """How many values are told apart."""
        return len(self.numbers) + len(self.texts) + 1

    def value_of(self, values: Values) -> Ints:
        """The number of each value; of those that there are none of, the last."""
        number = np.full(len(values.numbers), self.size - 1)
        if len(self.numbers):
            at = np.maximum(np.searchsorted(self.numbers, values.numbers, side="right") - 1, 0)
            known = ~np.isnan(values.numbers)
            known &= (self.numbers[at] == values.numbers) if self.by_value else known
            number[known] = at[known]
        if self.texts:
            found = pc.index_in(values.texts, value_set=pa.array(self.texts, pa.string()), skip_nulls=True)
            index = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
            number[index >= 0] = len(self.numbers) + index[index >= 0]
        return number

    def gain_of(self, vig: Floats) -> Ints:
        """The number of each gain."""
        return np.maximum(np.searchsorted(self.gains, vig, side="right") - 1, 0)


@dataclass(frozen=True)
class Cells:
    """Samples by the numbers of value and gain: `count` in each of C cells. `moments`: of the gain, by value."""

    value: Ints
    gain: Ints
    count: Ints
    moments: Moments

    @classmethod
    def of(cls, bins: Bins, values: Values, vig: Floats) -> Cells:
        """One cell a sample."""
        value = bins.value_of(values)
        return cls(value, bins.gain_of(vig), np.ones(len(vig), np.int64), Moments.of(vig, value, bins.size))


def spearman(one: Ints, other: Ints, count: Ints) -> float | None:
    """The rank correlation of two numberings, ties in the middle, `count` samples a pair; None where one is constant.

    Pearson's correlation of the midranks, so that it is exact with ties.
    """
    if not len(count):
        return None
    ranks = [_midranks(numbers, count)[numbers] - (count.sum() + 1) / 2 for numbers in (one, other)]
    a, b = ranks
    spread = math.sqrt(float((count * a * a).sum()) * float((count * b * b).sum()))
    return float((count * a * b).sum()) / spread if spread else None


def _midranks(numbers: Ints, count: Ints) -> Floats:
    """The rank of each number, from 1, in the middle of those that are equal."""
    of_number = np.bincount(numbers, weights=count)
    ranks: Floats = np.cumsum(of_number) - (of_number - 1) / 2
    return ranks


def describe(column: str, bins: Bins, cells: Cells, kinds: npt.NDArray[np.int64], *, exact: bool) -> Json:
    """What is told of a column. `kinds`: how many values there are of each of KINDS; `exact`: cells hold all."""
    numeric = cells.value < len(bins.numbers)
    value, gain, count = (part[numeric] for part in (cells.value, cells.gain, cells.count))
    by_kind = dict(zip(KINDS, kinds.tolist(), strict=True))
    return {
        "column": column,
        "samples": int(kinds.sum()),
        "kinds": by_kind,
        "boolean": by_kind["boolean"] > 0 and not by_kind["number"] and not by_kind["list"],
        "correlated": int(count.sum()),
        "spearman": spearman(value, gain, count),
        "exact": exact,
        "values": _rows(bins, cells),
    }


def _rows(bins: Bins, cells: Cells) -> list[Json]:
    """A row for each value or range: samples, mean gain with its interval, quantiles. Empty ones are left out."""
    groups, names = _groups(bins, cells)
    moments = Moments(
        *(_added(groups, getattr(cells.moments, part), len(names)) for part in ("count", "total", "square"))
    )
    rows: list[Json] = []
    of_cell = groups[cells.value]
    for number, name in enumerate(names):
        mine = of_cell == number
        if not mine.any():
            continue
        by_gain = np.cumsum(np.bincount(cells.gain[mine], weights=cells.count[mine], minlength=len(bins.gains)))
        row: Json = {**name, "samples": int(by_gain[-1]), **mean_row(moments, number)}
        for word, q in QUANTILES:
            rank = max(1, math.ceil(q * by_gain[-1]))
            row[word] = float(bins.gains[np.searchsorted(by_gain, rank)])
        rows.append(row)
    return [*(row for row in rows if "text" not in row and "others" not in row),
            *sorted((row for row in rows if "text" in row), key=lambda row: (-row["median"], row["text"])),
            *(row for row in rows if "others" in row)]  # fmt: skip


def _groups(bins: Bins, cells: Cells) -> tuple[Ints, list[Json]]:
    """The number of each value's row, and what each row is of: a value, a range of numbers, a text, all others."""
    count = np.bincount(cells.value, weights=cells.count, minlength=bins.size)[: len(bins.numbers)]
    if bins.by_value:
        of_number = np.arange(len(bins.numbers))
        names: list[Json] = [{"value": float(number)} for number in bins.numbers]
    else:
        middle = np.cumsum(count) - count / 2
        of_number = np.minimum(middle * RANGES / max(count.sum(), 1), RANGES - 1).astype(np.int64)
        _, of_number = np.unique(of_number, return_inverse=True)
        first = [float(bins.numbers[np.argmax(of_number == group)]) for group in range(of_number.max() + 1)]
        # Bins at both ends hold what is beyond the numbers that they were made of.
        names = [{"from": low, "to": high} for low, high in zip([None, *first[1:]], [*first[1:], None], strict=True)]
    texts: list[Json] = [{"text": text} for text in bins.texts]
    names += [*texts, {"others": True}]
    return np.concatenate([of_number, np.arange(len(names) - len(texts) - 1, len(names))]), names


def _added(groups: Ints, sums: Any, size: int) -> Any:
    return np.bincount(groups, weights=sums, minlength=size).astype(sums.dtype)


def _edges(ascending: Floats, most: int) -> Floats:
    """At most so many of these values, as far apart as they lie in rank."""
    at = np.linspace(0, len(ascending), min(most, len(ascending)), endpoint=False).astype(np.int64)
    return np.unique(ascending[at])


def auroc(bins: Bins, cells: Cells) -> tuple[Json, float] | None:
    """How well the gain tells the samples of one value from those of the other: the share of pairs that it orders.

    With the value that should have the higher gain, as `_rows` names it: the greater number, or the text that comes
    last. None where there aren't exactly two values.
    """
    present = np.unique(cells.value).tolist()
    if len(present) != 2 or present[1] == bins.size - 1:
        return None
    count = len(bins.numbers)
    named = [(n >= count, bins.texts[n - count] if n >= count else "", n) for n in present]
    is_text, text, positive = max(named)
    ranks = _midranks(cells.gain, cells.count)[cells.gain]
    mine = cells.value == positive
    n, others = float(cells.count[mine].sum()), float(cells.count[~mine].sum())
    share = (float((ranks * cells.count)[mine].sum()) - n * (n + 1) / 2) / (n * others)
    return ({"text": text} if is_text else {"value": float(bins.numbers[positive])}), share
