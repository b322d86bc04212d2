"""The training job on Ray Train: check, find every position's rows, and let an elastic group of workers train.

    OUT/training/   checkpoints/, log.jsonl (one line a step), tensorboard/; its record beside it, training.stage.json
    OUT/model/      the trained model, a transformers checkpoint; with LoRA the adapter alone in OUT/adapter/

`run(config)` is what `vig train`, `jobs/train.py` and Python call. A run that was killed goes on from its last
checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vig_ray.cluster import Machines, machines, parse_range, with_the_driver
from vig_ray.compat.ray import being_preempted, worker_errors
from vig_ray.compat.ray_train import Trainer
from vig_ray.errors import StageError
from vig_ray.stage import Claim, claim
from vig_ray.storage import filesystem, join, read_bytes, write_bytes
from vig_ray.tables.rows import Places
from vig_ray.tables.trained_on import write_trained_keys
from vig_ray.training.carry import Aligner, aligner_of
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.dry_run import DryRun, memory_by_workers
from vig_ray.training.export import ADAPTER, MODEL, untrained_state, write_results
from vig_ray.training.index import Index, of_samples, of_selection
from vig_ray.training.loader import SampleSource
from vig_ray.training.metrics import JobMetricsLogger
from vig_ray.training.options import TrainingOptions
from vig_ray.training.plan import Plan, check
from vig_ray.training.progress_actor import ProgressActor, shown
from vig_ray.training.run import BadBatchError, Run, Setup
from vig_ray.training.training_model import Lora
from vig_ray.training.vdep_options import sampler_of
from vig_ray.training.worker import train

log = logging.getLogger(__name__)

_LOOKED_AT = 256  # samples, to tell how well tokens fit


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    model: str
    steps: int
    loss: float
    held_out: tuple[float, float] | None
    samples: int
    unusable: dict[str, str]
    held_out_unusable: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """For a person."""
        text = f"{self.steps:,} steps, {self.samples:,} samples, last loss {self.loss:.4f}"
        if self.held_out:
            text += f"; held out: {self.held_out[0]:.4f} on active tokens, {self.held_out[1]:.4f} on all answer tokens"
        if self.unusable:
            key, cause = next(iter(self.unusable.items()))
            text += f"\n{len(self.unusable):,} samples could not be trained on, such as {key}: {cause}"
        if self.held_out_unusable:
            key, cause = next(iter(self.held_out_unusable.items()))
            text += f"\n{len(self.held_out_unusable):,} held-out samples could not be measured, such as {key}: {cause}"
        return f"{text}\nmodel: {self.model}"


def run(config: TrainConfig) -> Trained | DryRun:
    """Train; returns what came of it, or with `dry_run` what would be trained.

    Raises StageError, before any worker starts, where the config, the samples, the selection, the model or what is in
    `OUT` is wrong; and where training can't go on, with what to do.
    """
    return carry_out(check(config))


def carry_out(plan: Plan) -> Trained | DryRun:
    """Train as a plan says; see `run`."""
    config = plan.config
    if config.dry_run:
        aligner_of(plan.then, plan.record, plan.selection)
        index = _index(plan)
        steps = sampler_of(config, len(index) - config.held_out).steps
        return DryRun(
            plan.described,
            len(index),
            index.left_out,
            config.held_out,
            steps,
            config.global_batch,
            memory_by_workers(config, plan.prompts),
            index.untaken,
        )
    output = claimed(plan)
    if output.complete:
        log.info("%s: already complete, nothing to train", plan.out)
        result = output.record["result"]
        return Trained(**{**result, "held_out": _pair(result["held_out"])})
    aligner = aligner_of(plan.then, plan.record, plan.selection)
    index = _index(plan)
    if index.left_out:
        log.warning("%s samples have an error and are left out", f"{index.left_out:,}")
    if index.untaken:
        log.info("%s samples are drawn, %s are not", f"{len(index):,}", f"{index.untaken:,}")
    least, most = parse_range(config.workers) if config.workers else (1, 1)
    with machines(config.address, actors=most, least_cpus=least) as ray_has:
        device = ray_has.device(config.device, "training")
        # A dtype that isn't named is the earlier run's.
        earlier = output.record["identity"]["dtype"] if output.state == "go on" else None
        dtype = config.dtype or earlier or ("bfloat16" if device == "cuda" else "float32")
        identity = output.identity | {"dtype": dtype}
        aligned = _alignment(plan, index, aligner)
        output.begin(config, identity=identity, prompts=plan.prompts._asdict(), dtype=dtype, **aligned)
        done, workers = _train(plan, output, index, ray_has, device, dtype)
    trained = _trained(plan, done)
    if plan.drawn is not None:
        write_trained_keys(plan.samples, _trained_on(plan, index), trained.unusable, output)
    output.commit(config, result=trained.__dict__, workers=workers)
    return trained


def _index(plan: Plan) -> Index:
    """All positions. Raises StageError where none is left to train on."""
    config = plan.config
    index = (
        of_selection(plan.samples, plan.selection)
        if plan.selection
        else of_samples(plan.samples, config.seed, plan.drawn)
    )
    if config.held_out >= len(index):
        raise StageError(f"--held-out {config.held_out}: there are only {len(index):,} samples")
    return index


def _alignment(plan: Plan, index: Index, aligner: Aligner | None) -> dict[str, Any]:
    """How well the selection's tokens fit the model's, by some samples, for the record; {} where none are carried."""
    if aligner is None:
        return {}
    source = SampleSource(index, plan.samples, plan.selection, plan.prompts, images=False, aligner=aligner)
    looked_at = np.unique(np.linspace(0, len(index) - 1, min(_LOOKED_AT, len(index))).astype(np.int64))
    share = source.exact_share(looked_at.tolist())
    log.info(
        "weights are carried over by characters: of the answer tokens of %d samples, %.1f %% begin and end where the "
        "selection's do",
        len(looked_at),
        100 * share,
    )
    return {"aligned": {"samples": len(looked_at), "exact": share}}


def _trained_on(plan: Plan, index: Index) -> Places:
    """Where the rows lie that the run trains on: of those in its order, neither held out nor behind its last step."""
    config = plan.config
    sampler = sampler_of(config, len(index) - config.held_out)
    return index.sample_at[: min(sampler.samples, sampler.steps * sampler.batch)]


def _pair(values: Any) -> tuple[float, float] | None:
    return (values[0], values[1]) if values else None


def _trained(plan: Plan, lines: list[dict[str, Any]]) -> Trained:
    last = lines[-1]
    held = last["held_out_active_loss"], last["held_out_answer_loss"]
    return Trained(
        model=join(plan.config.out, MODEL),
        steps=len(lines),
        loss=last["loss"],
        held_out=held if None not in held else None,
        samples=sum(line["samples"] for line in lines),
        unusable={key: cause for line in lines for key, cause in line["unusable"].items()},
        held_out_unusable=last.get("held_out_unusable") or {},
    )


def claimed(plan: Plan) -> Claim:
    """What becomes of OUT: OUT/training and OUT/model are training's alone, and with LoRA OUT/adapter."""
    return claim(
        plan.out,
        plan.stage,
        plan.identity | {"dtype": plan.config.dtype},
        overwrite=plan.config.overwrite,
        folders=("training", MODEL, *((ADAPTER,) if plan.config.lora else ())),
        files=("training/log.jsonl",),
        left_open=("dtype",),
    )


