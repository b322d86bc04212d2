"""Rows of Parquet files by their place: which file, which row."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.errors import StageError
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem

Places = npt.NDArray[np.uint64]

_ROW_BITS = 40
_FILES_OPEN = 32
_GROUPS_KEPT = 8


def places(file: int, first: int, count: int) -> Places:
    """The places of `count` rows of one file from its row `first` on, uint64 [count]."""
    return (np.uint64(file) << np.uint64(_ROW_BITS)) + np.arange(first, first + count, dtype=np.uint64)


def split(where: Places) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The file of each place and its row there."""
    rows = where & np.uint64((1 << _ROW_BITS) - 1)
    return (where >> np.uint64(_ROW_BITS)).astype(np.int64), rows.astype(np.int64)


def scan(directory: str, columns: list[str]) -> Iterator[tuple[Places, pa.Table]]:
    """Every row group's places and columns, in order, a few files at a time.

    Raises StageError where a column is missing.
    """
    fs, _ = filesystem(directory)
    paths = parquet_files(directory)
    if not paths:
        raise StageError(f"{directory}: no Parquet files")

    def read(number: int) -> list[tuple[Places, pa.Table]]:
        with pq.ParquetFile(paths[number], filesystem=fs) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            if missing:
                raise StageError(f"{paths[number]}: has no column {missing[0]!r}")
            groups, first = [], 0
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                groups.append((places(number, first, table.num_rows), table))
                first += table.num_rows
            return groups

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        reading: deque[Future[list[tuple[Places, pa.Table]]]] = deque()
        for number in range(len(paths)):
            reading.append(pool.submit(read, number))
            if len(reading) > 2 * workers:  # what has been read waits in memory
                yield from reading.popleft().result()
        while reading:
            yield from reading.popleft().result()


class Rows:
    """The rows of a stage's directory. A row group that several rows lie in is read once; the last few are kept.

    Pickles as the directory's name and its list of files.
    """

    def __init__(self, directory: str, columns: Sequence[str], paths: Sequence[str] | None = None) -> None:
        self.directory, self._columns = directory, list(columns)
        self.paths = list(paths) if paths is not None else parquet_files(directory)
        self._files: OrderedDict[int, tuple[pq.ParquetFile, npt.NDArray[np.int64]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.directory, self._columns, self.paths)

    def get(self, wanted: Places) -> list[dict[str, Any]]:
        """The rows at these places, in their order."""
        rows: list[dict[str, Any]] = [{}] * len(wanted)
        for index in np.argsort(wanted, kind="stable").tolist():
            file, row = int(wanted[index]) >> _ROW_BITS, int(wanted[index]) & ((1 << _ROW_BITS) - 1)
            _, starts = self._file(file)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            table = self._group(file, group)
            rows[index] = table.slice(row - int(starts[group]), 1).to_pylist()[0]
        return rows

    def _file(self, file: int) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
        if file not in self._files:
            fs, _ = filesystem(self.directory)
            opened = pq.ParquetFile(self.paths[file], filesystem=fs)
            metadata = opened.metadata
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._files[file] = opened, np.cumsum([0, *rows])
            if len(self._files) > _FILES_OPEN:
                _, (oldest, _) = self._files.popitem(last=False)
                oldest.close()
        self._files.move_to_end(file)
        return self._files[file]

    def _group(self, file: int, group: int) -> pa.Table:
        key = file, group
        if key not in self._groups:
            opened, _ = self._file(file)
            self._groups[key] = opened.read_row_group(group, columns=self._columns)
            if len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]
