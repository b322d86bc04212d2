"""Columns of another table beside those of a scan, row by row by the sample's key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.storage import filesystem
from vig_ray.tables.key_index import KeyIndex
from vig_ray.tables.rows import Places, split


@dataclass(frozen=True)
class Beside:
    """Columns of a stage's directory. `schema`: of those that may be asked for; `paths`: its files in their order.

    `index`: where the row of each key lies.
    """

    directory: str
    paths: Sequence[str]
    schema: pa.Schema
    index: Callable[[], KeyIndex]

    def of(self, keys: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """These columns of the rows with these keys, in their order; null where there is no such row."""
        index = self.index()
        schema = pa.schema([self.schema.field(name) for name in columns])
        if not len(index.ascending) or not len(keys):
            return pa.table([pa.nulls(len(keys), field.type) for field in schema], schema=schema)
        places = index.places(keys)
        rows = self._rows(places, ["sample_key", *columns])
        is_its_own = pc.equal(rows["sample_key"], keys.combine_chunks()).combine_chunks()
        nothing = {field.name: pa.scalar(None, field.type) for field in schema}
        chosen = [pc.if_else(is_its_own, rows[name].combine_chunks(), nothing[name]) for name in columns]
        return pa.table(chosen, schema=schema)

    def _rows(self, places: Places, columns: list[str]) -> pa.Table:
        """The rows at these places, in their order; every row group is read once."""
        fs, _ = filesystem(self.directory)
        files, rows = split(places)
        order = np.lexsort((rows, files))
        parts: list[pa.Table] = []
        for file in np.unique(files).tolist():
            of_file = rows[order][files[order] == file]
            with pq.ParquetFile(self.paths[file], filesystem=fs) as opened:
                metadata = opened.metadata
                counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                starts = np.cumsum([0, *counts])
                of_group = np.searchsorted(starts, of_file, side="right") - 1
                for group in np.unique(of_group).tolist():
                    table = opened.read_row_group(group, columns=columns)
                    parts.append(table.take(pa.array(of_file[of_group == group] - starts[group])))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).combine_chunks().take(pa.array(back))


@dataclass(frozen=True)
class Joined:
    """A function of `columns`, some of which are those of `beside`, given a table of the others and `sample_key`."""

    beside: Beside
    columns: Sequence[str]
    function: Callable[[pa.Table], object]

    def __call__(self, table: pa.Table) -> object:
        """The function's result for a block."""
        theirs = [name for name in self.columns if name in self.beside.schema.names]
        beside = self.beside.of(table["sample_key"], theirs)
        every = [beside[name] if name in theirs else table[name] for name in self.columns]
        return self.function(pa.table(every, names=list(self.columns)))
