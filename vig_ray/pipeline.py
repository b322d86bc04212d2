"""The Ray Data skeleton of stages that run a model over samples: pools of actors, resume, progress, lost machines.

    samples/  ->  step  ->  step  ->  OUT/<stage>/
                 (CPUs)   (engines)

A stage says what its steps are and what its table holds; `run_steps` does the rest. A run that was killed goes on
where it was: Ray Data's checkpoint records the keys of every block that was written, and they are not read again.
What goes from one step to the next may be rows of anything; the last one gives a row a sample, so that every sample
comes out once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig
from ray.data.exceptions import ExecutionTimeoutError

from vig_ray.cluster import failure, footer_readers, with_the_driver
from vig_ray.compat.ray import committed_block, file_names, written_block
from vig_ray.dataset.schema import SAMPLES
from vig_ray.errors import StageError
from vig_ray.row_counter import RowCounter, shown
from vig_ray.stage import Claim, parquet_files, read_stage
from vig_ray.storage import filesystem, join
from vig_ray.whole_files import whole_files

log = logging.getLogger(__name__)

_FOOTERS_AT_ONCE = 16
_WAIT_FOR_MACHINES_S = 24 * 3600


@dataclass(frozen=True)
class Step:
    """A pool of actors that turn blocks into blocks.

    `actor`: a class that is called with `arguments` once an actor, and then with one table a call. `batch_rows`: rows
    a call, at most. `actors`: least and most of them, most None: as many as the machines have room for. `cpus`,
    `gpus`: what Ray reserves for one actor. `calls_ahead`: calls that wait at an actor, None for Ray's own choice.
    """

    actor: type
    arguments: Mapping[str, Any]
    batch_rows: int
    actors: tuple[int, int | None]
    cpus: float = 1
    gpus: int = 0
    calls_ahead: int | None = None

    def over(self, blocks: ray.data.Dataset) -> ray.data.Dataset:
        """The dataset that this step makes of another."""
        least, most = self.actors
        return blocks.map_batches(
            self.actor,
            fn_constructor_kwargs=dict(self.arguments),
            batch_size=self.batch_rows,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=self.calls_ahead
            ),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )


def run_steps(
    samples: str | Sequence[str],
    output: Claim,
    table: pa.Schema,
    steps: Callable[[Any], Sequence[Step]],
    *,
    rows_per_block: int,
) -> dict[str, Any]:
    """Run every row of `samples` that isn't done yet through the steps, and write `output`'s Parquet files.

    `samples`: a directory, or several on one filesystem, whose keys differ. `steps`: makes the steps, given the
    `RowCounter` that they report to. `rows_per_block`: rows of a Parquet file, and what a killed run has to do again.
    Returns when the first engine was ready and how many rows were done when. Raises StageError where a step raises and
    where no machine comes.
    """
    samples = [samples] if isinstance(samples, str) else samples
    total, done = sum(map(count_samples, samples)), _committed_rows(output)
    if done:
        log.info("going on: %s of %s rows were done by an earlier run", f"{done:,}", f"{total:,}")
    counter: Any = RowCounter.options(scheduling_strategy=with_the_driver()).remote(output.stage)  # type: ignore[attr-defined]
    with shown(counter, output.stage, total, done):
        try:
            _execute(samples, output, table, steps(counter), rows_per_block)
        except ExecutionTimeoutError as error:
            _release_actors(error)
            raise StageError(
                f"no row was done for {_WAIT_FOR_MACHINES_S // 3600} hours: no machine came, or none that has what "
                "--workers ask for; the same command goes on from here"
            ) from error
        except ray.exceptions.RayError as error:
            _release_actors(error)
            raise failure(error, f"vig {output.stage}") from error
    delete_uncommitted(output)
    try:
        timing: dict[str, Any] = ray.get(counter.timing.remote(), timeout=60)
    except ray.exceptions.RayError:  # its machine is gone; what was written doesn't need it
        timing = {}
    return timing


def _execute(
    samples: Sequence[str], output: Claim, table: pa.Schema, steps: Sequence[Step], rows_per_block: int
) -> None:
    """Build the Ray Data plan and run it to its end."""
    checkpoint_fs, checkpoint_path = filesystem(_checkpoint(output))
    checkpoint_fs.create_dir(checkpoint_path, recursive=True)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = _WAIT_FOR_MACHINES_S
    context.checkpoint_config = CheckpointConfig(
        id_column="sample_key",
        checkpoint_path=checkpoint_path,
        override_filesystem=checkpoint_fs,
        delete_checkpoint_on_success=False,
    )
    files = [path for directory in samples for path in parquet_files(directory)]
    with ray.data.DataContext.current(context), footer_readers(len(files)):
        blocks = ray.data.read_parquet(files, filesystem=filesystem(samples[0])[0], schema=SAMPLES)
        # A checkpoint commits whole blocks: without this a small dataset would be one block, and a batch of more rows
        # than a block has would join blocks.
        blocks = blocks.repartition(target_num_rows_per_block=rows_per_block)
        for step in steps:
            blocks = step.over(blocks)
        to_fs, to_path = whole_files(output.directory, join(output.work, "unfinished"))
        names = file_names(output.run)
        blocks.write_parquet(to_path, filesystem=to_fs, filename_provider=names, schema=table, compression="zstd")


def _release_actors(error: BaseException) -> None:
    """Drop the tracebacks of `error` and of what led to it, so that Ray takes the actors' CPUs and GPUs back.

    They hold Ray Data's executor, and it its actors, as long as the caller keeps the error (a notebook does, in
    sys.last_value). What was raised in a worker keeps its own traceback, which is text.
    """
    dropped, left = set[BaseException](), [error]
    while left:
        one = left.pop()
        one.__traceback__ = None
        dropped.add(one)
        left += [each for each in (one.__cause__, one.__context__) if each is not None and each not in dropped]
    gc.collect()


def count_samples(samples: str) -> int:
    """How many rows the import of `samples` wrote, failed ones included."""
    record = read_stage(samples) or {}
    rows: int = record["counts"]["read"]
    return rows


def _checkpoint(output: Claim) -> str:
    """Where Ray Data keeps the keys of every block that was written, one file a block."""
    return join(output.work, "checkpoint")


def _committed_blocks(output: Claim) -> list[str]:
    return [path for path in parquet_files(_checkpoint(output)) if committed_block(path) is not None]


def _committed_rows(output: Claim) -> int:
    fs, _ = filesystem(_checkpoint(output))

    def rows(path: str) -> int:
        count: int = pq.read_metadata(path, filesystem=fs).num_rows
        return count

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:  # one a block, and a store takes its time over each
        return sum(pool.map(rows, _committed_blocks(output)))


def commit_block(output: Claim, path: str, keys: pa.ChunkedArray) -> None:
    """Record, as Ray Data does, that the file `path` holds the rows of these keys. Called once it is written."""
    fs, folder = filesystem(_checkpoint(output))
    fs.create_dir(folder, recursive=True)
    to_fs, to_path = whole_files(_checkpoint(output), join(output.work, "unfinished"))
    pq.write_table(pa.table({"sample_key": keys}), f"{to_path}/{written_block(path)}.parquet", filesystem=to_fs)


def delete_uncommitted(output: Claim) -> None:
    """Delete the files of blocks that no checkpoint knows, whose rows are done again: a killed run wrote them, by a
    worker that still worked after its end, or just before it would have recorded them."""
    committed = {committed_block(path) for path in _committed_blocks(output)}
    fs, _ = filesystem(output.directory)
    for path in output.paths:
        if written_block(path) not in committed:
            fs.delete_file(path)
