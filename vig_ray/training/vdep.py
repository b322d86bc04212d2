"""VDEP: hidden states at image positions predict what the projector puts there (equation 11 of its paper),

    L = L_t + alpha * L_i,    L_i = sum over the global batch of c_i * ||h_(i - shift) - e_i||^2

with e_i the embedding at image position i, as the language model is given it, and h the language model's states. The
distance is the squared L2 distance of appendix D, summed over the width, or its mean.

`--vdep-shift 1`, next position, as the paper's text has it (autoregressive): the first position of an image is
predicted by the token before it, whatever that is, and the state at its last position predicts nothing, unless the next
image begins right behind it. `--vdep-shift 0`, same position: a state reconstructs what its own token is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from vig_ray.model.prompt import Prompt
from vig_ray.training.objective import Head, Mode, Predictions, Weights, weighted_sum

Reduction = Literal["sum", "mean"]

ELEMENTS_AT_ONCE = 1 << 24
"""Elements of the differences that exist at a time: 64 MB of float32."""


def weighted_squared_distance(
    state_ND: torch.Tensor,
    target_ND: torch.Tensor,
    coefficient_N: torch.Tensor,
    *,
    reduction: Reduction,
    elements_at_once: int = ELEMENTS_AT_ONCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of c_i * ||state_i - target_i||^2, a float32 scalar, and the squared distances themselves, float32 [N],
    without gradient.

    `reduction`: the squared distance is summed over the width D, or their mean. Differences are made in float32, for a
    chunk of rows at a time, in the backward pass too, where they are made again.
    """

    def distance_of(state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        squares = (state.float() - target.float()).square()
        return squares.sum(-1) if reduction == "sum" else squares.mean(-1)

    rows = max(1, elements_at_once // state_ND.shape[-1])
    return weighted_sum(distance_of, coefficient_N, state_ND, target_ND, rows=rows)


@dataclass(frozen=True)
class ImageEmbeddings:
    """L_i of a sample's image positions, in image and joint mode. `factor`: alpha; `live`: whether targets have
    gradients."""

    factor: float
    reduction: Reduction
    shift: int
    live: bool
    layer: int | None

    embeddings: ClassVar[bool] = True

    def predictions(self, prompt: Prompt, _: Weights, mode: Mode, /) -> Predictions:
        """See `Objective`: each image position, but for one at which the prompt begins, where nothing is before it."""
        predicted_N = np.flatnonzero(prompt.image_mask).astype(np.int64)
        predicted_N = predicted_N[predicted_N >= self.shift]
        weight = 0.0 if mode == "text" else 1.0
        return Predictions(predicted_N - self.shift, predicted_N, np.full(len(predicted_N), weight, dtype=np.float32))

    def sum(
        self, state_ND: torch.Tensor, target: torch.Tensor, coefficient_N: torch.Tensor, _head: Head, _rows: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective` and `weighted_squared_distance`."""
        target_ND = target if self.live else target.detach()
        return weighted_squared_distance(state_ND, target_ND, coefficient_N, reduction=self.reduction)
