"""A file of rows that grows row by row: a JSON array, JSON Lines or Parquet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_AT_ONCE = 1024


class RowFile(Protocol):
    """Takes rows until it is closed."""

    def add(self, row: dict[str, Any]) -> None:
        """Write one row behind the others."""


@contextlib.contextmanager
def row_file(path: str, schema: pa.Schema | None, *, parquet: bool) -> Iterator[RowFile]:
    """A new file at `path`, whole when the block ends: Parquet of `schema`, JSON Lines, or, without one, an array."""
    if parquet:
        assert schema is not None, "a JSON array has no Parquet"
        rows = _Parquet(path, schema)
        try:
            yield rows
            rows.flush()
        finally:
            rows.writer.close()
        return
    with open(path, "w", encoding="utf-8") as file:
        if schema is not None:
            yield _Lines(file)
            return
        file.write("[\n")
        yield _Array(file)
        file.write("\n]\n")


class _Lines:
    def __init__(self, file: Any) -> None:
        self._file = file

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


class _Array:
    def __init__(self, file: Any) -> None:
        self._file, self._between = file, ""

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(self._between + json.dumps(row, ensure_ascii=False))
        self._between = ",\n"


class _Parquet:
    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.writer = pq.ParquetWriter(path, schema)
        self._schema, self._rows = schema, list[dict[str, Any]]()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time."""
        if self._rows:
            self.writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
