"""A file of a dataset, and its rows by the reader of its kind: all of them, or some that are read by themselves."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.arrow_reader import count_arrow, read_arrow
from vig_ray.dataset.json_reader import line_ranges, read_array, read_lines
from vig_ray.dataset.keep import NOTHING, Keep
from vig_ray.dataset.kinds import Kind
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.opening import open_parts, open_stream
from vig_ray.dataset.parquet_reader import parquet_columns, read_parquet
from vig_ray.dataset.rows import Row
from vig_ray.dataset.webdataset_reader import read_shard
from vig_ray.errors import StageError
from vig_ray.storage import one_line, scheme_of

Wanted = Callable[[int], bool]
"""Whether the row of this number is wanted; asked once about every row, in order."""


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, with its size and time when the files were listed.

    `key`: what the sample keys of its rows begin with: the dataset's name and, unless the dataset is one file, the
    file's path in it without its suffix. `dataset`: which value of `--data` it belongs to, from 0.
    """

    uri: str  # absolute where it is local
    kind: Kind
    size: int | None  # bytes
    mtime_ns: int | None  # nanoseconds since 1970
    key: str = ""
    dataset: int = 0

    def sample_key(self, row: int) -> str:
        """The sample key of a row."""
        return f"{self.key}/{row:010d}"


class Slice(NamedTuple):
    """Rows of a file that are read by themselves: all, row groups of a Parquet file, or bytes of JSON Lines.

    `number`: of its first row. `start` to `stop`, without it: row groups or bytes; `stop` None: all there is. `size`:
    in bytes, as far as it is known.
    """

    file: DataFile
    number: int = 0
    start: int = 0
    stop: int | None = None
    size: int | None = None


def read_rows(
    file: DataFile | Slice, layout: Layout | None = None, keep: Keep = NOTHING, wanted: Wanted | None = None
) -> Iterator[Row]:
    """The rows of a file or of a part of it, streamed; bad ones are RowErrors.

    `layout`: that of --columns; without it, a row's or a file's own columns tell it. `keep`: what else is read
    of them. `wanted`: rows that are given, or all. Raises StageError where the rest can't be read.
    """
    part = file if isinstance(file, Slice) else Slice(file)
    uri, rows = part.file.uri, 0
    try:
        for row in _reader(part, layout, keep, wanted):
            yield row
            rows += 1
    except FileNotFoundError as error:
        raise StageError(
            f"{uri}: not on the machine that reads it; on a cluster every path must be on storage that all of its "
            "machines share"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, pa.ArrowException) as error:
        raise StageError(
            f"{uri}: can't be read on after {rows} rows ({type(error).__name__}: {one_line(error)}); "
            f"the file is damaged or cut off: fetch it again"
        ) from error


def columns_of(file: DataFile) -> dict[str, Any]:
    """The columns of a Parquet file by their names, an object's with those inside. Raises StageError."""
    try:
        return parquet_columns(file.uri)
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{file.uri}: can't be read: {one_line(error)}") from error


def count_rows(file: DataFile) -> int:
    """How many rows a file has, by its metadata where it has any, else by reading it. Raises StageError."""
    try:
        if file.kind == "parquet":
            source, _ = open_parts(file.uri, file.size)
            with source:
                rows: int = pq.read_metadata(source).num_rows
            return rows
        if file.kind == "arrow":
            return count_arrow(file.uri)
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{file.uri}: can't be read ({type(error).__name__}: {one_line(error)})") from error
    return sum(1 for _ in read_rows(file))


def slices(files: Sequence[DataFile], size: int, least: int) -> list[Slice]:
    """The files in order; if these are fewer than `least`, large ones cut into parts of about `size` bytes.

    A Parquet file is cut between row groups, local JSON Lines between lines, for which it is read through once; other
    files stay whole. Raises StageError where one can't be read.
    """
    if len(files) >= least:
        return [Slice(file, size=file.size) for file in files]
    return [part for file in files for part in _cut(file, size)]


def _cut(file: DataFile, size: int) -> list[Slice]:
    if file.size is None or file.size <= size:
        return [Slice(file, size=file.size)]
    try:
        if file.kind == "parquet":
            return list(_row_groups(file, size))
        if file.kind == "jsonl" and scheme_of(file.uri) in ("", "file") and not file.uri.lower().endswith(".gz"):
            with open_stream(file.uri, unpack=False) as stream:
                ranges = list(line_ranges(stream, size))
            return [Slice(file, line, start, stop, stop - start) for line, start, stop in ranges]
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{file.uri}: can't be read ({type(error).__name__}: {one_line(error)})") from error
    return [Slice(file, size=file.size)]


def _row_groups(file: DataFile, size: int) -> Iterator[Slice]:
    source, _ = open_parts(file.uri, file.size)
    with source:
        metadata = pq.read_metadata(source)
    first = number = start = together = 0
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        together += sum(described.column(column).total_compressed_size for column in range(described.num_columns))
        number += described.num_rows
        if together >= size or group + 1 == metadata.num_row_groups:
            yield Slice(file, first, start, group + 1, together)
            first, start, together = number, group + 1, 0


def _reader(part: Slice, layout: Layout | None, keep: Keep, wanted: Wanted | None) -> Iterator[Row]:
    file = part.file
    if file.kind == "parquet":
        groups = None if part.stop is None else range(part.start, part.stop)
        yield from read_parquet(
            file.uri, layout, size=file.size, groups=groups, number=part.number, keep=keep, wanted=wanted
        )
        return
    rows = read_arrow(file.uri, layout, keep=keep, wanted=wanted) if file.kind == "arrow" else _streamed(part, layout)
    if wanted is None or file.kind == "arrow":
        yield from rows
    else:
        yield from (row for row in rows if wanted(row.number))


def _streamed(part: Slice, layout: Layout | None) -> Iterator[Row]:
    if part.stop is not None:
        source, _ = open_parts(part.file.uri, part.file.size)
        with source:
            source.seek(part.start)
            lines = cast(BinaryIO, _Until(source, part.stop - part.start))
            yield from read_lines(lines, part.number, layout)
        return
    with open_stream(part.file.uri, unpack=part.file.kind != "webdataset") as stream:
        if part.file.kind == "json":
            yield from read_array(stream, part.file.uri, layout)
        elif part.file.kind == "webdataset":
            yield from read_shard(stream, layout)
        else:
            yield from read_lines(stream, layout=layout)


class _Until(io.RawIOBase):
    """The next so many bytes of a file."""

    def __init__(self, file: pa.NativeFile, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
