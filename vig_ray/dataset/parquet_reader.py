"""Rows from a Parquet file, in batches of bounded size, reading only the columns that its layout uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.keep import NOTHING, Keep, skeleton
from vig_ray.dataset.layouts.columns import check_columns
from vig_ray.dataset.layouts.known import recognise_columns
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.opening import open_parts
from vig_ray.dataset.rows import Row
from vig_ray.dataset.schema import RowError
from vig_ray.storage import one_line, scheme_of

_BATCH_BYTES = 4 << 20
_MOST_ROWS = 1024
_MOST_ROWS_WITH_BYTES = 64
"""Fewer, since a batch is sized by what a row of its group takes on average, and images differ most."""


def read_parquet(
    uri: str,
    layout: Layout | None = None,
    *,
    size: int | None = None,
    groups: Sequence[int] | None = None,
    number: int = 0,
    keep: Keep = NOTHING,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Row]:
    """The rows of the Parquet file at `uri`; one whose text isn't UTF-8, or whose date Python hasn't got,
    is a RowError. `layout`: of --columns.

    `size`: the file's, in bytes, if known. `groups`: the row groups that are read, by default all; `number`: of their
    first row. `keep`: columns that are read, too. `wanted`: asked about every row's number, in order; others aren't
    given, and row groups without any aren't read. Raises StageError where the columns fit no layout, and OSError or
    pyarrow's errors where the file is damaged.
    """
    source, buffer_size = open_parts(uri, size)
    # Pre-buffering, the default, keeps all that was read of the file in memory; reading without a buffer keeps whole
    # columns of a row group.
    with source, pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer_size) as file:
        schema = file.schema_arrow
        columns, layouts = columns_of(uri, schema, layout, keep)
        has_bytes = _has_bytes(schema, columns)

        def rows_at_once(group: int) -> int:
            return _batch_rows(file.metadata.row_group(group), columns, has_bytes)

        # Groups of rows of about the same size are read together: each reading has a cost of its own. From a store,
        # where a batch over several groups asks for all of them at once, one by one.
        together = wanted is None and scheme_of(uri) in ("", "file")
        for rows, alike in itertools.groupby(range(file.num_row_groups) if groups is None else groups, rows_at_once):
            for run in [list(alike)] if together else [[group] for group in alike]:
                count = sum(file.metadata.row_group(group).num_rows for group in run)
                taken = None if wanted is None else [wanted(each) for each in range(number, number + count)]
                if taken is None or any(taken):
                    batches = file.iter_batches(rows, row_groups=run, columns=columns, use_threads=False)
                    yield from rows_of(batches, number, taken, layouts)
                number += count


def rows_of(
    batches: Iterable[pa.RecordBatch], number: int, taken: Sequence[bool] | None, layouts: Sequence[Layout]
) -> Iterator[Row]:
    """The rows of batches. `number`: of the first; `taken`: for each whether it is given, None for all. `layouts`: what
    they may be of."""
    layout, among = layouts[0] if len(layouts) == 1 else None, tuple(each.name for each in layouts)
    start = 0
    for batch in batches:
        numbers: Sequence[int] = range(number + start, number + start + batch.num_rows)
        start += len(numbers)
        if taken is not None:
            mask = taken[start - len(numbers) : start]
            numbers = [each for each, is_taken in zip(numbers, mask, strict=True) if is_taken]
            batch = batch.filter(pa.array(mask, pa.bool_()))
        for row, content in zip(numbers, _contents(batch), strict=True):
            yield Row(row, content, layout=layout, among=among)


def columns_of(uri: str, schema: pa.Schema, layout: Layout | None, keep: Keep) -> tuple[list[str], list[Layout]]:
    """The columns that are read of a file, and the layouts that its rows may be of: a row tells which of several.

    Columns that are kept don't count there: their types may have ruled a layout out. `layout`: that of --columns.
    Raises StageError where the file fits none.
    """
    if layout is not None:
        check_columns(layout.columns, uri, schema)
        layouts = [layout]
    else:
        layouts = recognise_columns(uri, schema)
    used = {name for each in layouts for name in each.reads(schema.names)} | set(keep.columns(schema.names))
    return [name for name in schema.names if name in used], layouts


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


def parquet_columns(uri: str) -> dict[str, Any]:
    """The columns of the Parquet file at `uri`, as `skeleton` gives them. Raises OSError or pyarrow's errors."""
    source, _ = open_parts(uri)
    with source:
        return skeleton(pq.read_schema(source))


def _contents(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # text that isn't UTF-8, or a time that Python's calendar hasn't got
        yield from (_content(batch.slice(index, 1)) for index in range(batch.num_rows))


def _content(row: pa.RecordBatch) -> dict[str, Any] | RowError:
    content = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            content[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            return RowError(type(error).__name__, f"{name}: {one_line(error)}")
    return content
