"""Rows of the samples table to Parquet parts of bounded size, holding only a small batch in memory."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.schema import SAMPLES, Sample
from vig_ray.errors import StageError
from vig_ray.storage import one_line
from vig_ray.whole_files import whole_files

_BATCH_ROWS = 1000
_BATCH_BYTES = 2 << 20  # a row group, which is what training reads to get at one sample
# Only these repeat. A dictionary of image bytes would have to be read whole before the first row.
_REPEATING_COLUMNS = ["source", "conversation.list.element.role", "conversation.list.element.text"]


class SampleWriter:
    """Writes `RUN-00000.parquet`, `RUN-00001.parquet`, ... into a directory, for use in a `with` statement.

    `run`: the run id that the names begin with. With a `group`, one of several writers of a directory, they are
    `RUN-GROUP-00000.parquet` and so on. A part is closed at `rows_per_file` rows or `max_bytes_per_file` bytes of text
    and images, whichever comes first; until then it lies in the local folder `unfinished`.
    The directory is made with the first part. Raises StageError where it can't be written to.
    """

    def __init__(
        self,
        directory: str,
        *,
        run: str,
        unfinished: str,
        rows_per_file: int,
        max_bytes_per_file: int,
        group: int | None = None,
    ) -> None:
        self._directory, self._unfinished = directory, unfinished
        self._prefix = f"{run}-" if group is None else f"{run}-{group:05d}-"
        self._rows_per_file = rows_per_file
        self._max_bytes = max_bytes_per_file
        self._batch: list[dict[str, Any]] = []
        self._batch_bytes = 0
        self._parts = 0
        self._part: pq.ParquetWriter | None = None
        self._part_rows = 0
        self._part_bytes = 0

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last part; after an error in the input too, so that the rows before it can be looked at."""
        self._flush()
        self._close_part()

    @property
    def parts(self) -> int:
        """How many parts have been begun."""
        return self._parts

    def sample(self, key: str, sample: Sample) -> None:
        """Add one sample."""
        size = len(key) + sum(len(turn.text) for turn in sample.conversation)
        size += sum(len(image.bytes or b"") + len(image.uri or "") for image in sample.images)
        row = {
            "sample_key": key,
            "id": sample.id,
            "source": sample.source,
            "images": [image._asdict() for image in sample.images],
            "conversation": [turn._asdict() for turn in sample.conversation],
            "error": None,
        }
        self._add(row, size)

    def failure(self, key: str, identifier: str | None, error: str) -> None:
        """Add the row of a sample that couldn't be imported."""
        empty: dict[str, Any] = {"source": None, "images": [], "conversation": []}
        row = {"sample_key": key, "id": identifier, **empty, "error": error}
        self._add(row, len(key) + len(error))

    def _add(self, row: dict[str, Any], size: int) -> None:
        self._batch.append(row)
        self._batch_bytes += size
        rows = self._part_rows + len(self._batch)
        full = rows >= self._rows_per_file or self._part_bytes + self._batch_bytes >= self._max_bytes
        if full or len(self._batch) >= _BATCH_ROWS or self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        if full:
            self._close_part()

    def _flush(self) -> None:
        if not self._batch:
            return
        table = pa.Table.from_pylist(self._batch, schema=SAMPLES)
        try:
            self._open_part().write_table(table)
        except OSError as error:
            raise StageError(f"{self._directory}: can't be written to: {one_line(error)}") from error
        self._part_rows += len(self._batch)
        self._part_bytes += self._batch_bytes
        self._batch = []
        self._batch_bytes = 0

    def _open_part(self) -> pq.ParquetWriter:
        if self._part is None:
            fs, path = whole_files(self._directory, self._unfinished)
            fs.create_dir(path, recursive=True)
            where = f"{path}/{self._prefix}{self._parts:05d}.parquet"
            self._part = pq.ParquetWriter(
                where, SAMPLES, filesystem=fs, compression="zstd", use_dictionary=_REPEATING_COLUMNS
            )
            self._parts += 1
        return self._part

    def _close_part(self) -> None:
        if self._part is None:
            return
        try:
            self._part.close()
        except OSError as error:
            raise StageError(f"{self._directory}: can't be written to: {one_line(error)}") from error
        finally:
            self._part = None
            self._part_rows = 0
            self._part_bytes = 0
