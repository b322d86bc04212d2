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
from vig_ray.training import checkpoints
from vig_ray.training.batch import Batcher, TrainingSample, plan_passes, trimmed
from vig_ray.training.checkpoints import Keeper
from vig_ray.training.loader import Loaded, Mismatch, Unusable, load_shares
from vig_ray.training.memory import free_bytes, whole_gradients
from vig_ray.training.objective import Totals, Weights, coefficients
from vig_ray.training.optimizer import make_optimizer, rate_factor, set_rate
from vig_ray.training.run import BadBatchError, HeldOut, Run, Setup, Step
from vig_ray.training.sharding import read_by_one, shard
from vig_ray.training.team import Team
from vig_ray.training.trainee import Lora, Trainee, can_pack
from vig_ray.training.watch import Watch

_CHECKED_AT_ONCE = 256
_LOOK_EVERY_S = 15.0  # a cloud announces that it takes a machine away two minutes or half a minute before


def train(setup: Setup, team: Team, keeper: Keeper, watch: Watch, leaving: Callable[[], bool] = lambda: False) -> Run:
    """Train to the end, from the newest checkpoint where there is one; every worker of the team calls it.

    `leaving`: whether a worker's machine is about to go, for which a checkpoint is made at once. It is asked every
    `_LOOK_EVERY_S` seconds, by all workers after the same step, and must answer them alike.

    Raises StageError where a sample's tokens aren't those of its selection (before the first step), and
    BadBatchError where a loss isn't a number.
    """
    run = prepare(setup, team)
    with keeper.latest() as folder:
        if folder is not None:
            run.log = checkpoints.read(folder, run.trainee, run.optimizer)["log"]
    watch.start(run)
    order = setup.order
    if run.step == 0:
        check_tokens(setup, team, watch)
    shares = (order.share(step, team.rank, team.workers) for step in range(run.step, order.steps))
    config = setup.config
    saved, warned = run.step, False
    run.step_began = run.looked = time.monotonic()
    for loaded in load_shares(setup.source(), shares, processes=setup.loaders):
        done = one_step(run, loaded)
        is_last, is_saved = run.step + 1 == order.steps, (run.step + 1) % config.save_every == 0
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
        watch.step(done)
        keeper.settle()
        first_warning = run.look and not warned and leaving()
        warned = warned or first_warning
        if (is_saved or first_warning) and not is_last:
            save(run, keeper)
            saved = run.step
            if first_warning:
                keeper.settle(wait=True)  # it must be whole before the machine is gone
        run.step_began = time.monotonic()  # a step's time has its loading in it, but neither measurement nor saving
    if saved < run.step or not run.log:
        save(run, keeper)
    keeper.settle(wait=True)
    watch.end()
    return run


def prepare(setup: Setup, team: Team) -> Run:
    """The model, sharded, its optimizer, and what makes its batches; every worker of the team calls it.

    Raises StageError, on all workers, where the model can't be loaded, or its whole gradients, if they are asked for,
    have no room.
    """
    config = setup.config
    dtype = getattr(torch, setup.dtype)
    torch.manual_seed(config.seed)
    model, softcap = read_by_one(setup.prompts.model, team)
    packs = can_pack(model)
    trainee = Trainee(
        model,
        pack=packs,
        checkpoint_activations=setup.checkpoint_activations,
        lora=Lora(config.lora_rank, config.lora_alpha) if config.lora else None,
        dtype=dtype,
        softcap=softcap,
    )
    sharded = shard(trainee, team, dtype)
    kept = 0
    if config.gradient_sync == "step" and team.workers > 1:
        kept = whole_gradients(trainee, team.workers, float(team.gather(np.array([free_bytes(team.device)])).min()))
    optimizer = make_optimizer(trainee, config)
    collate = setup.source().formatter.collate
    packed = packs and config.packing
    batcher = Batcher(model, collate, device=team.device, dtype=dtype, packed=packed)
    return Run(setup, team, trainee, optimizer, batcher, packed, sharded, kept)


