"""Rows of the samples table to Parquet parts of bounded size, holding only a small batch in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.dataset.schema import SAMPLES, Sample
from vig_ray.errors import StageError
from vig_ray.storage import one_line
from vig_ray.whole_files import whole_files

_BATCH_ROWS = 1000
_BATCH_BYTES = 2 << 20  # a row group, which is what training reads to get at one sample
# Only these repeat. A dictionary of image bytes would have to be read whole before the first row.
_REPEATING_COLUMNS = [
    "source", "kept.list.element.name", "kept.list.element.value", "conversation.list.element.role",
    "conversation.list.element.text",
]  # fmt: skip


class Parts:
    """Writes `PREFIX00000.parquet`, `PREFIX00001.parquet`, ... into a directory, for use in a `with` statement.

    A part is full at `rows_per_file` rows or `max_bytes_per_file` bytes of text and images, whichever comes first;
    until it is closed it lies in the local folder `unfinished`. The directory is made with the first part. Raises
    StageError where it can't be written to.
    """

    def __init__(
        self, directory: str, *, prefix: str, unfinished: str, rows_per_file: int, max_bytes_per_file: int
    ) -> None:
        self._directory, self._unfinished, self._prefix = directory, unfinished, prefix
        self._rows_per_file, self._max_bytes = rows_per_file, max_bytes_per_file
        self._part: pq.ParquetWriter | None = None
        self._rows = self._bytes = 0
        self.begun = 0
        """How many parts have been begun."""

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last part; after an error in the input too, so that the rows before it can be looked at."""
        self.close_part()

    def full(self, rows: int, size: int) -> bool:
        """Whether the part is full with so many more rows and bytes."""
        return self._rows + rows >= self._rows_per_file or self._bytes + size >= self._max_bytes

    def write(self, table: pa.Table, size: int) -> None:
        """Add a row group of `size` bytes of text and images to the part."""
        try:
            self._open_part().write_table(table)
        except OSError as error:
            raise StageError(f"{self._directory}: can't be written to: {one_line(error)}") from error
        self._rows += table.num_rows
        self._bytes += size

    def extend(self, table: pa.Table, groups: npt.NDArray[np.uint64] | None = None) -> None:
        """Add any number of rows, in row groups and parts of their proper sizes.

        `groups`: for each row what it belongs to, ascending. A part ends between two groups, if it can hold one.
        """
        ends = np.cumsum(_row_bytes(table))
        start = 0
        while start < table.num_rows:
            before = ends[start - 1] if start else 0
            by_size = int(np.searchsorted(ends, before + self._max_bytes - self._bytes)) + 1
            stop = min(start + self._rows_per_file - self._rows, max(by_size, start + 1), table.num_rows)
            if groups is not None and stop < table.num_rows and groups[stop - 1] == groups[stop]:
                first = int(np.searchsorted(groups, groups[stop]))
                if first > start:
                    stop = first
                elif first == start and self._rows:
                    self.close_part()
                    continue
            self._write_row_groups(table, ends, start, stop)
            if stop < table.num_rows or self.full(0, 0):
                self.close_part()
            start = stop

    def _write_row_groups(self, table: pa.Table, ends: npt.NDArray[np.int64], start: int, stop: int) -> None:
        while start < stop:
            before = int(ends[start - 1]) if start else 0
            past = min(int(np.searchsorted(ends, before + _BATCH_BYTES)) + 1, start + _BATCH_ROWS, stop)
            self.write(table.slice(start, past - start), int(ends[past - 1]) - before)
            start = past

    def _open_part(self) -> pq.ParquetWriter:
        if self._part is None:
            fs, path = whole_files(self._directory, self._unfinished)
            fs.create_dir(path, recursive=True)
            where = f"{path}/{self._prefix}{self.begun:05d}.parquet"
            self._part = pq.ParquetWriter(
                where, SAMPLES, filesystem=fs, compression="zstd", use_dictionary=_REPEATING_COLUMNS
            )
            self.begun += 1
        return self._part

    def close_part(self) -> None:
        """Finish the part, so that the next row begins another."""
        if self._part is None:
            return
        try:
            self._part.close()
        except OSError as error:
            raise StageError(f"{self._directory}: can't be written to: {one_line(error)}") from error
        finally:
            self._part = None
            self._rows = self._bytes = 0


def _row_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """The bytes of text and images of each row, int64 [rows]."""
    sizes: npt.NDArray[np.int64] = pc.binary_length(table["sample_key"]).to_numpy().astype(np.int64)
    for name, fields in (("images", ("uri", "bytes")), ("conversation", ("text",)), ("kept", ("name", "value"))):
        lists = table[name].combine_chunks()
        values = lists.flatten()
        lengths = [pc.fill_null(pc.binary_length(values.field(field)), 0).to_numpy() for field in fields]
        totals = np.concatenate([[0], np.cumsum(np.sum(lengths, axis=0, dtype=np.int64))])
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        past = np.cumsum(counts)
        sizes += totals[past] - totals[past - counts]
    return sizes


def _pairs(kept: Mapping[str, str]) -> list[dict[str, str]] | None:
    return [{"name": name, "value": value} for name, value in kept.items()] or None


def _size(kept: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in kept.items())


class SampleWriter:
    """Turns samples and failures into rows of `parts`, for use in a `with` statement; holds only a small batch of them.

    `each_batch` is called with every batch that is written, as a table.
    """

    def __init__(self, parts: Parts, each_batch: Callable[[pa.Table], None] | None = None) -> None:
        self._parts, self._each_batch = parts, each_batch
        self._batch: list[dict[str, Any]] = []
        self._batch_bytes = 0

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last batch; after an error in the input too, so that the rows before it can be looked at."""
        self._flush()

    def sample(self, key: str, sample: Sample, kept: Mapping[str, str]) -> None:
        """Add one sample, and what is kept of its row."""
        size = len(key) + _size(kept) + sum(len(turn.text) for turn in sample.conversation)
        size += sum(len(image.bytes or b"") + len(image.uri or "") for image in sample.images)
        row = {
            "sample_key": key,
            "id": sample.id,
            "source": sample.source,
            "kept": _pairs(kept),
            "images": [{"uri": image.uri, "bytes": image.bytes} for image in sample.images],
            "conversation": [turn._asdict() for turn in sample.conversation],
            "error": None,
        }
        self._add(row, size)

    def failure(self, key: str, identifier: str | None, error: str, kept: Mapping[str, str]) -> None:
        """Add the row of a sample that couldn't be imported, and what is kept of it."""
        empty: dict[str, Any] = {"source": None, "images": [], "conversation": []}
        row = {"sample_key": key, "id": identifier, "kept": _pairs(kept), **empty, "error": error}
        self._add(row, len(key) + len(error) + _size(kept))

    def _add(self, row: dict[str, Any], size: int) -> None:
        self._batch.append(row)
        self._batch_bytes += size
        full = self._parts.full(len(self._batch), self._batch_bytes)
        if full or len(self._batch) >= _BATCH_ROWS or self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        if full:
            self._parts.close_part()

    def _flush(self) -> None:
        if not self._batch:
            return
        table = pa.Table.from_pylist(self._batch, schema=SAMPLES)
        self._parts.write(table, self._batch_bytes)
        if self._each_batch is not None:
            self._each_batch(table)
        self._batch = []
        self._batch_bytes = 0