def _train(
    plan: Plan, output: Claim, index: Index, ray_has: Machines, device: str, dtype: str
) -> tuple[list[dict[str, Any]], str]:
    """Run the group of workers to its end; returns the log of all steps, and what the last group of workers was."""
    config = plan.config
    on_gpu = device == "cuda"
    setup = Setup(
        config,
        plan.prompts,
        index,
        plan.samples,
        plan.selection,
        dtype=dtype,
        loaders=config.loaders if config.loaders is not None else (4 if on_gpu else 0),
        batch_tokens=plan.batch_tokens or config.microbatch_tokens(on_gpu),
        checkpoint_activations=config.recomputes(on_gpu),
        then=plan.then,
    )
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
        workers: str = ray.get(progress_actor.seen.remote())["workers"]
    finally:
        if records is not None:
            shutil.rmtree(records, ignore_errors=True)
    return _log_lines(plan), workers


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


def _log_lines(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(join(plan.out, "log.jsonl")).decode().splitlines()]


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
    name = config.name or directory.split("/")[-2]
    try:
        manager = CheckpointManager(
            join(directory, "checkpoints"), keep=config.keep, distributed=distributed, run=output.run
        )
        metrics = JobMetricsLogger(progress_actor, out=directory, name=name, identity=output.run)
        run = train(setup, distributed, manager, metrics, leaving=being_preempted)
        finish(run, output)
    except BadBatchError as error:
        where = join(directory, f"bad-step-{error.step}-{output.run}.json")
        if distributed.rank == 0:
            write_bytes(where, json.dumps({"why": str(error), "sample_keys": error.keys}, indent=2).encode())
        ray.get(progress_actor.give_up.remote(f"{error} Their keys are in {where}", error.keys))
    except StageError as error:
        ray.get(progress_actor.give_up.remote(str(error), []))
        raise


def finish(run: Run, output: Claim) -> None:
    """Write the log and the trained model to where training claimed to; every worker calls it."""
    config, setup = run.setup.config, run.setup
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=config.quantise is not None)
    state: Any = get_model_state_dict(run.training_model.model, options=options)
    if run.distributed.rank == 0:
        lora = Lora(config.lora_rank, config.lora_alpha) if config.lora else None
        if config.quantise:  # adapters go onto the weights that were quantised, not onto what was left of them
            untrained, _ = untrained_state(
                setup.prompts.model, lora, config.to_train, frozen=setup.dtype, text_only=setup.prompts.template is None
            )
            state = untrained | state
        write_results(state, setup.prompts.model, setup.prompts.template, lora, config.to_train, output, setup.dtype)
        lines = "".join(json.dumps(line) + "\n" for line in run.log)
        write_bytes(join(output.directory, "log.jsonl"), lines.encode(), by_way_of=join(output.work, "log.jsonl"))
    run.distributed.gather_objects(None)