def check_tokens(setup: Setup, team: Team, watch: Watch) -> None:
    """Tokenise every sample that the run will train on or measure, before its first step.

    Raises StageError, on all workers, naming the first sample whose answer tokens aren't its selection's.
    """
    if setup.selection is None:
        return
    order = setup.order
    trained = min(order.samples, order.steps * order.batch)
    positions = np.concatenate([np.arange(trained), setup.held_out])
    used = len(positions)
    # Rows that lie together are read together: by place, not by position.
    positions = positions[np.argsort(setup.index.sample_at[positions], kind="stable")]
    own = np.array_split(positions, team.workers)[team.rank]
    shares = (own[start : start + _CHECKED_AT_ONCE] for start in range(0, len(own), _CHECKED_AT_ONCE))
    wrong: Mismatch | None = None
    done = 0
    for loaded in load_shares(setup.source(images=False), shares, processes=setup.loaders):
        done += len(loaded)
        watch.checked(done * team.workers, used)
        wrong = next((each for each in loaded if isinstance(each, Mismatch)), None)
        if wrong is not None:
            break
    _refuse_mismatch(team.gather_objects(wrong))


def _refuse_mismatch(mismatches: Sequence[Mismatch | None]) -> None:
    """Raise StageError for the first sample whose tokens aren't its selection's, if there is one."""
    first = next((mismatch for mismatch in mismatches if mismatch is not None), None)
    if first is not None:
        raise StageError(
            f"{first.key}: {first.cause}. The selection was made with another tokenizer, template or length; "
            "score and select with this --model, or give the --template and --max-length that the samples were scored "
            "with"
        )


