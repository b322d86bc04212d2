"""The training job on Ray Train: check, find every position's rows, and let an elastic group of workers train.

    OUT/training/   checkpoints/, log.jsonl (one line a step), tensorboard/; its record beside it, training.stage.json
    OUT/model/      the trained model, a transformers checkpoint; with LoRA the adapter alone in OUT/adapter/

`run(config)` is what `vig train`, `jobs/train.py` and Python call. A run that was killed goes on from its last
checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vig_ray.cluster import machines, parse_range
from vig_ray.errors import StageError
from vig_ray.stage import Claim, claim
from vig_ray.storage import join, read_bytes
from vig_ray.tables.rows import Places
from vig_ray.tables.trained_on import write_trained_keys
from vig_ray.this_process import this_process
from vig_ray.training.carry import Aligner, aligner_of
from vig_ray.training.config import TrainConfig
from vig_ray.training.dry_run import DryRun, memory_by_workers
from vig_ray.training.export import ADAPTER, MODEL
from vig_ray.training.in_process import train_here
from vig_ray.training.index import Index, of_samples, of_selection
from vig_ray.training.loader import SampleSource
from vig_ray.training.plan import Plan, check
from vig_ray.training.ray_group import train_on_ray
from vig_ray.training.run import Setup
from vig_ray.training.shares import AT, name_of, step_of
from vig_ray.training.vdep_options import sampler_of

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
    exported: dict[str, int] = field(default_factory=dict)
    """Of --export-at: the folders, and after which step the model is in each."""

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
        exported = "".join(f"\nmodel after step {step:,}: {folder}" for folder, step in self.exported.items())
        return f"{text}{exported}\nmodel: {self.model}"


def run(config: TrainConfig, *, in_process: bool = False) -> Trained | DryRun:
    """Train; returns what came of it, or with `dry_run` what would be trained.

    `in_process`: by one worker in this process, without a Ray. Raises StageError, before any worker starts, where the
    config, the samples, the selection, the model or what is in `OUT` is wrong; and where training can't go on, with
    what to do.
    """
    return carry_out(check(config), in_process=in_process)


def carry_out(plan: Plan, *, in_process: bool = False) -> Trained | DryRun:
    """Train as a plan says; see `run`."""
    config = plan.config
    least, most = parse_range(config.workers) if config.workers else (1, 1)
    if in_process and (config.address or most > 1):
        raise StageError("in_process: neither with --address nor with several --workers, which run by Ray")
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
            {join(config.out, AT, name_of(share)): step_of(share, steps) for share in config.export_at},
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
    on_ray = partial(machines, config.address, actors=most, least_cpus=least)
    with this_process() if in_process else on_ray() as ray_has:
        device = ray_has.device(config.device, "training")
        # A dtype that isn't named is the earlier run's.
        earlier = output.record["identity"]["dtype"] if output.state == "go on" else None
        dtype = config.dtype or earlier or ("bfloat16" if device == "cuda" else "float32")
        identity = output.identity | {"dtype": dtype}
        aligned = _alignment(plan, index, aligner)
        output.begin(config, identity=identity, prompts=plan.prompts._asdict(), dtype=dtype, **aligned)
        setup, on_gpu = _setup(plan, index, device, dtype), device == "cuda"
        if in_process:
            workers = train_here(setup, output, on_gpu=on_gpu)
        else:
            workers = train_on_ray(setup, output, ray_has, on_gpu=on_gpu)
    trained = _trained(plan, _log_lines(plan))
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


def _setup(plan: Plan, index: Index, device: str, dtype: str) -> Setup:
    """What every worker is told."""
    config, on_gpu = plan.config, device == "cuda"
    return Setup(
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
        exported={
            join(plan.config.out, AT, name_of(share)): step_of(share, len(lines)) for share in plan.config.export_at
        },
    )


def claimed(plan: Plan) -> Claim:
    """What becomes of OUT: OUT/training and OUT/model are training's alone, with LoRA OUT/adapter, and with --export-at
    OUT/at."""
    config = plan.config
    return claim(
        plan.out,
        plan.stage,
        plan.identity | {"dtype": plan.config.dtype},
        overwrite=plan.config.overwrite,
        folders=("training", MODEL, *((ADAPTER,) if config.lora else ()), *((AT,) if config.export_at else ())),
        files=("training/log.jsonl",),
        left_open=("dtype",),
    )


def _log_lines(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(join(plan.out, "log.jsonl")).decode().splitlines()]
