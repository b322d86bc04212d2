"""One worker's way through a run: load, check, then step after step. Knows nothing of Ray."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack
from vig_ray.model.prompt import Formatter
from vig_ray.storage import one_line
from vig_ray.training import checkpoints
from vig_ray.training.batch import Batcher, TrainingSample
from vig_ray.training.check import Checked, make_sure
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.documents import Documents
from vig_ray.training.loader import Mismatch, Unusable, load_steps
from vig_ray.training.memory import free_bytes, whole_gradients
from vig_ray.training.metrics import MetricsLogger
from vig_ray.training.optimizer import check_packages, make_optimizer
from vig_ray.training.run import HeldOut, Run, Setup
from vig_ray.training.sharding import read_by_one, shard
from vig_ray.training.step import microbatches_of, one_step, refuse_mismatch
from vig_ray.training.training_model import Lora, TrainingModel, refuse_uneven
from vig_ray.training.vdep_options import mark_of, objectives_of

_CHECKED_AT_ONCE = 256


def train(
    setup: Setup,
    distributed: DistributedContext,
    manager: CheckpointManager,
    metrics: MetricsLogger,
    leaving: Callable[[], bool] = lambda: False,
    after_step: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Train to the end, from the newest checkpoint where there is one; every worker calls it.

    `leaving`: whether a worker's machine is about to go, for which a checkpoint is made at once. It is asked every
    `step.LOOK_EVERY_S` seconds, by all workers after the same step, and must answer them alike. `after_step`: called by
    all workers after each step, before a checkpoint says that the step is done.

    Raises StageError where a sample's tokens aren't those of its selection (before the first step), and
    BadBatchError where a loss isn't a number.
    """
    run = prepare(setup, distributed)
    with manager.latest() as folder:
        if folder is not None:
            run.log = checkpoints.read(folder, run.training_model, run.optimizer)["log"]
    metrics.start(run)
    sampler = setup.sampler
    if run.step == 0:
        check_tokens(setup, distributed, metrics)
    positions_by_step = (
        sampler.rank_positions(step, distributed.rank, distributed.workers) for step in range(run.step, sampler.steps)
    )
    config = setup.config
    saved, warned = run.step, False
    run.step_began = run.looked = time.monotonic()
    for loaded in load_steps(setup.source(), positions_by_step, processes=setup.loaders):
        done = one_step(run, loaded)
        is_last, is_saved = run.step + 1 == sampler.steps, (run.step + 1) % config.save_every == 0
        # Wherever a checkpoint is kept, too: only its own loss says whether it is the best.
        if config.held_out and (is_last or is_saved or (run.step + 1) % config.eval_every == 0):
            measured = held_out_loss(run)
            done = done._replace(
                held_out_active_loss=measured.active_loss,
                held_out_answer_loss=measured.answer_loss,
                held_out_samples=measured.samples,
                held_out_unusable=measured.unusable,
            )
        run.log.append(done._asdict())
        metrics.step(done)
        after_step(run)
        manager.finalize()
        first_warning = run.look and not warned and leaving()
        warned = warned or first_warning
        if (is_saved or first_warning) and not is_last:
            save(run, manager)
            saved = run.step
            if first_warning:
                manager.finalize(wait=True)  # it must be whole before the machine is gone
        run.step_began = time.monotonic()  # a step's time has its loading in it, but neither measurement nor saving
    if saved < run.step or not run.log:
        save(run, manager)
    manager.finalize(wait=True)
    metrics.end()
    return run


def prepare(setup: Setup, distributed: DistributedContext) -> Run:
    """The model, sharded, its optimizer, and what makes its batches; every worker calls it.

    Raises StageError, on all workers, where the model can't be loaded, or its whole gradients, if they are asked for,
    have no room.
    """
    config = setup.config
    check_packages(config)
    dtype = getattr(torch, setup.dtype)
    formatter = setup.source().formatter
    checked = _checked(setup, distributed, formatter)
    torch.manual_seed(config.seed)
    model, softcap = read_by_one(setup.prompts.model, distributed, text_only=isinstance(setup.prompts, Documents))
    refuse_uneven(model, distributed.workers)
    packs = can_pack(model)
    objectives, mark = objectives_of(config, model), mark_of(config, model, formatter)
    training_model = TrainingModel(
        model,
        pack=packs,
        checkpoint_activations=setup.checkpoint_activations,
        lora=Lora(config.lora_rank, config.lora_alpha) if config.lora else None,
        dtype=dtype,
        softcap=softcap,
        train=config.to_train,
        objectives=objectives,
    )
    sharded = shard(
        training_model,
        distributed,
        dtype,
        quantise=config.quantise is not None,
        offload=config.offload_optimizer,
    )
    kept = 0
    if config.gradient_sync == "step" and distributed.workers > 1:
        free = float(distributed.gather(np.array([free_bytes(distributed.device)])).min())
        kept = whole_gradients(
            training_model,
            distributed.workers,
            free,
            optimizer=config.optimizer,
            offload=config.offload_optimizer,
        )
    optimizer = make_optimizer(training_model, config)
    packed = packs and config.packing
    batcher = Batcher(
        model, formatter.collate, device=distributed.device, dtype=dtype, packed=packed, objectives=objectives
    )
    return Run(setup, distributed, training_model, optimizer, batcher, packed, sharded, kept, checked, mark=mark)


