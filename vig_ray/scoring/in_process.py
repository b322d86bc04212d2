"""The steps of scoring one after the other in this very process: a few samples, as a notebook has them.

Starting a Ray and an engine in a process of its own takes longer than scoring them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.errors import StageError
from vig_ray.pipeline import Step, commit_block, count_samples, delete_uncommitted
from vig_ray.progress import RowProgress
from vig_ray.scoring.engines import EngineDiedError
from vig_ray.stage import Claim
from vig_ray.storage import filesystem, join
from vig_ray.tables.directories import dataset
from vig_ray.whole_files import whole_files

FEW = 64
"""Samples below which a Ray isn't worth its start."""


def run_steps_here(
    samples: str | Sequence[str], output: Claim, table: pa.Schema, steps: Sequence[Step], *, rows_per_file: int
) -> dict[str, Any]:
    """As `pipeline.run_steps`, with one actor of each step, called here; holds `rows_per_file` samples at a time.

    Rows that an earlier run has written aren't run again, nor does a later one by Ray run those of this. Raises
    StageError where the engine dies.
    """
    files = BlockFiles(output, table)
    done = files.done
    actors = [step.actor(**step.arguments) for step in steps]
    samples = [samples] if isinstance(samples, str) else samples
    total, count = sum(map(count_samples, samples)), len(done)
    blocks = (block for directory in samples for block in blocks_to_do(directory, done, rows_per_file))
    with RowProgress(output.stage, total, done=count, brief=True) as bar:
        for block in blocks:
            count += block.num_rows
            for actor, step in zip(actors, steps, strict=True):
                block = _called(actor, block, step.batch_rows)
            files.write(block)
            bar.update(count)
    return {}


class BlockFiles:
    """The files of a run that one process writes, a block each, as Ray Data names and records them.

    `done`: the keys of the rows that an earlier process has written. What it wrote and didn't record is deleted.
    """

    def __init__(self, output: Claim, table: pa.Schema) -> None:
        delete_uncommitted(output)
        self.done = _keys(output)
        self._output, self._table, self._written = output, table, len(output.paths)
        self._fs, self._path = whole_files(output.directory, join(output.work, "unfinished"))
        self._fs.create_dir(self._path, recursive=True)

    def write(self, block: pa.Table) -> None:
        """Write rows, which are done then."""
        assert block.schema.names == self._table.names
        path = f"{self._path}/{self._output.run}-{self._written:06d}-0.parquet"
        pq.write_table(block, path, filesystem=self._fs, compression="zstd")
        commit_block(self._output, path, block["sample_key"])
        self._written += 1


def _called(actor: object, block: pa.Table, rows: int) -> pa.Table:
    """What an actor makes of a block, `rows` at a time."""
    assert callable(actor)
    try:
        return pa.concat_tables([actor(block.slice(start, rows)) for start in range(0, block.num_rows, rows)])
    except EngineDiedError as error:
        raise StageError(f"the engine died: {error}") from error


def _keys(output: Claim) -> pa.Array:
    """The keys of the rows that are written."""
    fs, _ = filesystem(output.directory)
    tables = [pq.read_table(path, filesystem=fs, columns=["sample_key"]) for path in output.paths]
    return pa.concat_tables(tables)["sample_key"].combine_chunks() if tables else pa.array([], pa.string())


def blocks_to_do(samples: str, done: pa.Array, rows: int) -> Iterator[pa.Table]:
    """The samples in order, so many at a time, without those that are done."""
    batches = dataset(samples).to_batches(batch_size=rows, batch_readahead=1, fragment_readahead=1)
    for batch in batches:
        block = pa.Table.from_batches([batch])
        if len(done):
            block = block.filter(pc.invert(pc.is_in(block["sample_key"], value_set=done)))
        if block.num_rows:
            yield block
