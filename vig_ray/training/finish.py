"""What a run leaves behind at its end: its log and the trained model."""

from __future__ import annotations

import json
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vig_ray.stage import Claim
from vig_ray.storage import join, write_bytes
from vig_ray.training.export import untrained_state, write_results
from vig_ray.training.run import BadBatchError, Run
from vig_ray.training.training_model import Lora


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


def write_bad_batch(error: BadBatchError, output: Claim) -> str:
    """Write the keys of a step whose loss isn't a number to where training claimed to; returns what to tell."""
    where = join(output.directory, f"bad-step-{error.step}-{output.run}.json")
    write_bytes(where, json.dumps({"why": str(error), "sample_keys": error.keys}, indent=2).encode())
    return f"{error} Their keys are in {where}"
