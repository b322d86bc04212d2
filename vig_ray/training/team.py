"""This process among those that train together: what they tell each other, and how the model is sharded over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from vig_ray.training.trainee import Trainee


@dataclass(frozen=True)
class Team:
    """`rank` of `workers`, each with one `device`. Needs an initialised process group where there are several."""

    rank: int
    workers: int
    device: torch.device

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Every worker's values, float64 [workers, n]; each gives as many."""
        if self.workers == 1:
            return values[None]
        own = torch.from_numpy(values).to(self.device)
        found = torch.empty(self.workers * len(values), dtype=own.dtype, device=self.device)
        dist.all_gather_into_tensor(found, own)
        return found.view(self.workers, -1).cpu().numpy()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's value, whatever it is; for rare and small things."""
        if self.workers == 1:
            return [value]
        found: list[Any] = [None] * self.workers
        dist.all_gather_object(found, value)
        return found

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""
        if self.workers > 1:
            dist.all_reduce(value)
        return value


def shard(trainee: Trainee, team: Team, dtype: torch.dtype) -> bool:
    """Spread weights, gradients and optimizer state over the team (FSDP2); returns whether it did.

    One unit a decoder layer, and one for the rest. Weights that are trained become float32, whatever the checkpoint's
    precision; passes run in `dtype`. A single worker in float32 needs no FSDP.
    """
    if team.workers == 1 and dtype == torch.float32:
        _place(trainee, team.device)
        return False
    mesh = init_device_mesh(team.device.type, (team.workers,))
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in [*trainee.layers(), trainee]:
        _place(unit, team.device)
        fully_shard(unit, mesh=mesh, mp_policy=precision)
    return True


def _place(unit: torch.nn.Module, device: torch.device) -> None:
    unit.to(device)
    for parameter in unit.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
