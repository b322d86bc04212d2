"""AdamW and the learning rate of each step, as LLaVA-1.5's recipe has them."""

from __future__ import annotations

import math
from typing import Any

import torch

from vig_ray.training.config import TrainConfig
from vig_ray.training.training_model import TrainingModel


def make_optimizer(training_model: TrainingModel, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over what is trained; each group's `highest` is the rate that the schedule leads up to."""
    rates = config.rates
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in training_model.model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates[training_model.parts[name]], decay), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "highest": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    return torch.optim.AdamW(described, betas=(0.9, 0.999), eps=1e-8, fused=True)


def rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest.

    It rises linearly over the first ceil(`warmup` x `steps`) steps, from 0, then follows half a cosine to 0, as
    transformers' `get_cosine_schedule_with_warmup` has it (the schedule LLaVA-1.5 was trained with); or stays.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` of its highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * factor
