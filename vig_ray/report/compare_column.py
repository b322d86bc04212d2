"""`vig compare RUN --column NAME`: does VIG say of the samples what a column of their dataset says?

Rank correlation, the sets that both would keep, and the gain of the samples by value; of two values, how well the gain
tells them apart. The column is read from the scores, where it was kept when they were made, else from samples/ beside
them, which may have been imported again with it since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from vig_ray.dataset.schema import KEPT
from vig_ray.errors import StageError
from vig_ray.report.agreement import Agreement, agreement, agreement_table, number_text, printed
from vig_ray.report.format import format_gain, format_interval, kept_kinds, kept_value_names
from vig_ray.report.kept import QUANTILES, Bins, Cells, auroc, describe
from vig_ray.report.kept_scans import Column
from vig_ray.stage import read_stage
from vig_ray.tables.directories import dataset, samples_beside
from vig_ray.tables.kept import columns_named, texts_of
from vig_ray.tables.order import hashes
from vig_ray.tables.passes import View

Json = dict[str, Any]
_BATCH = 1 << 17


@dataclass(frozen=True)
class ColumnComparison:
    """The comparison of a run with a column. `scored`: samples with a gain; `of`: what the report tells of a column.

    `agreements`: of the top p % by gain (A) and by the column (B), among samples with a number. `auroc`: of two values,
    the share of pairs in which the sample with the value `positive` has the higher gain.
    """

    scores: str
    reference: str
    column: str
    scored: int
    of: Json
    agreements: list[Agreement]
    auroc: float | None
    positive: str | None
    as_json: bool = False

    def text(self) -> str:
        """For a person, or for a program."""
        if self.as_json:
            return json.dumps({name: value for name, value in asdict(self).items() if name != "as_json"}, indent=2)
        of = self.of
        lines = [
            f"{self.scores} ({self.reference}) and the column {self.column}",
            f"{of['samples']:,} of {self.scored:,} scored samples have it: {kept_kinds(of)}",
        ]
        if of["correlated"]:
            lines.append(
                f"rank correlation (Spearman) with sample VIG {number_text(of['spearman'])} "
                f"over {of['correlated']:,} samples"
            )
        if self.auroc is not None:
            lines.append(f"AUROC of VIG for {self.positive}: {self.auroc:.4f} (0.5: it tells nothing)")
        if self.agreements:
            lines += ["", agreement_table(self.agreements, of["correlated"], "VIG", self.column)]
        return "\n".join([*lines, "", self._values()])

    def _values(self) -> str:
        table = Table(box=None, pad_edge=False)
        table.add_column(self.column, no_wrap=True)
        quantiles = [f"{100 * q:g} %" for _, q in QUANTILES]
        for name in ("samples", "mean VIG", "95 % of the mean", *quantiles):
            table.add_column(name, justify="right", no_wrap=True)
        for name, row in zip(kept_value_names(self.of), self.of["values"], strict=True):
            quantile_cells = (format_gain(row[word]) for word, _ in QUANTILES)
            table.add_row(name, f"{row['samples']:,}", format_gain(row["mean"]), format_interval(row), *quantile_cells)
        return printed(table)


def compare_column(scores: str, view: View, name: str, p: Sequence[float], *, as_json: bool) -> ColumnComparison:
    """Compare, in about 100 bytes of memory a sample. Raises StageError where no scored sample has the column."""
    scored, column = _read(scores, view, name)
    full = column.full()
    if not len(full.vig):
        raise StageError(f"--column {name}: none of the {scored:,} scored samples of {scores} has a value")
    bins = Bins.of(full.values, full.vig)
    cells = Cells.of(bins, full.values, full.vig)
    of = describe(name, bins, cells, column.kinds, exact=True)
    numeric = ~np.isnan(full.values.numbers)
    vig, numbers = full.vig[numeric], full.values.numbers[numeric]
    two = auroc(bins, cells)
    return ColumnComparison(
        scores,
        view.reference,
        name,
        scored,
        of,
        [agreement(each, vig, numbers) for each in p] if of["spearman"] is not None else [],
        two[1] if two else None,
        kept_value_names(of | {"values": [two[0]]})[0] if two else None,
        as_json,
    )


def _read(scores: str, view: View, name: str) -> tuple[int, Column]:
    """How many samples are scored, and the column of those that have it."""
    record = read_stage(scores) or {}
    if name in record.get("kept", {}):
        return _from_scores(scores, view, name)
    samples = samples_beside(scores, None, record)
    if samples is None or name not in (read_stage(samples) or {}).get("kept", {}):
        columns_named(record, [name], scores, "--column")  # says what there is
        raise StageError(f"--column {name}: takes the name of one column")
    return _from_samples(scores, view, samples, name)


def _from_scores(scores: str, view: View, name: str) -> tuple[int, Column]:
    scored, parts = 0, []
    columns = [KEPT.name, "vig"]
    for stored in dataset(scores).to_batches(columns=view.stored(columns), batch_size=_BATCH):
        table = view.table(stored, columns)
        scored += table.num_rows - table["vig"].null_count
        parts.append(Column.of(table, [name])[name])
    return scored, Column.joined(parts)


def _from_samples(scores: str, view: View, samples: str, name: str) -> tuple[int, Column]:
    """The samples' column beside the scores' gains, by the hashes of their keys."""
    keys, gains = [], []
    for stored in dataset(scores).to_batches(columns=view.stored(["sample_key", "vig"]), batch_size=_BATCH):
        table = view.table(stored, ["sample_key", "vig"])
        table = table.filter(table["vig"].is_valid())
        keys.append(hashes(table["sample_key"], 0))
        gains.append(table["vig"].to_numpy().astype(np.float64))
    of_keys = np.concatenate([np.zeros(0, np.uint64), *keys])
    vig = np.concatenate([np.zeros(0), *gains])
    order = np.argsort(of_keys)
    of_keys, vig = of_keys[order], vig[order]
    parts = []
    for batch in dataset(samples).to_batches(columns=["sample_key", KEPT.name], batch_size=_BATCH):
        batch = batch.filter(texts_of(batch[KEPT.name], name).is_valid())
        wanted = hashes(batch["sample_key"], 0)
        if not len(of_keys):
            continue
        at = np.minimum(np.searchsorted(of_keys, wanted), len(of_keys) - 1)
        found = np.flatnonzero(of_keys[at] == wanted)
        table = pa.table({KEPT.name: batch[KEPT.name].take(pa.array(found)), "vig": pa.array(vig[at[found]])})
        parts.append(Column.of(table, [name])[name])
    return len(vig), Column.joined(parts)
