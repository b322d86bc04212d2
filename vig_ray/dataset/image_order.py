"""Samples of one image together: rows in file order are cut by image into buckets, and these are sorted one by one.

    samples/RUN-....parquet   --cut--->   WORK/order/*.arrow   --gather--->   samples/RUN-image-....parquet

A chunk is as many rows as are held in memory, sorted by their images' hashes and written as one file with a record
batch for each of 256 ranges of hashes, so that one bucket of all chunks can be read without the rest. Buckets that fit
in memory are sorted; a larger one is cut again by the next 8 bits, and one that holds a single image needs no sorting:
sorts are stable, so samples of one image are in file order. Rows without an image come last, in file order.

The order depends on the rows alone, not on how many files or machines there are.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.schema import SAMPLES
from vig_ray.dataset.sharing import Hashes, image_hashes
from vig_ray.dataset.writer import Parts
from vig_ray.errors import StageError
from vig_ray.storage import delete_tree, filesystem, join, one_line
from vig_ray.whole_files import whole_files

_BITS = 8
_BUCKETS = 1 << _BITS
_NO_IMAGE = _BUCKETS  # the bucket of rows without an image
_FILES_AT_ONCE = 8
_BUFFER_BYTES = 1 << 20  # a record batch is dozens of small writes
_ROWS = SAMPLES.append(pa.field("image", pa.uint64()))  # the hash; null without an image

Spread = Callable[[Sequence[Callable[[], Any]]], Iterable[Any]]
"""Calls each of them, on machines of a cluster, and gives what they return as it comes."""


class Chunk(NamedTuple):
    """A file of rows by bucket: for each bucket its bytes in memory, and its least and greatest hash, [257] each."""

    path: str
    sizes: npt.NDArray[np.int64]
    least: Hashes
    greatest: Hashes


class Piece(NamedTuple):
    """A bucket, or several, of one chunk."""

    path: str
    size: int


@dataclass(frozen=True)
class Unit:
    """Buckets `first` to `past`, without it, that are sorted together: their pieces in file order, empty ones left out.

    `size`: bytes in memory. `one_image`: there is nothing to sort.
    """

    first: int
    past: int
    pieces: tuple[Piece, ...]
    size: int
    one_image: bool


@dataclass(frozen=True)
class Gather:
    """How rows are brought together, and where; workers of a cluster get it pickled.

    `directory`: samples/. `work`: a folder for chunks and unfinished files. `run`: what names in `directory` begin
    with. `roots`: as `image_hashes` takes them. `bytes_at_once`: how many bytes of rows are held in memory; several
    times that is used.
    """

    directory: str
    work: str
    run: str
    roots: tuple[str, ...]
    rows_per_file: int
    max_bytes_per_file: int
    bytes_at_once: int

    def __call__(self, groups: Sequence[Sequence[str]], spread: Spread | None) -> tuple[int, int]:
        """Replace these files, groups of paths in `directory`, by such with the same rows in order; rows and files.

        With `spread`, groups are cut, and buckets sorted, side by side. Between the two the rows are only in `work`.
        """
        call = spread or (lambda work: (each() for each in work))
        cut = [partial(self.cut, number, files) for number, files in enumerate(groups)]
        chunks = sorted((chunk for part in call(cut) for chunk in part), key=lambda chunk: chunk.path)
        fs, _ = filesystem(self.directory)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(fs.delete_file, [path for files in groups for path in files]))
        units = _units(chunks, self.bytes_at_once)
        together = [[unit] for unit in units] if spread else [units]
        written = list(call([partial(self.gather, number, each) for number, each in enumerate(together)]))
        return sum(rows for rows, _ in written), sum(parts for _, parts in written)

    def cut(self, group: int, files: Sequence[str]) -> list[Chunk]:
        """Write the rows of some files of samples/ as chunks; done again, it writes the same ones."""
        return list(self._chunks(self._rows(files), join(self.work, "order"), f"{group:06d}-", 0))

    def gather(self, group: int, units: Iterable[Unit]) -> tuple[int, int]:
        """Write the rows of some units to `directory`; how many rows and files. Done again, it writes the same ones."""
        rows = 0
        with Parts(
            self.directory,
            prefix=f"{self.run}-image-{group:05d}-",
            unfinished=self.work,
            rows_per_file=self.rows_per_file,
            max_bytes_per_file=self.max_bytes_per_file,
        ) as parts:
            for unit in units:
                for table, hashes in self._sorted(unit, 0):
                    rows += table.num_rows
                    parts.extend(table.select(SAMPLES.names), hashes)
        return rows, parts.begun

    def _rows(self, files: Sequence[str]) -> Iterator[pa.Table]:
        fs, _ = filesystem(self.directory)
        for path in files:
            with pq.ParquetFile(path, filesystem=fs) as file:
                for number in range(file.metadata.num_row_groups):
                    table = file.read_row_group(number)
                    hashes, has_image = image_hashes(table, self.roots)
                    yield table.append_column(_ROWS.field("image"), pa.array(hashes, mask=~has_image)).cast(_ROWS)

    def _chunks(self, tables: Iterable[pa.Table], folder: str, prefix: str, level: int) -> Iterator[Chunk]:
        held: list[pa.Table] = []
        size = number = 0
        for table in tables:
            held.append(table)
            size += table.nbytes
            if size >= self.bytes_at_once:
                yield self._chunk(held, f"{folder}/{prefix}{number:06d}.arrow", level)
                held, size, number = [], 0, number + 1
        if held:
            yield self._chunk(held, f"{folder}/{prefix}{number:06d}.arrow", level)

    def _chunk(self, tables: list[pa.Table], uri: str, level: int) -> Chunk:
        """Write tables as a chunk; hashes agree in the first `level` times 8 bits."""
        table, hashes, has_image = _by_image(tables)
        digits = (hashes >> np.uint64(64 - _BITS * (level + 1))) & np.uint64(_BUCKETS - 1)
        digits[~has_image] = _NO_IMAGE
        starts = np.searchsorted(digits, np.arange(_BUCKETS + 2, dtype=np.uint64))
        fs, path = whole_files(uri, self.work)
        sizes = np.zeros(_BUCKETS + 1, dtype=np.int64)
        try:
            fs.create_dir(path.rpartition("/")[0], recursive=True)
            with (
                fs.open_output_stream(path, compression=None, buffer_size=_BUFFER_BYTES) as stream,
                pa.ipc.new_file(stream, _ROWS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
            ):
                for bucket in range(_BUCKETS + 1):
                    rows = table.slice(starts[bucket], starts[bucket + 1] - starts[bucket]).combine_chunks()
                    sizes[bucket] = rows.nbytes if rows.num_rows else 0
                    batches = rows.to_batches() or [pa.RecordBatch.from_pylist([], schema=_ROWS)]
                    writer.write_batch(batches[0])
        except OSError as error:
            raise StageError(f"{uri}: can't be written: {one_line(error)}") from error
        last = len(hashes) - 1
        least, greatest = hashes[np.minimum(starts[:-1], last)], hashes[np.clip(starts[1:] - 1, 0, last)]
        return Chunk(path, sizes, least, greatest)

    def _sorted(self, unit: Unit, level: int) -> Iterator[tuple[pa.Table, Hashes | None]]:
        """The rows of a unit in order, as tables that fit in memory, and their hashes where these tell images apart.

        `level`: at which the unit's chunks were cut.
        """
        tables = self._pieces(unit)
        if unit.one_image:
            yield from ((table, None) for table in tables)
        elif unit.size <= self.bytes_at_once:
            yield _by_image(list(tables))[:2]
        else:
            folder = join(self.work, "order", secrets.token_hex(8))  # another try of the same may still be at work
            for deeper in _units(list(self._chunks(tables, folder, "", level + 1)), self.bytes_at_once):
                yield from self._sorted(deeper, level + 1)
            delete_tree(folder)

    def _pieces(self, unit: Unit) -> Iterator[pa.Table]:
        """The pieces of a unit in order, several read ahead where they are small."""
        fs, _ = filesystem(self.work)

        def read(piece: Piece) -> pa.Table:
            with fs.open_input_file(piece.path) as source, pa.ipc.open_file(source) as file:
                return pa.Table.from_batches([file.get_batch(bucket) for bucket in range(unit.first, unit.past)])

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            reading: deque[tuple[Piece, Future[pa.Table]]] = deque()
            for piece in unit.pieces:
                while reading and sum(each.size for each, _ in reading) + piece.size > self.bytes_at_once:
                    yield reading.popleft()[1].result()
                reading.append((piece, pool.submit(read, piece)))
            while reading:
                yield reading.popleft()[1].result()


def _by_image(tables: list[pa.Table]) -> tuple[pa.Table, Hashes, npt.NDArray[np.bool_]]:
    """The rows of all tables sorted by hash, those without an image last; their hashes, and whether they have one.

    `tables` is empty afterwards, so that its rows aren't held twice.
    """
    table = pa.concat_tables(tables).combine_chunks()
    tables.clear()
    has_image = table["image"].is_valid().to_numpy()
    hashes: Hashes = table["image"].fill_null(0).to_numpy()
    order = np.lexsort((hashes, ~has_image))  # stable
    return table.take(pa.array(order)), hashes[order], has_image[order]


def _units(chunks: Sequence[Chunk], most: int) -> list[Unit]:
    """All buckets of these chunks in order: as many together as are `most` bytes, larger ones alone."""
    if not chunks:
        return []
    total = np.sum([chunk.sizes for chunk in chunks], axis=0)
    units, first = [], 0
    for past in range(1, _BUCKETS + 1):
        if past == _BUCKETS or total[first : past + 1].sum() > most:
            units.append(_unit(chunks, first, past))
            first = past
    # They may be a great part of all, and needn't be written one after the other.
    group = np.cumsum([chunk.sizes[_NO_IMAGE] for chunk in chunks]) // (_BUCKETS * most)
    for number in np.unique(group):
        without = [chunks[index] for index in np.flatnonzero(group == number)]
        units.append(_unit(without, _NO_IMAGE, _NO_IMAGE + 1))
    return [unit for unit in units if unit.size]


def _unit(chunks: Sequence[Chunk], first: int, past: int) -> Unit:
    there = [chunk for chunk in chunks if chunk.sizes[first:past].any()]
    pieces = tuple(Piece(chunk.path, int(chunk.sizes[first:past].sum())) for chunk in there)
    alone = past == first + 1 and bool(there)
    one_hash = alone and min(chunk.least[first] for chunk in there) == max(chunk.greatest[first] for chunk in there)
    return Unit(first, past, pieces, sum(piece.size for piece in pieces), bool(one_hash) or first == _NO_IMAGE)
