"""One optimizer step: its samples to microbatches, forward, backward and update, and the line of the log."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.training.batch import TrainingSample, plan_by_kind, trimmed, weights_of
from vig_ray.training.hybrid import in_modes
from vig_ray.training.loader import Loaded, Mismatch, Unusable
from vig_ray.training.objective import Sums, Totals, Weights, coefficients
from vig_ray.training.optimizer import rate_factor, set_rate
from vig_ray.training.run import BadBatchError, Run, Step
from vig_ray.training.sampler import Positions
from vig_ray.training.vdep_log import loss_parts
from vig_ray.training.vdep_options import norms_every

LOOK_EVERY_S = 15.0  # a cloud announces that it takes a machine away two minutes or half a minute before


class _Share(NamedTuple):
    """One worker's part of a step: its samples in their modes, those of them that need a forward pass, cut to what it
    needs, their microbatches, and what can't be trained on."""

    samples: list[TrainingSample]
    needed: list[TrainingSample]
    microbatches: list[list[int]]
    unusable: dict[str, str]
    mismatch: Mismatch | None


class _Whole(NamedTuple):
    """What the shares of all workers come to. `totals`: of each objective; `positions`: those trained on, rising."""

    most_microbatches: int
    totals: list[Totals]
    answers: int
    tokens: int
    unusable: int
    positions: Positions


def one_step(run: Run, loaded: Sequence[Loaded]) -> Step:
    """Forward, backward and update over this worker's part of the step.

    Raises StageError, on all workers, where a sample's answer tokens aren't its selection's, and BadBatchError where
    the loss or its gradient isn't a number.
    """
    config, sampler = run.setup.config, run.setup.sampler
    share = _share(run, loaded)
    whole = _whole(run, share)
    work = run, share.needed, share.microbatches, whole.most_microbatches, whole.totals
    norms = _norms_apart(*work)
    sums = Sums(len(whole.totals), run.distributed.device)
    loss = _accumulate(*work, sums=sums)
    norm = _grad_norm(run, config.max_grad_norm or math.inf)
    _refuse_non_finite(run, loss, norm, share.samples)
    factor = rate_factor(run.step, sampler.steps, config.warmup, config.schedule)
    set_rate(run.optimizer, factor)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    unusable = share.unusable
    if whole.unusable:
        unusable = {key: cause for part in run.distributed.gather_objects(unusable) for key, cause in part.items()}
    first = run.step * sampler.batch
    return Step(
        step=run.step,
        first=first,
        end=first + len(whole.positions) + whole.unusable,
        loss=loss,
        lr=config.leading_rate * factor,
        grad_norm=norm,
        samples=len(whole.positions),
        active_tokens=whole.totals[0].active_tokens,
        answer_tokens=whole.answers,
        tokens=whole.tokens,
        seconds=time.monotonic() - run.step_began,
        workers=run.distributed.workers,
        unusable=unusable,
        vdep=loss_parts(*sums.total(run.distributed.total), whole.totals, norms) if len(whole.totals) > 1 else None,
    )


def _share(run: Run, loaded: Sequence[Loaded]) -> _Share:
    """This worker's part of the step."""
    modes = run.setup.sampler.rank_modes(run.step, run.distributed.rank, run.distributed.workers)
    loaded = in_modes(loaded, modes, run.mark)
    samples = [each for each in loaded if isinstance(each, TrainingSample)]
    cut = [trimmed(sample, run.training_model.objectives) for sample in samples]
    needed = [each for each in cut if each is not None]
    unusable = {each.key: each.cause for each in loaded if isinstance(each, Unusable)}
    mismatch = next((each for each in loaded if isinstance(each, Mismatch)), None)
    return _Share(samples, needed, microbatches_of(run, needed), unusable, mismatch)


def _whole(run: Run, share: _Share) -> _Whole:
    """What all workers' parts come to, in one exchange; notes whether it is time to look for machines that go.

    Raises StageError, on all workers, where a sample's tokens aren't its selection's.
    """
    distributed, sampler = run.distributed, run.setup.sampler
    counts = {
        "microbatches": len(share.microbatches),
        "answers": sum(len(sample.weights_T) for sample in share.samples),
        "tokens": sum(sample.length for sample in share.needed),
        "unusable": len(share.unusable),
        "mismatch": share.mismatch is not None,
        "due": time.monotonic() > run.looked + LOOK_EVERY_S,
    }
    objectives = run.training_model.objectives
    totals = [Totals.of([weights_of(each, sample) for sample in share.samples]) for each in objectives]
    positions = np.full(-(-sampler.batch // distributed.workers), -1.0)
    positions[: len(share.samples)] = [sample.position for sample in share.samples]
    numbers = np.array([*counts.values(), *itertools.chain(*totals)], dtype=np.float64)
    everyone = distributed.gather(np.concatenate([numbers, positions]))
    of_workers = dict(zip(counts, everyone.T, strict=False))
    if of_workers["mismatch"].any():
        refuse_mismatch(distributed.gather_objects(share.mismatch), carried=run.setup.then is not None)
    run.look = bool(of_workers["due"].any())
    run.looked = time.monotonic() if run.look else run.looked
    every = everyone[:, len(numbers) :].ravel()
    trained_on: Positions = np.sort(every[every >= 0]).astype(np.int64)
    unusable, expected = int(of_workers["unusable"].sum()), sampler.positions(run.step)
    if len(trained_on) + unusable != len(expected) or not np.isin(trained_on, expected).all():
        raise RuntimeError(f"step {run.step} trained on other positions than its own")  # a fault of this program
    tokens_and_samples = everyone[:, len(counts) : len(numbers)].sum(axis=0).astype(np.int64).reshape(-1, 2)
    return _Whole(
        most_microbatches=int(of_workers["microbatches"].max()),
        totals=[Totals(*pair) for pair in tokens_and_samples.tolist()],
        answers=int(of_workers["answers"].sum()),
        tokens=int(of_workers["tokens"].sum()),
        unusable=unusable,
        positions=trained_on,
    )


def refuse_mismatch(mismatches: Sequence[Mismatch | None], *, carried: bool) -> None:
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


def microbatches_of(run: Run, samples: Sequence[TrainingSample]) -> list[list[int]]:
    """This worker's microbatches, as places among its `samples`."""
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
    every = norms_every(run.setup.config)
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