def one_step(run: Run, loaded: Sequence[Loaded]) -> Step:
    """Forward, backward and update over this worker's share of the step."""
    setup, team = run.setup, run.team
    order = setup.order
    samples = [each for each in loaded if isinstance(each, TrainingSample)]
    unusable = {each.key: each.cause for each in loaded if isinstance(each, Unusable)}
    needed = [each for each in map(trimmed, samples) if each is not None]
    passes = plan_passes(
        [sample.length for sample in needed],
        max_tokens=setup.batch_tokens,
        max_samples=setup.config.micro_batch,
        packed=run.packed,
    )
    most = -(-order.batch // team.workers)
    own = Totals.of([sample.weights_T for sample in samples])
    answers = sum(len(sample.weights_T) for sample in samples)
    tokens = sum(sample.length for sample in needed)
    positions = np.full(most, -1.0)
    positions[: len(samples)] = [sample.position for sample in samples]
    wrong = next((each for each in loaded if isinstance(each, Mismatch)), None)
    due = time.monotonic() > run.looked + _LOOK_EVERY_S
    counts = np.array([len(passes), *own, answers, tokens, len(unusable), wrong is not None, due], dtype=np.float64)
    everyone = team.gather(np.concatenate([counts, positions]))
    if everyone[:, 6].any():
        _refuse_mismatch(team.gather_objects(wrong))
    run.look = bool(everyone[:, 7].any())
    run.looked = time.monotonic() if run.look else run.looked
    totals = Totals(int(everyone[:, 1].sum()), int(everyone[:, 2].sum()))
    consumed = everyone[:, len(counts) :].ravel()
    expected = order.positions(run.step)
    consumed = np.sort(consumed[consumed >= 0]).astype(np.int64)
    if len(consumed) + int(everyone[:, 5].sum()) != len(expected) or not np.isin(consumed, expected).all():
        raise RuntimeError(f"step {run.step} trained on other positions than its own")  # a fault of this program
    loss = _accumulate(run, needed, passes, int(everyone[:, 0].max()), totals)
    norm = _grad_norm(run)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        keys = [key for part in team.gather_objects([sample.key for sample in samples]) for key in part]
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        raise BadBatchError(run.step, what, keys)
    factor = rate_factor(run.step, order.steps, setup.config.warmup, setup.config.schedule)
    set_rate(run.optimizer, factor)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if everyone[:, 5].any():
        unusable = {key: cause for part in team.gather_objects(unusable) for key, cause in part.items()}
    return Step(
        step=run.step,
        first=run.step * order.batch,
        end=run.step * order.batch + len(expected),
        loss=loss,
        lr=setup.config.rates[0] * factor,
        grad_norm=norm,
        samples=len(consumed),
        active_tokens=totals.active_tokens,
        answer_tokens=int(everyone[:, 3].sum()),
        tokens=int(everyone[:, 4].sum()),
        seconds=time.monotonic() - run.step_began,
        workers=team.workers,
        unusable=unusable,
    )


def _accumulate(
    run: Run, samples: Sequence[TrainingSample], passes: list[list[int]], most: int, totals: Totals
) -> float:
    """Run `most` passes, empty ones after this worker's own, leaving the gradient of the global batch's loss, which
    is returned."""
    normalisation = run.setup.config.normalisation
    loss = torch.zeros((), device=run.team.device)
    most = max(most, 1)
    for number, members in enumerate(itertools.islice(itertools.chain(passes, itertools.repeat([])), most)):
        if run.whole_gradients:
            run.trainee.set_requires_gradient_sync(number + 1 == most)  # type: ignore[operator]  # FSDP2's
        batch = run.batcher.empty()
        if members:
            chosen = [samples[index] for index in members]
            shares: list[Weights] = [coefficients(sample.weights_T, totals, normalisation) for sample in chosen]
            batch = run.batcher(chosen, shares)
        part, _ = run.trainee(batch)
        # FSDP takes the mean over workers, and the loss is a sum.
        (part * run.team.workers if run.sharded else part).backward()
        loss += part.detach()
    return float(run.team.total(loss))


def _grad_norm(run: Run) -> float:
    """The norm of the whole gradient, which is scaled down to --max-grad-norm."""
    limit = run.setup.config.max_grad_norm or math.inf
    trained = [parameter for parameter in run.trainee.parameters() if parameter.requires_grad]
    norm: Any = torch.nn.utils.clip_grad_norm_(trained, limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


@torch.no_grad()
def held_out_loss(run: Run) -> HeldOut:
    """Measure the held-out samples; every worker of the team calls it.

    Raises StageError, on all workers, where a sample's answer tokens aren't its selection's.
    """
    setup, team = run.setup, run.team
    loaded = setup.source().__getitems__(setup.held_out[team.rank :: team.workers].tolist())
    mismatch = next((sample for sample in loaded if isinstance(sample, Mismatch)), None)
    unusable_here = {sample.key: sample.cause for sample in loaded if isinstance(sample, Unusable)}
    samples = [sample for sample in loaded if isinstance(sample, TrainingSample)]
    passes = plan_passes(
        [sample.length for sample in samples],
        max_tokens=setup.batch_tokens,
        max_samples=setup.config.micro_batch,
        packed=run.packed,
    )
    everyone = team.gather_objects((len(passes), mismatch, unusable_here))
    _refuse_mismatch([worker_mismatch for _, worker_mismatch, _ in everyone])
    sums = np.zeros(4)
    run.trainee.eval()
    most = max(count for count, _, _ in everyone)
    for members in itertools.islice(itertools.chain(passes, itertools.repeat([])), most):
        chosen = [samples[index] for index in members]
        ones = [np.ones(len(sample.weights_T), dtype=np.float32) for sample in chosen]
        batch = run.batcher(chosen, ones) if members else run.batcher.empty()
        _, nll_N = run.trainee(batch)
        if members:
            nll = nll_N.cpu().double().numpy()
            active = np.concatenate([sample.weights_T for sample in chosen]) != 0
            sums += [nll[active].sum(), active.sum(), nll.sum(), len(nll)]
    run.trainee.train()
    active_sum, active_tokens, answer_sum, answer_tokens = team.gather(sums).sum(axis=0).tolist()
    unusable = {key: cause for _, _, worker_unusable in everyone for key, cause in worker_unusable.items()}
    return HeldOut(
        active_sum / active_tokens if active_tokens else None,
        answer_sum / answer_tokens if answer_tokens else None,
        len(setup.held_out) - len(unusable),
        unusable,
    )


def save(run: Run, keeper: Keeper) -> None:
    """A checkpoint of the state after the steps so far, with the held-out loss that was measured after the last one."""
    score = run.log[-1]["held_out_active_loss"] if run.log else None
    keeper.save(run.step, run.trainee, run.optimizer, {"log": run.log}, score)
