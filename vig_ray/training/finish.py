"""What a run leaves behind: its log and the trained model, and the models that it was after shares of its steps."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vig_ray.stage import Claim
from vig_ray.storage import exists, join, write_bytes
from vig_ray.training.export import Written, untrained_state, write_results, write_so_far
from vig_ray.training.run import BadBatchError, Run
from vig_ray.training.shares import AT, name_of, step_of
from vig_ray.training.training_model import Lora


def finish(run: Run, output: Claim) -> None:
    """Write the log and the trained model to where training claimed to; every worker calls it."""
    state = _whole_state(run)
    if run.distributed.rank == 0:
        write_results(_written_of(run, state), output)
        lines = "".join(json.dumps(line) + "\n" for line in run.log)
        write_bytes(join(output.directory, "log.jsonl"), lines.encode(), by_way_of=join(output.work, "log.jsonl"))
    run.distributed.gather_objects(None)


def export_due(run: Run, output: Claim) -> None:
    """Write the model to OUT/at/SHARE, if this step is a share's of --export-at; every worker calls it after each step.

    It comes before any checkpoint of the step: a run that goes on from one has each share's of the steps before. One
    that a killed attempt has written whole, as a file in training/ says, is left as it is.
    """
    steps = run.setup.sampler.steps
    due = [name_of(share) for share in run.setup.config.export_at if step_of(share, steps) == run.step]
    if not due:
        return
    state = _whole_state(run)
    if run.distributed.rank == 0:
        for name in due:
            marker = join(output.directory, f"at-{name}-{output.run}.json")
            if exists(marker).name == "NotFound":
                write_so_far(_written_of(run, state), output, f"{AT}/{name}")
                write_bytes(marker, json.dumps({"share": float(name), "step": run.step}).encode())
    run.distributed.gather_objects(None)


def _whole_state(run: Run) -> dict[str, torch.Tensor]:
    """The weights of all workers together, which the first one has; of a quantised model those that were trained."""
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=run.setup.config.quantise is not None
    )
    state: dict[str, Any] = get_model_state_dict(run.training_model.model, options=options)
    return state


def _written_of(run: Run, state: dict[str, torch.Tensor]) -> Written:
    """What is to be written of these weights."""
    config, setup = run.setup.config, run.setup
    lora = Lora(config.lora_rank, config.lora_alpha) if config.lora else None
    if config.quantise:  # adapters go onto the weights that were quantised, not onto what was left of them
        untrained, _ = untrained_state(
            setup.prompts.model, lora, config.to_train, frozen=setup.dtype, text_only=setup.prompts.template is None
        )
        state = untrained | state
    return Written(state, setup.prompts.model, setup.prompts.template, lora, config.to_train, setup.dtype)


def write_bad_batch(error: BadBatchError, output: Claim) -> str:
    """Write the keys of a step whose loss isn't a number to where training claimed to; returns what to tell."""
    where = join(output.directory, f"bad-step-{error.step}-{output.run}.json")
    write_bytes(where, json.dumps({"why": str(error), "sample_keys": error.keys}, indent=2).encode())
    return f"{error} Their keys are in {where}"
