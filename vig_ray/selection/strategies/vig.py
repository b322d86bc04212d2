"""VIG: the samples of the top p % by VIG_i, and of these the tokens with VIG_t >= tau_p.

Equations 7 to 9 of arXiv 2602.17186. tau_p, the least VIG_i among those kept, serves samples and tokens alike.
"""

from __future__ import annotations

import numpy as np

from vig_ray.selection.strategy import Settings, Strategy, Tokens
from vig_ray.selection.weights import Weights, mask


def weigh(tokens: Tokens, settings: Settings) -> Weights:  # noqa: ARG001
    """The mask of equation 9, float32 [N]."""
    clean, reference = (
        np.asarray(tokens.columns[name], dtype=np.float64) for name in ("clean_logprobs", "reference_logprobs")
    )
    return mask(clean - reference, np.repeat(tokens.threshold, tokens.lengths))


STRATEGY = Strategy(
    "vig",
    "top p % by VIG, and their tokens with a gain of tau_p or more",
    "vig",
    "p",
    weigh=weigh,
    reads=("clean_logprobs", "reference_logprobs"),
)
