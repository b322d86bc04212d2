"""Rows from an Arrow file, as `datasets` keeps them: record batches in a stream, or with an index at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from vig_ray.dataset.keep import NOTHING, Keep
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.opening import open_stream
from vig_ray.dataset.parquet_reader import columns_of, rows_of
from vig_ray.dataset.rows import Row
from vig_ray.storage import filesystem

_MAGIC = b"ARROW1"  # an Arrow file with an index begins with it
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # a stream ends with it
_BATCH_ROWS = 32
"""So few because a row may hold the bytes of its images."""


def read_arrow(
    uri: str, layout: Layout | None = None, *, keep: Keep = NOTHING, wanted: Callable[[int], bool] | None = None
) -> Iterator[Row]:
    """The rows of the Arrow file at `uri`; one whose text isn't UTF-8 is a RowError. `layout`: of --columns.

    `keep`: columns that are read, too. `wanted`: asked about every row's number, in order; others aren't given. Raises
    StageError where the columns fit no layout, and OSError or pyarrow's errors where the file is damaged.
    """
    number = 0
    with _batches(uri) as (schema, batches):
        columns, only = columns_of(uri, schema, layout, keep)
        for batch in batches:
            taken = None if wanted is None else [wanted(number + row) for row in range(batch.num_rows)]
            if taken is None or any(taken):
                chosen = batch.select(columns)
                small = (chosen.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
                yield from rows_of(small, number, taken, only)
            number += batch.num_rows


def count_arrow(uri: str) -> int:
    """How many rows an Arrow file has; of a local one only the lengths of its batches are read."""
    with _batches(uri) as (_, batches):
        return sum(batch.num_rows for batch in batches)


@contextmanager
def _batches(uri: str) -> Iterator[tuple[pa.Schema, Iterator[Any]]]:
    """The schema and the record batches of a file; a local one's are mapped into memory, not read."""
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        with open_stream(uri, unpack=False) as source:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)
        return
    with pa.memory_map(path) as mapped:
        size = mapped.size()
        if mapped.read_at(min(len(_MAGIC), size), 0) == _MAGIC:
            file = pa.ipc.open_file(mapped)
            yield file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
            return
        # Arrow takes a stream that is cut off between two batches for a whole one.
        if mapped.read_at(min(len(_END), size), max(0, size - len(_END))) != _END:
            raise pa.ArrowInvalid("the mark at the end of an Arrow stream is missing")
        stream = pa.ipc.open_stream(mapped)
        yield stream.schema, iter(stream)
