"""What `--gradient-sync step` takes of a device's memory, and whether it is there."""

from __future__ import annotations

import math

import torch

from vig_ray.errors import StageError
from vig_ray.training.sharding import GRADIENT_DTYPE
from vig_ray.training.training_model import TrainingModel

_MOMENTS = 2  # of AdamW, as wide as the gradients


def whole_gradients(training_model: TrainingModel, workers: int, free: float) -> int:
    """The bytes of the gradients that each worker keeps whole until a step's end.

    `free`: bytes that the fullest device has left for them, before the first step. Raises StageError where they don't
    fit beside the worker's share of gradients and optimizer state; what activations need is not known.
    """
    trained = sum(parameter.numel() for parameter in training_model.parameters() if parameter.requires_grad)
    whole = trained * GRADIENT_DTYPE.itemsize
    share = whole * (1 + _MOMENTS) / workers
    if whole + share > free:
        raise StageError(
            f"--gradient-sync step: {whole / 1e9:,.1f} GB of whole gradients and {share / 1e9:,.1f} GB of optimizer "
            f"state don't fit into the {free / 1e9:,.1f} GB that are free on a device; take --gradient-sync "
            "microbatch, which keeps a share of them on each worker, or --lora"
        )
    return whole


def free_bytes(device: torch.device) -> float:
    """What can still be allocated on a GPU, torch's own reserve included; infinity for a CPU, where nobody knows."""
    if device.type != "cuda":
        return math.inf
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + reserve)
