"""AdamW, with moments in float32 or in 8 bits, and the learning rate of each step, as LLaVA-1.5's recipe has them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch

from vig_ray.errors import StageError
from vig_ray.training.options import TrainingOptions
from vig_ray.training.training_model import TrainingModel

_LEAST_IN_8_BITS = 4096  # as in the libraries that have 8-bit moments


def make_optimizer(training_model: TrainingModel, config: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW over what is trained, fused or with moments in 8 bits; each group's `highest` is the rate that the schedule
    leads up to."""
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
    if config.optimizer == "adamw8bit":
        from vig_ray.compat.torchao import AdamW8bit

        return AdamW8bit(described, block_of, betas=(0.9, 0.999), eps=1e-8)
    return torch.optim.AdamW(described, betas=(0.9, 0.999), eps=1e-8, fused=True)


def block_of(shape: Sequence[int]) -> int | None:
    """How many elements of a row share a scale where moments are kept in 8 bits: 256, 128 or 64, whichever divides the
    row; None where none does or where it is a small tensor or a vector, whose moments stay in float32."""
    row = math.prod(shape[1:])
    if len(shape) < 2 or row * shape[0] < _LEAST_IN_8_BITS:
        return None
    return next((block for block in (256, 128, 64) if row % block == 0), None)


def check_packages(config: TrainingOptions) -> None:
    """Raise StageError where an option needs a package that isn't installed here."""
    asked = {
        "--quantise nf4": ("bitsandbytes", config.quantise == "nf4"),
        "--optimizer adamw8bit": ("torchao", config.optimizer == "adamw8bit"),
    }
    for option, (package, needed) in asked.items():
        if needed and importlib.util.find_spec(package) is None:
            raise StageError(
                f"{option}: {package} isn't installed; pip install 'vig-ray[quantised]' on the machines that train"
            )


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
        rate = group["highest"] * factor
        if isinstance(group["lr"], torch.Tensor):  # of a compiled step, which a new number would have compiled anew
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
