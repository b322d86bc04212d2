"""One worker's way through a run: load, check, then step after step. Knows nothing of Ray."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack
from vig_ray.model.prompt import Formatter
from vig_ray.storage import one_line
from vig_ray.training import checkpoints
from vig_ray.training.batch import Batcher, TrainingSample, plan_by_kind, trimmed, weights_of
from vig_ray.training.check import Checked, make_sure
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.documents import Documents
from vig_ray.training.hybrid import in_modes
from vig_ray.training.loader import Loaded, Mismatch, Unusable, load_steps
from vig_ray.training.memory import free_bytes, whole_gradients
from vig_ray.training.metrics import MetricsLogger
from vig_ray.training.objective import Sums, Totals, Weights, coefficients
from vig_ray.training.optimizer import check_packages, make_optimizer, rate_factor, set_rate
from vig_ray.training.run import BadBatchError, HeldOut, Run, Setup, Step
from vig_ray.training.sharding import read_by_one, shard
from vig_ray.training.training_model import Lora, TrainingModel, refuse_uneven
from vig_ray.training.vdep_log import told
from vig_ray.training.vdep_options import mark_of, objectives_of

_CHECKED_AT_ONCE = 256
_LOOK_EVERY_S = 15.0  # a cloud announces that it takes a machine away two minutes or half a minute before


def train(
    setup: Setup,
    distributed: DistributedContext,
    manager: CheckpointManager,
    metrics: MetricsLogger,
    leaving: Callable[[], bool] = lambda: False,
) -> Run:
    """Train to the end, from the newest checkpoint where there is one; every worker calls it.

    `leaving`: whether a worker's machine is about to go, for which a checkpoint is made at once. It is asked every
    `_LOOK_EVERY_S` seconds, by all workers after the same step, and must answer them alike.

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
        train=config.train,
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
    found: Checked | StageError = Checked()
    if distributed.rank == 0:
        try:
            found = make_sure(setup.prompts.model, formatter)
        except StageError as error:
            found = error
        except Exception as error:  # of a model's own code, say: the others must not wait for this worker
            found = StageError(f"{setup.prompts.model}: can't be checked: {type(error).__name__}: {one_line(error)}")
    found = distributed.gather_objects(found)[0]
    if isinstance(found, StageError):
        raise found
    return found


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
    _refuse_mismatch(distributed.gather_objects(wrong), carried=setup.then is not None)


def _refuse_mismatch(mismatches: Sequence[Mismatch | None], *, carried: bool) -> None:
    """Raise StageError for the first sample whose tokens aren't its selection's, if there is one. `carried`: its
    weights were to be carried over."""
    first = next((mismatch for mismatch in mismatches if mismatch is not None), None)
    if first is not None and carried:
        raise StageError(
            f"{first.key}: {first.cause}. --align makes the selection's own tokens of the samples again: take the "
            "samples that were scored, or score and select again"
        )
    if first is not None:
        raise StageError(
            f"{first.key}: {first.cause}. The selection was made with another tokenizer, template, end of turn or "
            "length, or by an earlier vig-ray; score and select with this --model, give the --template, --end-of-turn "
            "and --max-length that the samples were scored with, or let --align characters carry its weights over"
        )


