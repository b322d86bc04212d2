"""PRIOR: every sample, each token weighted by how little the reference expects it: its equations 3 and 4.

PRIOR's reference is a language model trained on the captions: the text pass of the scores (--reference text). Another
reference pass may take its place.
"""

from __future__ import annotations

from vig_ray.selection import weights
from vig_ray.selection.strategy import Strategy, Tokens


def weigh(tokens: Tokens, alpha: float) -> weights.Weights:
    """w_t = (1 - p_ref)^alpha, normalised to the number of tokens, float32 [N]."""
    return weights.prior(tokens.reference, tokens.lengths, alpha)


STRATEGY = Strategy(
    "prior", "every sample, tokens weighted by (1 - p_ref)^alpha", None, None, weigh=weigh, scored="reference_loss"
)
