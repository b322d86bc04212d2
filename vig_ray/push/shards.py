"""A stage's table as Parquet files of a fit size for the hub, one after the other, in bounded memory and disk.

The same rows give the same files, byte for byte, so that pushing again sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.schema import KEPT
from vig_ray.errors import StageError
from vig_ray.push.paths import without_paths
from vig_ray.push.repository import Part
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem

_BYTES = 256 << 20  # of a shard, uncompressed
_MOST_ROWS, _LEAST_ROWS = 1_000_000, 1_000
_BATCH_BYTES = 16 << 20  # a row group
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Table:
    """A stage's Parquet files and where each one's rows begin, int64 [files + 1]. `schema`: of the columns to upload.
    `folders`: as of `without_paths`."""

    paths: list[str]
    filesystem: Any
    starts: npt.NDArray[np.int64]
    rows_a_batch: int
    schema: pa.Schema
    folders: tuple[str, ...]

    def write(self, first: int, past: int, target: str) -> str:
        """Write the rows from `first` until before `past` to the local file `target`; returns it."""
        with pq.ParquetWriter(target, self.schema, compression="zstd") as writer:
            waiting: list[pa.RecordBatch] = []
            for batch in self._batches(first, past):
                waiting.append(batch)
                if sum(each.num_rows for each in waiting) >= self.rows_a_batch:
                    writer.write_table(self._cleaned(waiting))
                    waiting = []
            if waiting:
                writer.write_table(self._cleaned(waiting))
        return target

    def _batches(self, first: int, past: int) -> Iterator[pa.RecordBatch]:
        begin = int(np.searchsorted(self.starts, first, side="right")) - 1
        for number in range(begin, len(self.paths)):
            at = int(self.starts[number])
            if at >= past:
                return
            with pq.ParquetFile(self.paths[number], filesystem=self.filesystem, pre_buffer=False) as file:
                for batch in file.iter_batches(self.rows_a_batch, columns=self.schema.names):
                    start, stop = max(first - at, 0), min(past - at, batch.num_rows)
                    if start < stop:
                        yield batch.slice(start, stop - start)
                    at += batch.num_rows

    def _cleaned(self, batches: list[pa.RecordBatch]) -> pa.Table:
        table = pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches])
        table = table.select(self.schema.names).cast(self.schema).combine_chunks()
        number = self.schema.get_field_index("error")
        if number < 0 or table["error"].null_count == table.num_rows:
            return table
        errors = [error and without_paths(error, self.folders) for error in table["error"].to_pylist()]
        return table.set_column(number, self.schema.field("error"), pa.array(errors, pa.string()))


def shards(directory: str, folder: str, folders: Sequence[str]) -> tuple[Part, ...]:
    """The table of a stage as files `folder`/00000.parquet and so on; `error` without paths (`folders`: theirs).

    What was kept of the dataset is left out: it is the dataset's own text. Raises StageError where there are no rows.
    """
    fs, _ = filesystem(directory)
    paths = parquet_files(directory)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        footers = list(pool.map(lambda path: _footer(path, fs), paths))
    total = sum(rows for rows, _ in footers)
    if not total:
        raise StageError(f"{directory}: no rows")
    stored = pq.read_schema(paths[0], filesystem=fs)
    a_row = max(1, sum(size for _, size in footers) // total)
    of_shard = int(np.clip(_BYTES // a_row, _LEAST_ROWS, _MOST_ROWS))
    table = Table(
        paths,
        fs,
        np.cumsum([0, *(rows for rows, _ in footers)], dtype=np.int64),
        max(1, min(of_shard, _BATCH_BYTES // a_row)),
        pa.schema([field for field in stored if field.name != KEPT.name]),
        tuple(folders),
    )
    return tuple(
        _shard(table, f"{folder}/{number:05d}.parquet", first, min(first + of_shard, total))
        for number, first in enumerate(range(0, total, of_shard))
    )


def _shard(table: Table, name: str, first: int, past: int) -> Part:
    return Part(name, f"{past - first:,} rows", lambda target: table.write(first, past, target))


def _footer(path: str, fs: Any) -> tuple[int, int]:
    """Rows of a Parquet file, and the uncompressed bytes of what is uploaded of them."""
    metadata = pq.read_metadata(path, filesystem=fs)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    sizes = [each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] != KEPT.name]
    return metadata.num_rows, sum(sizes)
