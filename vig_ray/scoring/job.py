"""The scoring job on Ray Data: read samples, prepare them on CPUs, score them on engines, write `scores/`.

`run(config)` is what `vig score`, `jobs/score.py` and Python call. A run that was killed goes on where it was when the
same command is given again: Ray Data's checkpointing records which keys each written block held, and skips them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from vig_ray.dataset import importing
from vig_ray.dataset.schema import SAMPLES
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint, is_local, local_folder, read_config
from vig_ray.model.load import load_formatter, template_fingerprint
from vig_ray.progress import RowProgress
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.reference import REFERENCES
from vig_ray.scoring.schema import SCORES
from vig_ray.scoring.score import Scorer
from vig_ray.scoring.summary import ScoreSummary, summarise
from vig_ray.stage import clear_directory, read_stage, write_stage
from vig_ray.storage import check_writable, exists, filesystem, join, one_line

log = logging.getLogger(__name__)

_ROWS_PREPARED_AT_ONCE = 64
_WAIT_FOR_MACHINES_S = 24 * 3600
_SPARE_CPUS = 6
_EVENTS_KEPT = 1024


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there.

    `model`, `template`: fingerprints. `samples`: the samples directory, None where the data is still to be imported.
    """

    config: ScoreConfig
    model: str
    template: str
    samples: str | None
    scores: str


def check(config: ScoreConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    samples = importing.samples_directory(config.data)
    if samples is None:
        importing.validate(import_config(config))
    for option in ("images", "name"):
        if samples is not None and getattr(config, option) is not None:
            raise StageError(f"--{option} has no effect on {samples}, which is imported already; leave it out")
    check_writable(config.out)
    formatter = load_formatter(config.model, config.template, config.max_length)
    template = template_fingerprint(formatter)
    return Plan(config, fingerprint(config.model), template, samples, join(config.out, "scores"))


def import_config(config: ScoreConfig) -> importing.ImportConfig:
    """The import that `vig score --data FILE` does by itself."""
    return importing.ImportConfig(
        data=config.data,
        images=config.images,
        out=config.out,
        name=config.name,
        format=config.format,
        overwrite=config.overwrite,
    )


def run(config: ScoreConfig) -> ScoreSummary:
    """Score a dataset; returns the summary of what `OUT/scores/` holds.

    Raises StageError, before any engine starts, where the config, the data, the model or what is in `OUT` is wrong.
    """
    plan = check(config)
    samples = plan.samples
    if samples is None:
        with RowProgress("import", None) as bar:
            samples = importing.run(import_config(config), progress=bar.update).directory
    began = time.time()
    machines = _connect(config)
    identity = _identity(plan, samples, machines.dtype)
    total = _count_rows(samples)
    if _is_complete(plan, identity):
        log.warning("%s: already complete, nothing to score", plan.scores)
        return summarise(plan.scores)
    write_stage(plan.scores, "score", config, identity=identity, complete=False)
    done = _checkpointed_rows(plan)
    if done:
        log.warning("going on: %s of %s rows were scored by an earlier run", f"{done:,}", f"{total:,}")
    counter: Any = _Counter.remote()  # type: ignore[attr-defined]
    with RowProgress("score", total, done=done) as bar:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(counter, bar, done, stop), daemon=True)
        watcher.start()
        try:
            _execute(plan, samples, machines, counter)
        except ray.exceptions.RayError as error:
            raise StageError(_cause(error)) from error
        finally:
            stop.set()
            watcher.join(timeout=5)
        bar.update(total)
    written = _count_rows(plan.scores)
    if written != total:
        raise StageError(
            f"{plan.scores}: {written:,} rows written for {total:,} samples. On several machines every path must be on "
            "storage that all of them share; otherwise run again with --overwrite, and please report it"
        )
    summary = summarise(plan.scores)
    try:
        rates: dict[str, Any] = ray.get(counter.rates.remote(), timeout=60)
    except ray.exceptions.RayError:  # its machine is gone; the scores don't need it
        rates = {"ready": None, "rows": []}
    timing = {
        "total_s": time.time() - began,
        "until_first_engine_s": rates["ready"] - began if rates["ready"] else None,
    }
    write_stage(
        plan.scores,
        "score",
        config,
        identity=identity,
        complete=True,
        counts=summary.counts(),
        reference=REFERENCES[config.reference].parameters,
        timing=timing | {"rows_over_time": rates["rows"]},
    )
    clear_directory(_checkpoint(plan))
    return summary


