"""Every sample, tokens weighted by the attention that the aligned model gives to the image where it predicts them."""

from __future__ import annotations

from vig_ray.selection import weights
from vig_ray.selection.strategy import Settings, Strategy, Tokens


def weigh(tokens: Tokens, settings: Settings) -> weights.Weights:
    """w_t = share^alpha, normalised to the number of tokens, float32 [N]."""
    return weights.attention(tokens.columns["attention"], tokens.lengths, settings.alpha)


STRATEGY = Strategy(
    "attention",
    "every sample, tokens weighted by the model's attention on the image",
    None,
    None,
    weigh=weigh,
    reads=("attention",),
    shares=True,
    measure="attention",
)
