"""This process among those that train together, and what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class DistributedContext:
    """`rank` of `workers`, each with one `device`. Needs an initialised process group where there are several."""

    rank: int
    workers: int
    device: torch.device

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Every worker's values, float64 [workers, n]; each gives as many."""
        if self.workers == 1:
            return values[None]
        sent = torch.from_numpy(values).to(self.device)
        received = torch.empty(self.workers * len(values), dtype=sent.dtype, device=self.device)
        dist.all_gather_into_tensor(received, sent)
        return received.view(self.workers, -1).cpu().numpy()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's value, whatever it is; for rare and small things."""
        if self.workers == 1:
            return [value]
        received: list[Any] = [None] * self.workers
        dist.all_gather_object(received, value)
        return received

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""
        if self.workers > 1:
            dist.all_reduce(value)
        return value
