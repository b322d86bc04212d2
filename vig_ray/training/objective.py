"""The loss of a step: one weighted cross-entropy, whatever the weights are.

    plain      w_t = 1                         instruction tuning (equation 1 of the VIG paper)
    masked     w_t = 1 where VIG_t >= tau      VIG-guided selective training (equation 9, section 3.4)
    weighted   w_t = k (1 - p_ref)^a / sum     PRIOR (equation 4 of its paper)

The weights come with the selection, so that all of these are

    loss = sum over the global batch of c_t * -log q(a_t | a_<t, Q, image)

where `coefficients` makes c_t of w_t. c_t is known before the forward pass: a rank needs nothing of the others but two
totals, and gradients of ranks and of accumulated microbatches simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

Normalisation = Literal["tokens", "samples"]

LOGITS_AT_ONCE = 1 << 24
"""Elements of the logits that exist at a time: 64 MB of float32."""

Weights = npt.NDArray[np.float32]


class Totals(NamedTuple):
    """Sums over a global batch: active tokens, whose weight isn't 0, and samples that have any."""

    active_tokens: int
    active_samples: int

    @classmethod
    def of(cls, weights: Sequence[Weights]) -> Totals:
        """The totals of some samples; those of ranks add up."""
        active = [int(np.count_nonzero(each)) for each in weights]
        return cls(sum(active), sum(count > 0 for count in active))


def coefficients(weights_T: Weights, totals: Totals, normalisation: Normalisation) -> Weights:
    """c_t of one sample, float32 [T]: its share of the loss of the global batch that `totals` is of.

    `tokens`: w_t / active tokens, so that every active token counts the same, wherever it is. `samples`: w_t / (active
    tokens of its sample x active samples): a mean over each sample's tokens first, as in equation 1. A sample without
    an active token has no part in either.

    LLaVA's own code does neither: it takes the mean over the tokens of each process's own microbatch and then the mean
    over microbatches and processes, so a token counts more the fewer there are beside it, and the loss depends on the
    number of GPUs.
    """
    active = int(np.count_nonzero(weights_T))
    if not active:
        return np.zeros(len(weights_T), dtype=np.float32)
    share = totals.active_tokens if normalisation == "tokens" else active * totals.active_samples
    normalised_T: Weights = (weights_T.astype(np.float64) / share).astype(np.float32)
    return normalised_T


def weighted_cross_entropy(
    hidden_ND: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
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
    rows = max(1, logits_at_once // vocabulary)

    def of_chunk(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(head(hidden).float(), target, reduction="none")

    if len(hidden_ND) <= rows:  # no row at all, too: the head still gets its gradient, zeros
        nll_N = of_chunk(hidden_ND, target_N)
    else:
        chunks = zip(torch.split(hidden_ND, rows), torch.split(target_N, rows), strict=True)
        nll_N = torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
    return (coefficient_N * nll_N).sum(), nll_N.detach()