@dataclass(frozen=True)
class _Machines:
    """Where the engines run: `cores` is None on a cluster, whose size may change while the job runs."""

    device: str
    dtype: str
    cores: int | None
    gpus: int

    def engines(self, spelled: str | None) -> tuple[int, int | None]:
        """Least and most engine actors; None for as many as the cluster can hold."""
        if spelled is not None:
            return _range(spelled)
        if self.cores is None:
            return 1, None
        return 1, max(1, self.gpus if self.device == "cuda" else self.cores)

    def preparers(self, spelled: str | None) -> tuple[int, int | None]:
        """Least and most actors of the CPU stage."""
        return _range(spelled) if spelled is not None else (1, self.cores)


def _range(spelled: str) -> tuple[int, int]:
    low, _, high = spelled.partition("..")
    return int(low), int(high or low)


def _connect(config: ScoreConfig) -> _Machines:
    """Join the Ray cluster that is named, or start a Ray on this machine; then choose device and dtype."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters of an error is raised
    address = config.address or os.environ.get("RAY_ADDRESS")
    cores = None
    if not ray.is_initialized():
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise StageError(f"--address {address}: no Ray cluster answers: {one_line(error)[:200]}") from error
        else:
            cores = os.cpu_count() or 1
            # Ray's CPUs are only a count. Reading, writing and the checkpoint filter each want one for themselves
            # while every actor holds one; with too few the job would wait for ever.
            actors = sum(
                _range(spelled)[1] if spelled else cores for spelled in (config.workers, config.prepare_workers)
            )
            # Otherwise Ray announces on standard output that more processes than cores have started.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(actors + _SPARE_CPUS))
            # Ray's core warns at every start of a restartable actor pool; what fails for real reaches us as an error.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            with _native_messages_hidden():
                ray.init(num_cpus=actors + _SPARE_CPUS, include_dashboard=False, **quiet)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    device = config.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        if cores is not None:
            raise StageError("--device cuda: there is no GPU that Ray can see on this machine")
        log.warning("waiting for a machine with a GPU to join the cluster")
    elif device == "cpu" and cores is None and config.device == "auto":
        log.warning("no GPU in the cluster now: scoring on CPUs (--device cuda waits for GPUs instead)")
    dtype: str | None = config.dtype
    if dtype is None and device == "cpu":
        dtype = "float32"
    if dtype is None:
        stored = read_config(local_folder(config.model, weights=False)).dtype
        dtype = str(stored or "bfloat16").removeprefix("torch.")
    machines = _Machines(device, dtype, cores, gpus)
    least, most = machines.engines(config.workers)
    count = str(least) if most == least else f"{least} to {most}" if most else f"{least} or more"
    log.warning("torch engine on %s in %s, %s at a time", device, dtype, count)
    return machines


@contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Close standard error to native code for a moment: at its start Ray's core announces its own log level there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _identity(plan: Plan, samples: str, dtype: str) -> dict[str, Any]:
    """What must be equal for scores to belong to the same run."""
    imported = read_stage(samples) or {}
    config = plan.config
    return {
        "samples": {key: imported.get(key) for key in ("inputs", "format", "images", "name", "counts")},
        "model": plan.model,
        "template": plan.template,
        "engine": "torch",
        "reference": config.reference,
        "dtype": dtype,
        "max_length": config.max_length,
        "too_long": config.too_long,
        "max_image_pixels": config.max_image_pixels,
    }


def _is_complete(plan: Plan, identity: dict[str, Any]) -> bool:
    """Whether `OUT/scores` is this run's and finished; raises StageError where it is another run's."""
    if plan.config.overwrite:
        clear_directory(plan.scores)
        clear_directory(_checkpoint(plan))
        return False
    found = read_stage(plan.scores)
    if found is None:
        kind = exists(plan.scores).name
        fs, path = filesystem(plan.scores)
        if kind == "Directory" and fs.get_file_info(_selector(path)):
            raise StageError(f"{plan.scores}: holds files that vig-ray didn't write; choose another --out")
        return False
    theirs = found.get("identity")
    if theirs == json.loads(json.dumps(identity)):
        return bool(found.get("complete"))
    changed = sorted(key for key in identity if (theirs or {}).get(key) != json.loads(json.dumps(identity[key])))
    raise StageError(
        f"{plan.scores}: holds the scores of another run ({', '.join(changed)} differ); "
        "choose another --out, or --overwrite to delete them"
    )


def _selector(path: str) -> Any:
    return pa.fs.FileSelector(path, recursive=False)


def _checkpoint(plan: Plan) -> str:
    return join(plan.config.out, ".score-checkpoint")


def parquet_files(directory: str) -> list[str]:
    """The Parquet files in a stage's directory, sorted, as paths for its filesystem."""
    fs, path = filesystem(directory)
    infos = fs.get_file_info(pa.fs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.path for info in infos if info.is_file and info.path.endswith(".parquet"))


