"""Runs of the trainer's core without Ray: in this process, or on several gloo workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.tensor import DTensor

from tests.forks import in_processes
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import Prompts
from vig_ray.stage import Claim, claim
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.finish import export_due, finish
from vig_ray.training.index import of_samples, of_selection
from vig_ray.training.metrics import MetricsLogger, SilentLogger
from vig_ray.training.run import Run, Setup
from vig_ray.training.worker import train


def setup_of(folder: Path, *, selection: bool = True, model: str = CHECKPOINT, **options: Any) -> Setup:
    options = {"global_batch": 8, "max_steps": 20, "lr": 1e-3, "batch_tokens": 100_000, **options}
    batch_tokens = options.pop("batch_tokens")
    samples, chosen = str(folder / "samples"), str(folder / "selection")
    index = of_selection(samples, chosen) if selection else of_samples(samples, 0)
    config = TrainConfig(model=model, samples=samples, selection=chosen if selection else None, out="-", **options)
    return Setup(
        config,
        Prompts(model, config.template or config.usual_template),
        index,
        samples,
        chosen if selection else None,
        dtype=config.dtype or "float32",
        loaders=config.loaders or 0,
        batch_tokens=batch_tokens,
        checkpoint_activations=config.activation_checkpointing == "on",
    )


def alone(
    setup: Setup,
    out: Path,
    metrics: MetricsLogger | None = None,
    *,
    after_step: Callable[[Run], None] = lambda _: None,
) -> Run:
    distributed = DistributedContext(0, 1, torch.device("cpu"))
    manager = CheckpointManager(str(out), keep=2, distributed=distributed)
    return train(setup, distributed, manager, metrics or SilentLogger(), after_step=after_step)


def left_by(run: Run, out: Path, stage: str = "train") -> Path:
    """Write what the job writes around a run of the core, without Ray."""
    setup = run.setup
    output = claim(str(out / "training"), stage, {}, folders=("model", "adapter"))
    output.begin(setup.config, prompts=setup.prompts._asdict(), dtype=setup.dtype)
    finish(run, output)
    output.commit(setup.config)
    return out


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor without its sharding, on every worker; of one in nf4 its packed bytes."""
    return (
        (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().as_subclass(torch.Tensor).clone()
    )


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """All weights, whole, on every worker."""
    return {name: whole(tensor) for name, tensor in run.training_model.model.state_dict().items()}


def moments_of(run: Run) -> dict[str, torch.Tensor]:
    """The optimizer's state by names, whole, on every worker; of 8-bit moments codes and scales."""
    options = StateDictOptions(ignore_frozen_params=True)
    _, state = get_state_dict(run.training_model.model, run.optimizer, options=options)
    in_parts = getattr(run.optimizer, "in_parts", None)
    found: dict[str, torch.Tensor] = {}
    for name, moments in (in_parts(state) if in_parts else state)["state"].items():
        for key, value in moments.items():
            parts = value if isinstance(value, dict) else {"": value}
            found |= {f"{name} {key} {part}": whole(tensor) for part, tensor in parts.items()}
    return found


def bytes_of(tensor: Any) -> int:
    """Bytes of a tensor here: of all that a subclass is made of, and of what bitsandbytes keeps beside a weight."""
    if isinstance(tensor, DTensor):
        return bytes_of(tensor.to_local())
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(bytes_of(getattr(tensor, name)) for name in names)
    state = getattr(tensor, "quant_state", None)
    beside = [] if state is None else [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return tensor.nbytes + sum(each.nbytes for each in beside)


def held(run: Run) -> dict[str, int]:
    """Bytes of this worker's weights and of its optimizer's state."""
    states = run.optimizer.state.values()
    return {
        "weights": sum(map(bytes_of, run.training_model.parameters())),
        "optimizer": sum(bytes_of(tensor) for state in states for tensor in state.values()),
    }


class Beginning(SilentLogger):
    """Keeps a copy of what a run began with: every parameter, whole, and every buffer, by all their names; and how many
    bytes this worker's gradients had at the last step."""

    def start(self, run: Run) -> None:
        model = run.training_model.model
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        self.trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        self.tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        self.tensors = {name: whole(tensor) for name, tensor in {**parameters, **buffers}.items()}
        self.gradients = 0

        def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self.gradients = sum(bytes_of(parameter.grad) for parameter in trained)

        run.optimizer.register_step_pre_hook(count)


def _counted_reduce_scatters() -> list[str]:
    """A list that grows by one at each reduce-scatter of this process."""
    seen: list[str] = []
    plain = torch.distributed.reduce_scatter_single

    def counted(*args: Any, **options: Any) -> Any:
        seen.append("reduce-scatter")
        return plain(*args, **options)

    torch.distributed.reduce_scatter_single = counted
    return seen


def _work(
    rank: int,
    workers: int,
    folder: str,
    setups: Sequence[tuple[str, Setup | Sequence[Setup]]],
    outputs: Mapping[str, Claim],
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    distributed = DistributedContext(rank, workers, torch.device("cpu"))
    reduced = _counted_reduce_scatters()
    for name, setup in setups:
        reduced.clear()
        began = Beginning()
        rank_setup = setup if isinstance(setup, Setup) else setup[rank]
        left: dict[str, Any]
        try:
            run = train(
                rank_setup,
                distributed,
                CheckpointManager(os.path.join(folder, name), keep=2, distributed=distributed),
                began,
                after_step=partial(export_due, output=outputs[name]) if name in outputs else lambda _: None,
            )
            left = {"log": run.log, "weights": weights_of(run), "reduce_scatters": len(reduced), "began": vars(began)}
            left |= {"moments": moments_of(run), "held": held(run)}
        except StageError as error:
            left = {"refused": str(error)}
        torch.save(left, os.path.join(folder, f"{name}.{rank}.pt"))
    torch.distributed.destroy_process_group()


def together(
    workers: int,
    folder: Path,
    setups: Mapping[str, Setup | Sequence[Setup]],
    *,
    rank: int = 0,
    outputs: Mapping[str, Claim] | None = None,
) -> dict[str, dict[str, Any]]:
    """Several runs, one after the other, by the same gloo workers: what each left, as the worker `rank` has it.

    A setup may be one for each worker. Of a run that was refused, why: {"refused": ...}. `outputs`: where runs write
    their models at shares of their steps.
    """
    (folder / "meet").unlink(missing_ok=True)
    in_processes(_work, (workers, str(folder), list(setups.items()), outputs or {}), workers)
    return {name: torch.load(folder / f"{name}.{rank}.pt") for name in setups}
