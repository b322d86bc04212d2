"""Rows from a Parquet file, in batches of bounded size, reading only the columns that its layout uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.layouts.columns import check_columns
from vig_ray.dataset.layouts.known import recognise_columns
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.rows import Row
from vig_ray.dataset.schema import RowError
from vig_ray.storage import filesystem

_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_MOST_ROWS = 1024
_MOST_ROWS_WITH_BYTES = 64
"""Fewer, since a batch is sized by what a row of its group takes on average, and images differ most."""


def read_parquet(uri: str, layout: Layout | None = None) -> Iterator[Row]:
    """The rows of the Parquet file at `uri`; one whose text isn't UTF-8 is a RowError. `layout`: of --columns.

    Raises StageError where the columns fit no layout, and OSError or pyarrow's errors where the file is damaged.
    """
    fs, path = filesystem(uri)
    # Pre-buffering, the default, keeps all that was read of the file in memory; reading without a buffer keeps whole
    # columns of a row group.
    with (
        fs.open_input_file(path) as source,
        pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
    ):
        schema = file.schema_arrow
        columns, only = columns_of(uri, schema, layout)
        number = 0
        has_bytes = _has_bytes(schema, columns)
        # Groups of rows of about the same size are read together: each reading has a cost of its own.
        sizes = (
            _batch_rows(file.metadata.row_group(group), columns, has_bytes) for group in range(file.num_row_groups)
        )
        for rows, groups in itertools.groupby(enumerate(sizes), key=lambda each: each[1]):
            numbers = [group for group, _ in groups]
            for batch in file.iter_batches(rows, row_groups=numbers, columns=columns, use_threads=False):
                for content in _contents(batch):
                    yield Row(number, content, layout=only)
                    number += 1


def columns_of(uri: str, schema: pa.Schema, layout: Layout | None) -> tuple[list[str], Layout | None]:
    """The columns that are read of a file, and its rows' layout, if it isn't for each row to tell.

    `layout`: that of --columns. Raises StageError where the file fits none.
    """
    if layout is not None:
        check_columns(layout.columns, uri, schema)
        layouts = [layout]
    else:
        layouts = recognise_columns(uri, schema)
    used = {name for each in layouts for name in each.reads(schema.names)}
    return [name for name in schema.names if name in used], layouts[0] if len(layouts) == 1 else None


def _batch_rows(group: Any, columns: Sequence[str], has_bytes: bool) -> int:
    """How many rows of a row group are read at a time, a power of two, by what its columns take for one on average."""
    wanted = set(columns)
    chunks = (group.column(index) for index in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in wanted)
    rows = _BATCH_BYTES * int(group.num_rows) // max(int(size), 1)
    most = _MOST_ROWS_WITH_BYTES if has_bytes else _MOST_ROWS
    return min(most, 1 << max(rows.bit_length() - 1, 0))


def _has_bytes(schema: pa.Schema, columns: Sequence[str]) -> bool:
    return any("binary" in str(kept) for name, kept in zip(schema.names, schema.types, strict=True) if name in columns)


def _contents(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RowError("UnicodeDecodeError", str(error))
