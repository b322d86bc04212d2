"""Attention weighting by a CLIP, which PRIOR compares with (its section 3.4): every sample, tokens by their relevance.

PRIOR speaks of the cross-attention scores of a CLIP, which has none; `vig_ray.measuring.clip` says what stands for
them.
"""

from __future__ import annotations

from vig_ray.selection import weights
from vig_ray.selection.strategy import Settings, Strategy, Tokens


def weigh(tokens: Tokens, settings: Settings) -> weights.Weights:
    """w_t = softmax of alpha * CLIP's logits, normalised to the number of tokens, float32 [N]."""
    return weights.relevance(tokens.columns["clip"], tokens.lengths, settings.alpha)


STRATEGY = Strategy(
    "clip",
    "every sample, tokens weighted by CLIP's likeness of them and the image",
    None,
    None,
    weigh=weigh,
    reads=("clip",),
    shares=True,
    measure="clip",
)
