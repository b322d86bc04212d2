"""Scans of Parquet files larger than memory, batch by batch, on threads of this machine or on Ray Data."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.schema import KEPT
from vig_ray.tables.beside import Beside, Joined
from vig_ray.tables.passes import View

BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class Files:
    """Parquet files on one filesystem. `view`: the one under which those of scores/ are read.

    `on_ray`: scans run as Ray Data tasks, on as many machines as there are. `beside`: another table whose columns may
    be asked for like their own.
    """

    paths: Sequence[str]
    filesystem: Any
    on_ray: bool = False
    view: View | None = None
    beside: Beside | None = None

    def scan(
        self,
        columns: Sequence[str],
        function: Callable[[pa.Table], Any],
        *,
        batch_rows: int = BATCH_ROWS,
        fold: Callable[[Any, Any], Any] | None = None,
    ) -> Iterator[Any]:
        """The results of `function` for every batch of these columns, in any order. For Ray it must be picklable.

        `fold` makes one result of two, where those of one file would be too many to keep.
        """
        if self.beside is not None and {*self.beside.schema.names} & {*columns}:
            function = Joined(self.beside, list(columns), function)
            columns = sorted({*columns, "sample_key"} - {*self.beside.schema.names})
        stored = list(columns)
        if self.view is not None:
            stored, function = self.view.stored(columns), _Viewed(self.view, list(columns), function)
        if self.on_ray:
            return self._on_ray(stored, function, batch_rows)
        return self._here(stored, function, batch_rows, fold)

    def _here(
        self, columns: list[str], function: Callable[[pa.Table], Any], rows: int, fold: Callable[[Any, Any], Any] | None
    ) -> Iterator[Any]:
        def scan_file(path: str) -> list[Any]:
            # Without pre_buffer, which would keep all that was read of the file.
            with pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as file:
                batches = file.iter_batches(batch_size=rows, columns=columns)
                tables = (pa.Table.from_batches([batch]) for batch in batches if batch.num_rows)
                results = (function(_with_kept(table, columns)) for table in tables)
                if fold is None:
                    return list(results)
                return [functools.reduce(fold, results, first) for first in itertools.islice(results, 1)]

        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            running: deque[Future[list[Any]]] = deque()
            for path in self.paths:
                running.append(pool.submit(scan_file, path))
                if len(running) > 2 * workers:  # so that few results wait in memory
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def _on_ray(self, columns: list[str], function: Callable[[pa.Table], Any], rows: int) -> Iterator[Any]:
        import ray.data

        from vig_ray.cluster import footer_readers

        with footer_readers(len(self.paths)):
            schema = None
            if KEPT.name in columns:
                schema = pq.read_schema(self.paths[0], filesystem=self.filesystem)
                schema = schema if KEPT.name in schema.names else schema.append(KEPT)
            data = ray.data.read_parquet(list(self.paths), filesystem=self.filesystem, schema=schema)
            data = data.select_columns(columns)
            data = data.map_batches(_Packed(function), batch_size=rows, batch_format="pyarrow", zero_copy_batch=True)
            for row in data.iter_rows():
                yield pickle.loads(row["result"])


def _with_kept(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The table with null where `kept` is asked for and a file lacks it: a version wrote it that kept nothing."""
    if KEPT.name not in columns or KEPT.name in table.column_names:
        return table
    return table.append_column(KEPT, pa.nulls(table.num_rows, KEPT.type))


@dataclass(frozen=True)
class _Viewed:
    """A function of these columns, given the stored ones."""

    view: View
    columns: Sequence[str]
    function: Callable[[pa.Table], Any]

    def __call__(self, table: pa.Table) -> Any:
        return self.function(self.view.table(table, self.columns))


class _Packed:
    """A function whose result Ray Data can carry: pickled, in a table of one row."""

    def __init__(self, function: Callable[[pa.Table], Any]) -> None:
        self._function = function

    def __call__(self, table: pa.Table) -> pa.Table:
        if not table.num_rows:
            return pa.table({"result": pa.array([], pa.large_binary())})
        return pa.table({"result": pa.array([pickle.dumps(self._function(table), protocol=5)], pa.large_binary())})