def one_step(run: Run, loaded: Sequence[Loaded]) -> Step:
    """Forward, backward and update over this worker's part of the step."""
    setup, distributed = run.setup, run.distributed
    sampler = setup.sampler
    objectives = run.training_model.objectives
    modes = sampler.rank_modes(run.step, distributed.rank, distributed.workers)
    loaded = in_modes(loaded, modes, run.mark)
    samples = [each for each in loaded if isinstance(each, TrainingSample)]
    unusable = {each.key: each.cause for each in loaded if isinstance(each, Unusable)}
    needed = [each for each in (trimmed(sample, objectives) for sample in samples) if each is not None]
    microbatches = _microbatches(run, needed)
    most = -(-sampler.batch // distributed.workers)
    rank_totals, *further = [Totals.of([weights_of(each, sample) for sample in samples]) for each in objectives]
    answers = sum(len(sample.weights_T) for sample in samples)
    tokens = sum(sample.length for sample in needed)
    positions = np.full(most, -1.0)
    positions[: len(samples)] = [sample.position for sample in samples]
    wrong = next((each for each in loaded if isinstance(each, Mismatch)), None)
    due = time.monotonic() > run.looked + _LOOK_EVERY_S
    counts = np.array(
        [len(microbatches), *rank_totals, answers, tokens, len(unusable), wrong is not None, due]
        + [number for each in further for number in each],
        dtype=np.float64,
    )
    everyone = distributed.gather(np.concatenate([counts, positions]))
    if everyone[:, 6].any():
        _refuse_mismatch(distributed.gather_objects(wrong), carried=setup.then is not None)
    run.look = bool(everyone[:, 7].any())
    run.looked = time.monotonic() if run.look else run.looked
    tokens_and_samples = everyone[:, [1, 2, *range(8, len(counts))]].sum(axis=0).astype(np.int64).reshape(-1, 2)
    totals = [Totals(*pair) for pair in tokens_and_samples.tolist()]
    consumed = everyone[:, len(counts) :].ravel()
    expected = sampler.positions(run.step)
    consumed = np.sort(consumed[consumed >= 0]).astype(np.int64)
    if len(consumed) + int(everyone[:, 5].sum()) != len(expected) or not np.isin(consumed, expected).all():
        raise RuntimeError(f"step {run.step} trained on other positions than its own")  # a fault of this program
    most_microbatches = int(everyone[:, 0].max())
    norms = _norms_apart(run, needed, microbatches, most_microbatches, totals)
    sums = Sums(len(objectives), distributed.device)
    loss = _accumulate(run, needed, microbatches, most_microbatches, totals, sums=sums)
    norm = _grad_norm(run, setup.config.max_grad_norm or math.inf)
    _refuse_non_finite(run, loss, norm, samples)
    factor = rate_factor(run.step, sampler.steps, setup.config.warmup, setup.config.schedule)
    set_rate(run.optimizer, factor)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if everyone[:, 5].any():
        unusable = {key: cause for part in distributed.gather_objects(unusable) for key, cause in part.items()}
    return Step(
        step=run.step,
        first=run.step * sampler.batch,
        end=run.step * sampler.batch + len(expected),
        loss=loss,
        lr=setup.config.leading_rate * factor,
        grad_norm=norm,
        samples=len(consumed),
        active_tokens=totals[0].active_tokens,
        answer_tokens=int(everyone[:, 3].sum()),
        tokens=int(everyone[:, 4].sum()),
        seconds=time.monotonic() - run.step_began,
        workers=distributed.workers,
        unusable=unusable,
        vdep=told(*sums.total(distributed.total), totals, norms) if further else None,
    )


def _microbatches(run: Run, samples: Sequence[TrainingSample]) -> list[list[int]]:
    return plan_by_kind(
        samples,
        max_tokens=run.setup.batch_tokens,
        max_samples=run.setup.config.micro_batch,
        packed=run.packed,
        whole_together=run.checked.whole_together,
    )


def _refuse_non_finite(run: Run, loss: float, norm: float, samples: Sequence[TrainingSample]) -> None:
    """Raises BadBatchError, on all workers, with the keys of the whole step's samples; loss and norm are alike."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    keys = [key for part in run.distributed.gather_objects([sample.key for sample in samples]) for key in part]
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    raise BadBatchError(run.step, what, keys)


def _accumulate(
    run: Run,
    samples: Sequence[TrainingSample],
    microbatches: list[list[int]],
    most: int,
    totals: Sequence[Totals],
    *,
    sums: Sums | None = None,
    only: int | None = None,
) -> float:
    """Run `most` microbatches, empty ones after this worker's, leaving the gradient of the global batch's loss.

    `totals` of each objective; `sums` is given each one's part. `only`: of that objective's part alone.
    """
    objectives = run.training_model.objectives
    normalisation = run.setup.config.normalisation
    loss = torch.zeros((), device=run.distributed.device)
    most = max(most, 1)
    for number, members in enumerate(itertools.islice(itertools.chain(microbatches, itertools.repeat([])), most)):
        if run.whole_gradients:
            run.training_model.set_requires_gradient_sync(number + 1 == most)  # type: ignore[operator]  # FSDP2's
        batch = run.batcher.empty()
        if members:
            chosen = [samples[index] for index in members]
            coefficients_of: list[list[Weights]] = [
                [coefficients(weights_of(objective, sample), of_all, normalisation) for sample in chosen]
                for objective, of_all in zip(objectives, totals, strict=True)
            ]
            batch = run.batcher(chosen, *coefficients_of)
        if only is not None:
            batch = batch.of(only)
        part, _ = run.training_model(batch, sums)
        # FSDP takes the mean over workers, and the loss is a sum.
        (part * run.distributed.workers if run.sharded else part).backward()
        loss += part.detach()
    return float(run.distributed.total(loss))


def _norms_apart(
    run: Run, samples: Sequence[TrainingSample], microbatches: list[list[int]], most: int, totals: Sequence[Totals]
) -> list[float] | None:
    """The norms of the gradients of each objective by itself, its factor included, by a pass over the whole step for
    each; None where it isn't time for it."""
    every = run.setup.config.vdep_norms_every
    if len(totals) == 1 or not every or run.step % every:
        return None
    norms = []
    for number in range(len(totals)):
        _accumulate(run, samples, microbatches, most, totals, only=number)
        norms.append(_grad_norm(run, math.inf))
        run.optimizer.zero_grad(set_to_none=True)
    return norms


def _grad_norm(run: Run, limit: float) -> float:
    """The norm of the whole gradient, which is scaled down to `limit`."""
    trained = [parameter for parameter in run.training_model.parameters() if parameter.requires_grad]
    norm: Any = torch.nn.utils.clip_grad_norm_(trained, limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


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
    microbatches = _microbatches(run, samples)
    everyone = distributed.gather_objects((len(microbatches), mismatch, unusable_here))
    _refuse_mismatch([each for _, each, _ in everyone], carried=setup.then is not None)
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
