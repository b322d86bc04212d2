"""Runs of the trainer's core without Ray: in this process, or on several gloo workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vig_ray.demo import CHECKPOINT
from vig_ray.stage import claim
from vig_ray.training.checkpoints import Keeper
from vig_ray.training.config import TrainConfig
from vig_ray.training.index import of_samples, of_selection
from vig_ray.training.job import finish
from vig_ray.training.loader import Prompts
from vig_ray.training.run import Run, Setup
from vig_ray.training.team import Team
from vig_ray.training.watch import Silent
from vig_ray.training.worker import train


def setup_of(folder: Path, *, selection: bool = True, model: str = CHECKPOINT, **options: Any) -> Setup:
    options = {"global_batch": 8, "max_steps": 20, "lr": 1e-3, "batch_tokens": 100_000, **options}
    batch_tokens = options.pop("batch_tokens")
    samples, chosen = str(folder / "samples"), str(folder / "selection")
    index = of_selection(samples, chosen) if selection else of_samples(samples, 0)
    config = TrainConfig(model=model, samples=samples, selection=chosen if selection else None, out="-", **options)
    return Setup(
        config,
        Prompts(model),
        index,
        samples,
        chosen if selection else None,
        dtype=config.dtype or "float32",
        loaders=config.loaders or 0,
        batch_tokens=batch_tokens,
        checkpoint_activations=config.activation_checkpointing == "on",
    )


def alone(setup: Setup, out: Path) -> Run:
    team = Team(0, 1, torch.device("cpu"))
    return train(setup, team, Keeper(str(out), keep=2, team=team), Silent())


def left_by(run: Run, out: Path) -> Path:
    """Write what the job writes around a run of the core, without Ray."""
    setup = run.setup
    output = claim(str(out / "training"), "train", {}, folders=("model", "adapter"))
    output.begin(setup.config, prompts=setup.prompts._asdict(), dtype=setup.dtype)
    finish(run, output)
    output.commit(setup.config)
    return out


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """All weights, whole, on every worker."""
    found = {}
    for name, tensor in run.trainee.model.state_dict().items():
        found[name] = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
    return found


def _work(rank: int, workers: int, folder: str, setups: Sequence[tuple[str, Setup]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    team = Team(rank, workers, torch.device("cpu"))
    for name, setup in setups:
        run = train(setup, team, Keeper(os.path.join(folder, name), keep=2, team=team), Silent())
        weights = weights_of(run)
        if rank == 0:
            torch.save({"log": run.log, "weights": weights}, os.path.join(folder, f"{name}.pt"))
    torch.distributed.destroy_process_group()


def together(workers: int, folder: Path, setups: dict[str, Setup]) -> dict[str, dict[str, Any]]:
    """Several runs, one after the other, by the same gloo workers: each one's log and weights."""
    (folder / "meet").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_work, (workers, str(folder), list(setups.items())), nprocs=workers)
    return {name: torch.load(folder / f"{name}.pt") for name in setups}
