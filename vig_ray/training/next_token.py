"""The objective that all runs have: one weighted cross-entropy on answer tokens, whatever the weights are.

    plain      w_t = 1                         instruction tuning (equation 1 of the VIG paper)
    masked     w_t = 1 where VIG_t >= tau      VIG-guided selective training (equation 9, section 3.4)
    weighted   w_t = k (1 - p_ref)^a / sum     PRIOR (equation 4 of its paper)

The weights come with the selection, so that all of these are

    loss = sum over the global batch of c_t * -log q(a_t | a_<t, Q, image)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from vig_ray.model.prompt import Prompt
from vig_ray.training.objective import Head, Mode, Predictions, Weights, weighted_sum

LOGITS_AT_ONCE = 1 << 24
"""Elements of the logits that exist at a time: 64 MB of float32."""


def weighted_cross_entropy(
    hidden_ND: torch.Tensor,
    head: Head,
    target_N: torch.Tensor,
    coefficient_N: torch.Tensor,
    *,
    vocabulary: int,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of c_t * -log q(a_t), a float32 scalar, and the -log q(a_t) themselves, float32 [N], without gradient.

    `hidden_ND`: the last hidden state at the position before each of N tokens; give active ones only. `head` makes
    logits of it. Logits exist for a chunk of rows at a time, in the backward pass too, where they are made again; in
    float32, since bfloat16 can't tell log-probs apart that lie closer than 0.06 at logits near 16.
    """

    def nll_of(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(head(hidden).float(), target, reduction="none")

    return weighted_sum(nll_of, coefficient_N, hidden_ND, target_N, rows=max(1, logits_at_once // vocabulary))


@dataclass(frozen=True)
class NextToken:
    """The cross-entropy of a sample's answer tokens, but in image mode."""

    factor: ClassVar[float] = 1.0
    layer: ClassVar[int | None] = None
    embeddings: ClassVar[bool] = False

    def predictions(self, prompt: Prompt, weights_T: Weights, mode: Mode, /) -> Predictions:
        """See `Objective`: each answer token, by the state before it."""
        predicted_T = prompt.answer_positions.astype(np.int64)
        return Predictions(predicted_T - 1, predicted_T, np.zeros_like(weights_T) if mode == "image" else weights_T)

    def sum(
        self, state_ND: torch.Tensor, target: torch.Tensor, coefficient_N: torch.Tensor, head: Head, vocabulary: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective` and `weighted_cross_entropy`."""
        return weighted_cross_entropy(state_ND, head, target, coefficient_N, vocabulary=vocabulary)
