"""An elastic group of workers on Ray Train: what the driver sees of it, and what runs in each worker."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from vig_ray.cluster import Machines, parse_range, with_the_driver
from vig_ray.compat.ray import being_preempted, worker_errors
from vig_ray.compat.ray_train import Trainer
from vig_ray.errors import StageError
from vig_ray.stage import Claim
from vig_ray.storage import filesystem, join
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.finish import export_due, finish, write_bad_batch
from vig_ray.training.metrics import JobMetricsLogger
from vig_ray.training.options import TrainingOptions
from vig_ray.training.progress_actor import ByActor, ProgressActor, shown
from vig_ray.training.run import BadBatchError, Setup
from vig_ray.training.worker import train


def train_on_ray(setup: Setup, output: Claim, ray_has: Machines, *, on_gpu: bool) -> str:
    """Run the group of workers to its end; returns what the last one was, in words.

    Raises StageError where training can't go on.
    """
    config = setup.config
    least, most = parse_range(config.workers) if config.workers else (1, ray_has.gpus or 1 if on_gpu else 1)
    progress_actor: Any = ProgressActor.options(scheduling_strategy=with_the_driver()).remote()  # type: ignore[attr-defined]
    loop = {
        "setup": ray.put(setup),
        "progress_actor": progress_actor,
        "output": output,
        "threads": None if on_gpu or ray_has.cores is None else max(1, ray_has.cores // most),
    }
    # Ray Train wants a place for records of its own. Nothing is resumed from them: checkpoints are ours.
    records = tempfile.mkdtemp(prefix="vig-train-") if ray_has.cores is not None else None
    storage: dict[str, Any] = {"storage_path": records}
    if records is None:
        fs, path = filesystem(join(output.work, "ray"))
        storage = {"storage_path": path, "storage_filesystem": fs}
    trainer = Trainer(
        _work,
        train_loop_config=loop,
        torch_config=TorchConfig(backend=_backend(config, on_gpu)),
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=on_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1},
            elastic_resize_monitor_interval_s=config.resize_every,
        ),
        run_config=RunConfig(name="run", failure_config=FailureConfig(max_failures=config.max_failures), **storage),
    )
    try:
        with shown(progress_actor, setup.sampler.steps):
            _fit(trainer, progress_actor)
        return str(ray.get(progress_actor.seen.remote())["workers"])
    finally:
        if records is not None:
            shutil.rmtree(records, ignore_errors=True)


def _backend(config: TrainingOptions, on_gpu: bool) -> str:
    """What workers exchange tensors by; of shares that lie in the machines' memory too."""
    if not on_gpu:
        return "gloo"
    return "cpu:gloo,cuda:nccl" if config.offload_optimizer else "nccl"


def _fit(trainer: Trainer, progress_actor: Any) -> None:
    """`trainer.fit()`; raises StageError with the cause where it fails."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # Not in the main thread, where Ray Train would take Ctrl-C for itself.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
    why = ray.get(progress_actor.given_up.remote())
    if why is not None:
        raise StageError(why[0])
    if failure:
        raise StageError(f"training failed: {_cause(failure[0])}") from failure[0]


def _cause(error: BaseException) -> str:
    """What went wrong in a worker, on one line: Ray Train wraps what workers raise."""
    first = next(iter(worker_errors(error)), error)
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return f"{type(first).__name__}: {lines[-1] if lines else ''}"[:500]


def _work(loop: Mapping[str, Any]) -> None:
    """What runs in each worker of Ray Train's group, from its start to the end or the next resize."""
    progress_actor = loop["progress_actor"]
    if ray.get(progress_actor.given_up.remote()) is not None:
        return
    setup: Setup = ray.get(loop["setup"])
    config, output = setup.config, loop["output"]
    if loop["threads"]:
        torch.set_num_threads(loop["threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    distributed = DistributedContext(context.get_world_rank(), context.get_world_size(), device)
    directory = output.directory
    try:
        manager = CheckpointManager(
            join(directory, "checkpoints"), keep=config.keep, distributed=distributed, run=output.run
        )
        metrics = JobMetricsLogger(
            ByActor(progress_actor), out=directory, name=config.name or directory.split("/")[-2], identity=output.run
        )
        run = train(
            setup,
            distributed,
            manager,
            metrics,
            leaving=being_preempted,
            after_step=partial(export_due, output=output),
        )
        finish(run, output)
    except BadBatchError as error:
        if distributed.rank == 0:
            ray.get(progress_actor.give_up.remote(write_bad_batch(error, output), error.keys))
    except StageError as error:
        ray.get(progress_actor.give_up.remote(str(error), []))
        raise
