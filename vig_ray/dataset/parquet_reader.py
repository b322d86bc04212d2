"""Rows from a Parquet file, in small batches, reading only the columns that some format uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.keep import Keep, skeleton
from vig_ray.dataset.rows import COLUMNS, EXPECTED, Row, fits
from vig_ray.dataset.schema import RowError
from vig_ray.errors import StageError
from vig_ray.storage import filesystem

_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 32
"""So few because a row may hold the bytes of its images."""


def read_parquet(uri: str, keep: Keep) -> Iterator[Row]:
    """The rows of the Parquet file at `uri`, with what is kept of them; one whose text isn't UTF-8 is a RowError.

    Raises StageError where the columns fit no format, and OSError or pyarrow's errors where the file is damaged.
    """
    fs, path = filesystem(uri)
    # Pre-buffering, the default, keeps all that was read of the file in memory; reading without a buffer keeps whole
    # columns of a row group.
    with (
        fs.open_input_file(path) as source,
        pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
    ):
        names = file.schema_arrow.names
        if not fits(dict.fromkeys(names)):
            raise StageError(f"{uri}: the columns {', '.join(names)} fit no format; expected {EXPECTED}")
        columns = list(dict.fromkeys([*(name for name in COLUMNS if name in names), *keep.columns(names)]))
        number = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            for content in _contents(batch):
                yield Row(number, content)
                number += 1


def parquet_columns(uri: str) -> dict[str, Any]:
    """The columns of the Parquet file at `uri`, as `skeleton` gives them. Raises OSError or pyarrow's errors."""
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as source:
        return skeleton(pq.read_schema(source))


def _contents(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RowError("UnicodeDecodeError", str(error))
