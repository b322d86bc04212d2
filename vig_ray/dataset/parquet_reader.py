"""Rows from a Parquet file, in small batches, reading only the columns that some format uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.opening import open_parts
from vig_ray.dataset.rows import COLUMNS, EXPECTED, Row, fits
from vig_ray.dataset.schema import RowError
from vig_ray.errors import StageError

_BATCH_ROWS = 32
"""So few because a row may hold the bytes of its images."""


def read_parquet(
    uri: str,
    *,
    size: int | None = None,
    groups: Sequence[int] | None = None,
    number: int = 0,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Row]:
    """The rows of the Parquet file at `uri`; one whose text isn't UTF-8 is a RowError.

    `size`: the file's, in bytes, if known. `groups`: the row groups that are read, by default all; `number`: of their
    first row. `wanted`: asked about every row's number, in order; others aren't given, and row groups without any
    aren't read. Raises StageError where the columns fit no format, and OSError or pyarrow's errors where the file is
    damaged.
    """
    source, buffer_size = open_parts(uri, size)
    # Pre-buffering, the default, keeps all that was read of the file in memory; reading without a buffer keeps whole
    # columns of a row group.
    with source, pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer_size) as file:
        columns = columns_of(uri, file.schema_arrow.names)
        for group in range(file.metadata.num_row_groups) if groups is None else groups:
            numbers = range(number, number + file.metadata.row_group(group).num_rows)
            number = numbers.stop
            taken = None if wanted is None else [wanted(each) for each in numbers]
            if taken is None or any(taken):
                batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
                yield from rows_of(batches, numbers.start, taken)


def columns_of(uri: str, names: Sequence[str]) -> list[str]:
    """The columns that some format uses. Raises StageError where they fit none."""
    if not fits(dict.fromkeys(names)):
        raise StageError(f"{uri}: the columns {', '.join(names)} fit no format; expected {EXPECTED}")
    return [name for name in COLUMNS if name in names]


def rows_of(batches: Iterator[pa.RecordBatch], number: int, taken: Sequence[bool] | None) -> Iterator[Row]:
    """The rows of batches. `number`: of the first; `taken`: for each whether it is given, None for all."""
    start = 0
    for batch in batches:
        numbers: Sequence[int] = range(number + start, number + start + batch.num_rows)
        start += len(numbers)
        if taken is not None:
            mask = taken[start - len(numbers) : start]
            numbers = [each for each, is_taken in zip(numbers, mask, strict=True) if is_taken]
            batch = batch.filter(pa.array(mask, pa.bool_()))
        yield from map(Row, numbers, _contents(batch))


def _contents(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RowError("UnicodeDecodeError", str(error))
