"""The loss of a step: a sum of objectives, each a weighted sum over what it predicts of the global batch,

    loss = sum over objectives of factor * sum over the global batch of c_n * loss_n

where `coefficients` makes c_n of the weights. c_n is known before the forward pass: a rank needs nothing of the others
but two totals of each objective, and gradients of ranks and of accumulated microbatches simply add up.

An `Objective` says what it asks of a sample (which states predict what, with which weights) and what it makes of these
states. `next_token.py` is the one that all runs have; `vdep.py` adds another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

from vig_ray.model.prompt import Prompt

Normalisation = Literal["tokens", "samples"]

Mode = Literal["text", "image", "joint"]
"""What a sample is trained on: its answers, its images, or both."""

Weights = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Head = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states [N, D] to logits [N, V]."""


class Totals(NamedTuple):
    """Sums over a global batch: active tokens, whose weight isn't 0, and samples that have any.

    Of an objective that predicts other things than tokens, these things take the tokens' place.
    """

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


def weighted_sum(
    loss_of: Callable[..., torch.Tensor], coefficient_N: torch.Tensor, *of_N: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of c_n times the losses that `loss_of` makes of `of_N`, tensors [N, ...], a float32 scalar, and these losses,
    float32 [N], without gradient.

    What is made on the way exists for `rows` of them at a time, in the backward pass too, where it is made again.
    """
    if len(coefficient_N) <= rows:  # no row at all, too: what the losses are made of still gets its gradient, zeros
        loss_N = loss_of(*of_N)
    else:
        chunks = zip(*(torch.split(each, rows) for each in of_N), strict=True)
        loss_N = torch.cat([checkpoint(loss_of, *chunk, use_reentrant=False) for chunk in chunks])
    return (coefficient_N * loss_N).sum(), loss_N.detach()


class Predictions(NamedTuple):
    """What an objective predicts of one sample, N things: `state_N` and `predicted_N`, int64, are the places of the
    tokens at whose states it predicts, and of those that it predicts; `weight_N`, 0: no part in the loss."""

    state_N: Places
    predicted_N: Places
    weight_N: Weights


class Part(NamedTuple):
    """An objective's part of a microbatch: the flat indices of the states, int64 [N], what they predict, and c_n,
    float32 [N].

    `target_N`: int64, token ids, or the flat indices of the tokens whose embeddings are the targets.
    """

    state_index_N: torch.Tensor
    target_N: torch.Tensor
    coefficient_N: torch.Tensor


class Objective(Protocol):
    """One term of the loss. `factor`: what its sum is multiplied by. `layer`: the states that it takes, by
    transformers' number among the model's `hidden_states`; None: the last ones, after the final norm. `embeddings`:
    whether it predicts tokens' embeddings, as the language model is given them, and not their ids."""

    @property
    def factor(self) -> float: ...  # noqa: D102

    @property
    def layer(self) -> int | None: ...  # noqa: D102

    @property
    def embeddings(self) -> bool: ...  # noqa: D102

    def predictions(self, prompt: Prompt, weights_T: Weights, mode: Mode, /) -> Predictions:
        """What it predicts of a sample that is trained on in `mode`. `weights_T`: of its answer tokens."""

    def sum(
        self, state_ND: torch.Tensor, target: torch.Tensor, coefficient_N: torch.Tensor, head: Head, vocabulary: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of c_n times the loss of each prediction, a float32 scalar, and these losses, float32 [N], without
        gradient. `target`: ids, int64 [N], or embeddings [N, D]; `head` gives `vocabulary` logits."""


class Sums:
    """What is told of a step beside its loss: the sum of each objective, without its factor, and how much the
    embeddings that are predicted vary. Of one worker until `total`."""

    def __init__(self, objectives: int, device: torch.device) -> None:
        self._losses = torch.zeros(objectives, dtype=torch.float64, device=device)
        self._moments: torch.Tensor | None = None  # count, then sums and sums of squares by dimension

    def add(self, number: int, loss: torch.Tensor) -> None:
        """Add a microbatch's sum of objective `number`."""
        self._losses[number] += loss.detach()

    def add_embeddings(self, embedding_ND: torch.Tensor, *, at_once: int = 4096) -> None:
        """Add the embeddings that are predicted in a microbatch; every worker does, also where there are none."""
        moments = embedding_ND.new_zeros(3, embedding_ND.shape[1], dtype=torch.float64)
        for rows in torch.split(embedding_ND.detach(), at_once):
            exact = rows.double()
            moments += torch.stack([torch.ones_like(exact).sum(0), exact.sum(0), exact.square().sum(0)])
        self._moments = moments if self._moments is None else self._moments + moments

    def total(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[float], float | None]:
        """The sum of each objective, and the variance of the embeddings over the predictions, mean over the width; None
        where there are none. `add_up`: over all workers, each of which calls this."""
        losses = add_up(self._losses).tolist()
        if self._moments is None:
            return losses, None
        count_D, sum_D, squares_D = add_up(self._moments)
        if not count_D[0]:
            return losses, None
        return losses, float((squares_D / count_D - (sum_D / count_D).square()).clamp(min=0).mean())