def _checked(setup: Setup, distributed: DistributedContext, formatter: Formatter) -> Checked:
    """What `make_sure` says, by the first worker. Raises StageError on all of them."""
    outcome: Checked | StageError = Checked()
    if distributed.rank == 0:
        try:
            outcome = make_sure(setup.prompts.model, formatter)
        except StageError as error:
            outcome = error
        except Exception as error:  # of a model's own code, say: the others must not wait for this worker
            outcome = StageError(f"{setup.prompts.model}: can't be checked: {type(error).__name__}: {one_line(error)}")
    outcome = distributed.gather_objects(outcome)[0]
    if isinstance(outcome, StageError):
        raise outcome
    return outcome


def check_tokens(setup: Setup, distributed: DistributedContext, metrics: MetricsLogger) -> None:
    """Tokenise every sample that the run will train on or measure, before its first step.

    Raises StageError, on all workers, naming the first sample whose answer tokens aren't its selection's.
    """
    if setup.selection is None:
        return
    sampler = setup.sampler
    positions = np.concatenate([sampler.used, setup.held_out])
    used = len(positions)
    # Rows that lie together are read together: by place, not by position.
    positions = positions[np.argsort(setup.index.sample_at[positions], kind="stable")]
    ours = np.array_split(positions, distributed.workers)[distributed.rank]
    parts = (ours[start : start + _CHECKED_AT_ONCE] for start in range(0, len(ours), _CHECKED_AT_ONCE))
    wrong: Mismatch | None = None
    done = 0
    for loaded in load_steps(setup.source(images=False), parts, processes=setup.loaders):
        done += len(loaded)
        metrics.checked(done * distributed.workers, used)
        wrong = next((each for each in loaded if isinstance(each, Mismatch)), None)
        if wrong is not None:
            break
    refuse_mismatch(distributed.gather_objects(wrong), carried=setup.then is not None)


@torch.no_grad()
def held_out_loss(run: Run) -> HeldOut:
    """Measure the held-out samples; every worker calls it.

    Raises StageError, on all workers, where a sample's answer tokens aren't its selection's.
    """
    setup, distributed = run.setup, run.distributed
    loaded = setup.source().__getitems__(setup.held_out[distributed.rank :: distributed.workers].tolist())
    mismatch = next((sample for sample in loaded if isinstance(sample, Mismatch)), None)
    unusable_here = {sample.key: sample.cause for sample in loaded if isinstance(sample, Unusable)}
    samples = [sample for sample in loaded if isinstance(sample, TrainingSample)]
    microbatches = microbatches_of(run, samples)
    everyone = distributed.gather_objects((len(microbatches), mismatch, unusable_here))
    refuse_mismatch([each for _, each, _ in everyone], carried=setup.then is not None)
    sums = np.zeros(4)
    run.training_model.eval()
    most = max(count for count, _, _ in everyone)
    for members in itertools.islice(itertools.chain(microbatches, itertools.repeat([])), most):
        chosen = [samples[index] for index in members]
        ones = [np.ones(len(sample.weights_T), dtype=np.float32) for sample in chosen]
        batch = run.batcher(chosen, ones) if members else run.batcher.empty()
        _, nll_N = run.training_model(batch)
        if members:
            nll = nll_N.cpu().double().numpy()
            active = np.concatenate([sample.weights_T for sample in chosen]) != 0
            sums += [nll[active].sum(), active.sum(), nll.sum(), len(nll)]
    run.training_model.train()
    active_sum, active_tokens, answer_sum, answer_tokens = distributed.gather(sums).sum(axis=0).tolist()
    unusable = {key: cause for _, _, worker_unusable in everyone for key, cause in worker_unusable.items()}
    return HeldOut(
        active_sum / active_tokens if active_tokens else None,
        answer_sum / answer_tokens if answer_tokens else None,
        len(setup.held_out) - len(unusable),
        unusable,
    )


def save(run: Run, manager: CheckpointManager) -> None:
    """A checkpoint of the state after the steps so far, with the held-out loss that was measured after the last one."""
    score = run.log[-1]["held_out_active_loss"] if run.log else None
    manager.save(run.step, run.training_model, run.optimizer, {"log": run.log}, score)