def _count_rows(directory: str) -> int:
    fs, _ = filesystem(directory)
    return sum(pq.read_metadata(path, filesystem=fs).num_rows for path in parquet_files(directory))


def _checkpointed_rows(plan: Plan) -> int:
    fs, _ = filesystem(_checkpoint(plan))
    committed = [path for path in parquet_files(_checkpoint(plan)) if not path.endswith(".pending.parquet")]
    return sum(pq.read_metadata(path, filesystem=fs).num_rows for path in committed)


def _execute(plan: Plan, samples: str, machines: _Machines, counter: Any) -> None:
    """Build the Ray Data plan and run it to its end."""
    config = plan.config
    fs, _ = filesystem(samples)
    out_fs, out_path = filesystem(plan.scores)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = _WAIT_FOR_MACHINES_S
    checkpoint_fs, checkpoint_path = filesystem(_checkpoint(plan))
    checkpoint_fs.create_dir(checkpoint_path, recursive=True)
    context.checkpoint_config = CheckpointConfig(
        id_column="sample_key",
        checkpoint_path=checkpoint_path,
        override_filesystem=checkpoint_fs,
        delete_checkpoint_on_success=False,
    )
    # Workers may have another working directory.
    model = os.path.abspath(os.path.expanduser(config.model)) if is_local(config.model) else config.model
    with ray.data.DataContext.current(context):
        engines = machines.engines(config.workers)
        preparers = machines.preparers(config.prepare_workers)
        on_gpu = machines.device == "cuda"
        data = ray.data.read_parquet(parquet_files(samples), filesystem=fs, schema=SAMPLES)
        # A checkpoint commits whole blocks; without this a small dataset would be one block.
        data = data.repartition(target_num_rows_per_block=config.rows_per_file)
        data = data.map_batches(
            Preparer,
            fn_constructor_kwargs={
                "model": model,
                "template": config.template,
                "max_length": config.max_length,
                "reference": config.reference,
                "too_long": config.too_long,
                "max_image_pixels": config.max_image_pixels,
            },
            batch_size=_ROWS_PREPARED_AT_ONCE,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=preparers[0], max_size=preparers[1]),
            num_cpus=1,
        )
        data = data.map_batches(
            Scorer,
            fn_constructor_kwargs={
                "model": model,
                "template": config.template,
                "max_length": config.max_length,
                "dtype": machines.dtype,
                "device": machines.device,
                "batch_tokens": config.batch_tokens,
                "threads": None if on_gpu else max(1, (machines.cores or 1) // (engines[1] or 1)),
                "progress": counter,
            },
            batch_size=config.window,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=engines[0], max_size=engines[1], max_tasks_in_flight_per_actor=4
            ),
            num_cpus=0.5 if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
        )
        data.write_parquet(out_path, filesystem=out_fs, schema=SCORES, compression="zstd")


@ray.remote(num_cpus=0, max_restarts=-1)
class _Counter:
    """Counts scored rows, for progress and rates only; a batch that is retried counts twice."""

    def __init__(self) -> None:
        self._rows, self._failed, self._ready = 0, 0, 0.0
        self._events: list[tuple[float, int]] = []

    def ready(self) -> None:
        self._ready = self._ready or time.time()

    def add(self, rows: int, failed: int) -> None:
        self._rows += rows
        self._failed += failed
        self._events.append((time.time(), self._rows))
        if len(self._events) > _EVENTS_KEPT:
            self._events = self._events[::2]

    def total(self) -> tuple[int, int]:
        return self._rows, self._failed

    def rates(self) -> dict[str, Any]:
        return {"ready": self._ready, "rows": self._events}


def _watch(counter: Any, bar: RowProgress, done: int, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        try:
            rows, _ = ray.get(counter.total.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue
        bar.update(done + rows)


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom of a Ray error, on one line: exceptions of workers arrive wrapped."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    if isinstance(error, StageError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"scoring failed: {type(error).__name__}: {lines[-1] if lines else ''}"[:500]
