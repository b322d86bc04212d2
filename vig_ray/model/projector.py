"""The projector of an assembled model: LLaVA's file, or a new one with random weights, which alignment then trains."""

from __future__ import annotations

import math

import torch

from vig_ray.errors import StageError
from vig_ray.storage import one_line

NEW = ("random", "mlp2x_gelu")
"""What `--projector` calls a new one; both are LLaVA-1.5's two layers with a GELU between them."""
_LINEAR = "linear"
Projector = dict[str, torch.Tensor]


def check_name(projector: str) -> None:
    """Raise StageError for a kind of projector that LLaVA's layout can't hold."""
    if projector == _LINEAR:
        raise StageError(
            "--projector linear: transformers' LLaVA has two layers with an activation between them, and one layer "
            "would be two that train as one of twice the depth; vLLM's LLaVA knows no activation that leaves values as "
            "they are: take mlp2x_gelu"
        )


def new_projector(vision: int, language: int, seed: int) -> Projector:
    """Two layers from `vision` to `language` dimensions, float32, as torch.nn.Linear begins: weights and biases uniform
    in +-1 / sqrt(inputs), drawn from `seed`, the first layer's before the second's."""
    generator = torch.Generator().manual_seed(seed)
    made: Projector = {}
    for layer, inputs in (("linear_1", vision), ("linear_2", language)):
        bound = 1.0 / math.sqrt(inputs)
        for name, shape in (("weight", (language, inputs)), ("bias", (language,))):
            made[f"{layer}.{name}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return made


def read_projector(path: str) -> Projector:
    """LLaVA's projector as {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}.

    LLaVA writes `model.mm_projector.0.*` and `.2.*` (layer 1 is the GELU between them). Raises StageError for any
    other layout.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            stored: dict[str, torch.Tensor] = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StageError(f"--projector {path}: no such file") from error
    except Exception as error:  # torch.load raises many kinds for a file that isn't its own
        raise StageError(f"--projector {path}: can't be read as weights: {one_line(error)[:200]}") from error
    short = {name.split("mm_projector.")[-1]: tensor for name, tensor in stored.items()}
    wanted = {
        "0.weight": "linear_1.weight",
        "0.bias": "linear_1.bias",
        "2.weight": "linear_2.weight",
        "2.bias": "linear_2.bias",
    }
    if set(short) != set(wanted):
        raise StageError(
            f"--projector {path}: needs weight and bias of mm_projector.0 and .2, an mlp2x_gelu projector, "
            f"but holds {', '.join(sorted(stored)[:6]) or 'nothing'}"
        )
    return {wanted[name]: tensor for name, tensor in short.items()}
