"""Rows from an Arrow file, as `datasets` keeps them: record batches in a stream, or with an index at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from vig_ray.dataset.keep import NOTHING, Keep
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.opening import open_parts, open_stream
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
        columns, layouts = columns_of(uri, schema, layout, keep)
        for batch in batches:
            taken = None if wanted is None else [wanted(number + row) for row in range(batch.num_rows)]
            if taken is None or any(taken):
                chosen = batch.select(columns)
                small = (chosen.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
                yield from rows_of(small, number, taken, layouts)
            number += batch.num_rows


def count_arrow(uri: str) -> int:
    """How many rows an Arrow file has; of a local one only the lengths of its batches are read."""
    with _batches(uri) as (_, batches):
        return sum(batch.num_rows for batch in batches)


@contextmanager
def _batches(uri: str) -> Iterator[tuple[pa.Schema, Iterator[Any]]]:
    """The schema and the record batches of a file; a local one's are mapped into memory, not read."""
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        with pa.memory_map(path) as mapped:
            yield _indexed(mapped) if _has_index(mapped) else _streamed(mapped)
        return
    with open_parts(uri)[0] as parts:
        if _has_index(parts):
            yield _indexed(parts)
            return
    with open_stream(uri, unpack=False) as source:
        yield _streamed(source)


def _has_index(file: pa.NativeFile) -> bool:
    """Whether an Arrow file has an index, or else is a stream that is whole. Raises ArrowInvalid where it is cut off.

    Arrow takes a stream that is cut off between two batches for a whole one.
    """
    head = file.read(len(_MAGIC))
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_END)))
    tail = file.read(len(_END))
    file.seek(0)
    if head != _MAGIC and tail != _END:
        raise pa.ArrowInvalid("the mark at the end of an Arrow stream is missing")
    return bool(head == _MAGIC)


def _indexed(source: pa.NativeFile) -> tuple[pa.Schema, Iterator[Any]]:
    file = pa.ipc.open_file(source)
    return file.schema, (file.get_batch(index) for index in range(file.num_record_batches))


def _streamed(source: Any) -> tuple[pa.Schema, Iterator[Any]]:
    stream = pa.ipc.open_stream(source)
    return stream.schema, iter(stream)
